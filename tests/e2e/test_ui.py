"""What people do in a browser: log in, trigger, watch, answer, read. On synthetic images, with Debian's Chromium.

The screenshots go to the folder that BCC_SCREENSHOTS names, else to the test's own temporary one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import FrameLocator, Page, expect

from bcc_ops.dataset.synthetic import write_images
from local.images import read_folder, upload
from local.stack import DAG_ID, LocalStack
from tests.e2e.browser import MINUTES, SCREEN, camera, logged_in_page, need_chromium

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

RUN_ID = "by_hand__from_the_form"
PARAMS = {
    "Split": {"folds": "2"},
    "Model": {"image_size": "64"},
    "Training": {"epochs": "8"},
    "Evaluation": {"wanted_sensitivity": "0.8"},
    "Gate": {
        "min_balanced_accuracy": "0",
        "min_macro_auc": "0",
        "min_malignant_sensitivity": "0",
        "min_malignant_specificity": "0",
    },
}
"""Section of the form -> parameter -> what is typed: two trainings of a minute, to be watched, which the gate approves."""


@pytest.fixture(scope="module")
def ui_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack of this module's own, with synthetic images, so that every picture may be shown to anybody."""
    need_chromium()
    images = tmp_path_factory.mktemp("synthetic")
    write_images(images, 60)
    with LocalStack(tmp_path_factory.mktemp("ui-stack"), bucket="ui-images") as stack:
        upload(stack.store, stack.settings.images_prefix, read_folder(images, stack.settings.classes))
        end_the_nightly_run(stack)
        yield stack


def end_the_nightly_run(stack: LocalStack) -> None:
    """Switch the DAG on and end the run of last night, which Airflow makes then: one run at a time, and it would be first."""
    stack.api.set_paused(DAG_ID, False)
    deadline = time.monotonic() + 120
    while not (runs := stack.api.runs(DAG_ID)):
        assert time.monotonic() < deadline, "Airflow made no run of last night"
        time.sleep(0.5)
    run_id = runs[0]["dag_run_id"]
    stack.api.call("PATCH", f"/dags/{DAG_ID}/dagRuns/{quote(run_id, safe='')}", json={"state": "failed"})


@pytest.fixture(scope="module")
def page(ui_stack: LocalStack) -> Iterator[Page]:
    """A browser window in which somebody has logged in through the form."""
    with logged_in_page(ui_stack) as page:
        yield page


