"""Two models in one Airflow, and a third whose bucket is gone: each night promotes its own champion, and nothing of another's.

The screenshots go to the folder that BCC_SCREENSHOTS names, else to the test's own temporary one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from playwright.sync_api import Page, expect

from bcc_ops.dataset.synthetic import TEXTURE_CLASSES, write_images
from bcc_ops.instances import find_instance
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.runs.documents import GateDocument, SnapshotDocument
from bcc_ops.runs.index import list_runs
from local.images import read_folder, upload
from local.stack import LocalStack
from tests.e2e.browser import camera, logged_in_page
from tests.e2e.conftest import CLASSES, TINY, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]

PER_CLASS = 15
NIGHT = {**TINY, "settle_seconds": 1, "wait_for_images_minutes": 5}
FOLDERS = ("images", "artifacts", "models")
INSTANCES: dict[str, Any] = {
    "breast": {"title": "Breast ultrasound", "parameters": NIGHT},
    "textures": {
        "title": "Woven textures",
        **{f"{folder}_prefix": f"textures/{folder}" for folder in FOLDERS},
        "classes": list(TEXTURE_CLASSES),
        "positive_class": "finding",
        "parameters": NIGHT,
    },
    "gone": {"title": "Gone", "bucket": "no-such-bucket", "parameters": NIGHT},
}
DRAWN = {"breast": CLASSES, "textures": TEXTURE_CLASSES}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack with the three instances, two of which have synthetic images, in one bucket under prefixes of their own."""
    file = tmp_path_factory.mktemp("deployment") / "deployment.yaml"
    file.write_text(yaml.safe_dump({"instances": INSTANCES}))
    home = tmp_path_factory.mktemp("instances-stack")
    with LocalStack(home, bucket="shared", variables={"BCC_PARAMETERS": str(file)}, wait=False) as running:
        for name, classes in DRAWN.items():
            folder = tmp_path_factory.mktemp(name)
            write_images(folder, PER_CLASS, classes=classes)
            prefix = find_instance(name, running.environment).settings.images_prefix
            upload(running.store, prefix, read_folder(folder, classes))
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def nights(stack: LocalStack) -> dict[str, str]:
    """Instance -> id of its run of last night, which has ended. Airflow makes it when a DAG is switched on."""
    for name in INSTANCES:
        dag_id = f"bcc_retraining__{name}"
        wait_for(partial(stack.api.dag, dag_id), f"{dag_id} was not parsed")
        stack.api.set_paused(dag_id, False)
    ended = {}
    for name in INSTANCES:
        dag_id = f"bcc_retraining__{name}"
        ended[name] = wait_for(partial(stack.api.runs, dag_id), f"Airflow made no run of {dag_id}")[0]["dag_run_id"]
        stack.api.wait_for_run(dag_id, ended[name], 2400, stack.supervisor.check)
    return ended


@pytest.mark.parametrize("name", list(DRAWN))
def test_each_night_promotes_a_champion_of_its_own_classes(stack: LocalStack, nights: dict[str, str], name: str) -> None:
    assert stack.api.run(f"bcc_retraining__{name}", nights[name])["state"] == "success"
    settings = find_instance(name, stack.environment).settings
    registry = ModelRegistry(stack.store, settings.models_prefix)
    champion = registry.champion()
    assert champion is not None and champion.champion is not None
    assert registry.versions() == [champion.champion.version]
    model = registry.model(champion.champion.version)
    assert (model.classes, model.positive_class) == (settings.classes, settings.positive_class)
    (run,) = list_runs(stack.store, settings.artifacts_prefix)
    snapshot = stack.store.load_key(SnapshotDocument, run.document("snapshot.json"))
    assert (snapshot.prefix, snapshot.counts) == (settings.images_prefix, dict.fromkeys(DRAWN[name], PER_CLASS))
    assert stack.store.load_key(GateDocument, run.document("gate.json")).verdict == "approved_without_champion"


def test_everything_in_the_bucket_is_under_the_prefixes_of_one_of_them(stack: LocalStack, nights: dict[str, str]) -> None:
    places = tuple(f"{above}{folder}/" for above in ("", "textures/") for folder in FOLDERS)
    assert not [entry["Key"] for entry in stack.store.list_objects("") if not entry["Key"].startswith(places)]


def test_the_one_without_a_bucket_says_so_in_its_first_task(stack: LocalStack, nights: dict[str, str]) -> None:
    dag_id, run_id = "bcc_retraining__gone", nights["gone"]
    assert stack.api.run(dag_id, run_id)["state"] == "failed"
    assert stack.api.tasks(dag_id, run_id)["wait_for_new_images"]["state"] == "failed"
    logs = (stack.airflow_home / "logs").rglob("*.log")
    told = [path.read_text() for path in logs if "bcc_retraining__gone" in str(path) and "wait_for_new_images" in str(path)]
    assert any("no-such-bucket" in text and "does not exist" in text for text in told)


@pytest.fixture(scope="module")
def page(stack: LocalStack) -> Iterator[Page]:
    """A browser window in which somebody has logged in."""
    with logged_in_page(stack) as page:
        yield page


@pytest.fixture(scope="module")
def shoot(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Take a screenshot by name, `whole=True` with what lies below the window's edge too."""
    return camera(page, tmp_path_factory.mktemp("screenshots"))


@pytest.mark.parametrize("name", list(DRAWN))
def test_each_report_speaks_of_its_own_classes(
    page: Page, stack: LocalStack, nights: dict[str, str], name: str, shoot: Callable[..., None]
) -> None:
    dag_id = f"bcc_retraining__{name}"
    page.goto(f"{stack.address}/dags/{dag_id}/runs/{quote(nights[name], safe='')}/plugin/model-report")
    report = page.frame_locator("iframe[title='Model report']")
    expect(report.get_by_role("heading", name="Approved, with no champion to compare with")).to_be_visible()
    page.goto(f"{stack.address}/bcc/runs/{dag_id}/{quote(nights[name], safe='')}/report")
    shoot(f"report-{name}", whole=True)
    shown = page.locator("main").inner_text().lower()
    assert INSTANCES[name]["title"].lower() in shown
    if name == "textures":
        told = shown.replace("min_malignant", "")  # the parameters keep their names: these are what a person types
        assert "breast" not in told and "malignant" not in told
        assert "finding sensitivity at operating point" in shown


def test_the_navigation_lists_them_and_leads_to_each(
    page: Page, stack: LocalStack, nights: dict[str, str], shoot: Callable[..., None]
) -> None:
    page.goto(stack.address)
    page.get_by_role("link", name="Models", exact=True).click()
    models = page.frame_locator("iframe[title='Models']")
    expect(models.get_by_role("link", name="Breast ultrasound")).to_be_visible()
    shoot("models", whole=True)
    models.get_by_role("link", name="Woven textures").click()
    expect(models.get_by_role("heading", name="The champion")).to_be_visible()
    expect(models.get_by_text("approved, first model")).to_be_visible()
    shoot("models-textures", whole=True)
    models.locator("#runs th a").first.click()
    expect(models.get_by_text("Woven textures", exact=False).first).to_be_visible()


def test_a_run_of_one_is_not_found_as_a_run_of_the_other(stack: LocalStack, nights: dict[str, str]) -> None:
    """Runs of one night have the same id in both DAGs: the page shows the documents of the DAG that it names."""
    for name, classes in DRAWN.items():
        gate = f"/bcc/runs/bcc_retraining__{name}/{quote(nights[name], safe='')}/files/snapshot.json"
        assert json.loads(stack.api.page(gate))["classes"] == list(classes)