@pytest.fixture(scope="module")
def shoot(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Take a screenshot by name, `whole=True` with what lies below the window's edge too."""
    return camera(page, tmp_path_factory.mktemp("screenshots"))


@pytest.fixture(scope="module")
def triggered(page: Page, ui_stack: LocalStack, shoot: Callable[..., None]) -> str:
    """The id of a run that was triggered from the form, with changed parameters and an approval asked for."""
    page.goto(f"{ui_stack.address}/dags/{DAG_ID}")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog").filter(has_text="Trigger Dag")
    for section, parameters in PARAMS.items():
        form.get_by_role("button", name=section, exact=True).click()
        for parameter, value in parameters.items():
            field = form.locator(f"[name=element_{parameter}]")
            field.fill(value)
            field.blur()
    form.get_by_role("button", name="Promotion", exact=True).click()
    form.locator("label").filter(has=page.locator("[name=element_require_approval]")).click()
    shoot("1-trigger-form")
    form.get_by_role("button", name="Advanced Options").click()
    form.locator("[name=dagRunId]").fill(RUN_ID)
    form.get_by_role("button", name="Trigger", exact=True).click()
    expect(form).to_be_hidden()
    return RUN_ID


def run_address(stack: LocalStack, run_id: str) -> str:
    return f"{stack.address}/dags/{DAG_ID}/runs/{quote(run_id, safe='')}"


def report_of(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[title='Model report']")


def test_form_hands_the_changed_parameters_to_the_run(triggered: str, ui_stack: LocalStack) -> None:
    conf = ui_stack.api.run(DAG_ID, triggered)["conf"]
    typed = {parameter: float(value) for parameters in PARAMS.values() for parameter, value in parameters.items()}
    assert {parameter: float(conf[parameter]) for parameter in typed} == typed
    assert conf["require_approval"] is True


def test_tab_shows_the_epochs_while_the_run_trains(
    page: Page, triggered: str, ui_stack: LocalStack, shoot: Callable[..., None]
) -> None:
    page.goto(run_address(ui_stack, triggered))
    page.get_by_role("link", name="Model report").click()
    report = report_of(page)
    expect(report.get_by_role("heading", name=re.compile("^(Running: |The run is )"))).to_be_visible()
    fold = report.get_by_role("listitem").filter(has_text=re.compile("^fold [12] of 2: epoch [1-8] of 8$"))
    expect(fold.first).to_be_visible(timeout=12 * MINUTES)
    expect(report.get_by_role("listitem").filter(has_text=re.compile("train_model [0-2] of 2 done"))).to_be_visible()
    expect(report.get_by_role("img", name="Accuracy by epoch")).to_be_visible()
    shoot("2-report-while-training")


def test_approval_is_answered_in_the_ui(page: Page, triggered: str, ui_stack: LocalStack, shoot: Callable[..., None]) -> None:
    page.goto(f"{run_address(ui_stack, triggered)}/plugin/model-report")
    report = report_of(page)
    expect(report.get_by_role("heading", name="Waiting for a person's approval")).to_be_visible(timeout=12 * MINUTES)
    expect(report.get_by_role("heading", name="Approved by the gate, waiting for a person")).to_be_visible()
    shoot("3-report-waits-for-approval")
    report.get_by_role("link", name="Open approve_model").click()
    page.wait_for_url("**/tasks/approve_model**")
    page.get_by_role("link", name=re.compile("Required Action")).click()
    approve = page.get_by_role("button", name="Approve", exact=True)
    expect(approve).to_be_visible()
    shoot("4-approval")
    approve.click()
    finished = ui_stack.api.wait_for_run(DAG_ID, triggered, within=600)
    assert finished["state"] == "success"


def test_report_of_the_finished_run(page: Page, triggered: str, ui_stack: LocalStack, shoot: Callable[..., None]) -> None:
    page.goto(f"{run_address(ui_stack, triggered)}/plugin/model-report")
    report = report_of(page)
    expect(report.get_by_role("heading", name="Approved, with no champion to compare with")).to_be_visible()
    expect(report.get_by_text("Synthetic images.", exact=False).first).to_be_visible()
    pictures = report.get_by_role("img").filter(visible=True)
    expect(report.get_by_role("img", name=re.compile("^ROC curves"))).to_be_visible()
    broken = pictures.evaluate_all("all => all.filter(one => one.tagName === 'IMG' && !one.naturalWidth).map(one => one.alt)")
    assert broken == []
    shoot("5-report")
    with page.expect_download() as download:
        report.get_by_role("link", name="gate.json").click()
    assert '"approved_without_champion"' in Path(download.value.path()).read_text()


@pytest.mark.parametrize("task", ["evaluate_model", "gate_model", "publish_plots"])
def test_task_links_to_the_report(page: Page, triggered: str, ui_stack: LocalStack, task: str) -> None:
    page.goto(f"{run_address(ui_stack, triggered)}/tasks/{task}/details")
    link = page.get_by_role("link", name="Model report")
    expect(link).to_have_attribute("href", re.compile("/plugin/model-report$"))
    link.click()
    expect(report_of(page).get_by_role("heading", name=re.compile("^Images as of"))).to_be_visible()


def test_navigation_page_leads_to_the_run(page: Page, triggered: str, ui_stack: LocalStack, shoot: Callable[..., None]) -> None:
    page.goto(ui_stack.address)
    page.get_by_role("link", name="Models", exact=True).click()
    models = page.frame_locator("iframe[title='Models']")
    expect(models.get_by_role("heading", name="The champion")).to_be_visible()
    expect(models.get_by_text("approved, first model")).to_be_visible()
    shoot("6-breast-models")
    models.get_by_role("link", name=re.compile("[0-9]{2}:[0-9]{2}$")).first.click()
    expect(models.get_by_role("heading", name=re.compile("^Images as of"))).to_be_visible()


def test_report_follows_the_theme_of_the_ui(page: Page, triggered: str, ui_stack: LocalStack, shoot: Callable[..., None]) -> None:
    page.goto(f"{run_address(ui_stack, triggered)}/plugin/model-report")
    root = report_of(page).locator("html")
    expect(report_of(page).get_by_role("heading", name=re.compile("^Images as of"))).to_be_visible()
    for theme in ("dark", "light"):
        page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
        page.reload()
        expect(root).to_have_attribute("data-theme", theme)
        shoot(f"7-report-{theme}")


def test_report_fits_a_narrow_window(page: Page, triggered: str, ui_stack: LocalStack, shoot: Callable[..., None]) -> None:
    page.set_viewport_size({"width": 420, "height": 900})
    page.goto(f"{ui_stack.address}/bcc/runs/{DAG_ID}/{quote(triggered, safe='')}/report")
    expect(page.get_by_role("heading", name=re.compile("^Images as of"))).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
    shoot("8-report-narrow", whole=True)
    page.goto(f"{ui_stack.address}/bcc/models")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
    shoot("8-models-narrow", whole=True)
    page.set_viewport_size(SCREEN)


def test_report_is_read_by_keyboard(page: Page, triggered: str, ui_stack: LocalStack, shoot: Callable[..., None]) -> None:
    page.goto(f"{ui_stack.address}/bcc/runs/{DAG_ID}/{quote(triggered, safe='')}/report")
    shoot("9-report-whole", whole=True)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Verdict")).to_be_focused()
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("details").first).to_have_attribute("open", "")


def test_pages_run_no_foreign_script(page: Page, triggered: str, ui_stack: LocalStack) -> None:
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if message.type == "error" else None)
    page.goto(f"{ui_stack.address}/bcc/runs/{DAG_ID}/{quote(triggered, safe='')}/report")
    page.wait_for_load_state("networkidle")
    assert refused == [], "the page's own script and style must be allowed by its policy"
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in message for message in refused)
