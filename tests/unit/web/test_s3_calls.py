"""How many requests a page sends to the store: each takes a round trip, and a slow store multiplies them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from bcc_ops.runs.bundle import BUNDLE, read_bundle, write_bundle
from bcc_ops.runs.documents import ApprovalDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import PLOTS, RunPaths
from bcc_ops.runs.record import RUN_DOCUMENTS
from bcc_ops.runs.upgrade import OLDER_FILES
from bcc_ops.web.run_reader import MOST_BYTES
from tests.unit.report import samples
from tests.unit.web.conftest import RUNNING

Client = Callable[..., TestClient]
RUN = f"/bcc/runs/bcc_retraining/{samples.RUN_ID}"
REPORT, PLOT = f"{RUN}/report", f"{RUN}/plots/roc.png"
RUNNING_REPORT = f"/bcc/runs/bcc_retraining/{RUNNING}/report"

MOST_CALLS, MOST_CALLS_AGAIN = 10, 3
MOST_CALLS_IN_TRAINING = MOST_CALLS + 4
"""Each fold has a history of its own, and they are fetched at once, until evaluate_model writes the bundle."""
OTHER_RUNS = 40


class Calls(list[str]):
    """The requests that a store's client sends while it is watched, as `<operation> <address>`."""

    def of(self, operation: str) -> list[str]:
        """Those of one operation."""
        return [call for call in self if call.startswith(f"{operation} ")]


@contextmanager
def calls_of(store: ObjectStore) -> Iterator[Calls]:
    """Record the requests that really leave: retries count, and what is answered from memory does not."""
    calls = Calls()

    def note(request: Any, event_name: str, **_: Any) -> None:
        calls.append(f"{event_name.rsplit('.', 1)[-1]} {request.url}")

    store.client.meta.events.register("before-send.s3", note)
    try:
        yield calls
    finally:
        store.client.meta.events.unregister("before-send.s3", note)


def look(client: TestClient, store: ObjectStore, *addresses: str) -> Calls:
    """Open pages one after the other, and return the requests that they cost."""
    with calls_of(store) as calls:
        for address in addresses:
            answer = client.get(address)
            assert answer.status_code == 200, answer.text
    return calls


def put_documents(store: ObjectStore, paths: RunPaths, run_id: str, *names: str, **changes: Any) -> None:
    """Write documents of a run into its folder; all without `names`."""
    config = samples.config_document(run_id, epochs=12)
    for name, content in samples.whole_run("approved", **{"config__json": config, **changes}).items():
        if not names or name in names:
            store.put(paths.document(name), content)


def put_whole_run(store: ObjectStore, days: int = 0, run_id: str = samples.RUN_ID) -> RunPaths:
    """Put a promoted run that a person approved, as its tasks leave it."""
    paths = RunPaths.of("artifacts", samples.AS_OF + timedelta(days=days), run_id)
    answer = ApprovalDocument(approved=True, by="ada", at=samples.AS_OF, timed_out=False)
    put_documents(store, paths, run_id, approval__json=answer)
    for plot in PLOTS:
        store.put(paths.plot(plot), b"\x89PNG\r\n\x1a\n")
    write_bundle(store, paths)
    return paths


@pytest.fixture
def busy_store(store: ObjectStore) -> ObjectStore:
    """A bucket with a finished run among many others."""
    for number in range(OTHER_RUNS):
        paths = RunPaths.of("artifacts", samples.AS_OF - timedelta(days=number + 1), f"other{number}")
        store.put(paths.document("config.json"), samples.config_document(f"other{number}").to_json())
    put_whole_run(store)
    store.put(f"models/{samples.promotion_document().version}/model_card.md", b"# Card")
    return store


def test_a_finished_report_costs_at_most_ten_calls_and_three_when_it_is_opened_again(
    make_client: Client, busy_store: ObjectStore
) -> None:
    client = make_client(busy_store)
    cold, again = look(client, busy_store, REPORT), look(client, busy_store, REPORT)
    assert len(cold) <= MOST_CALLS, cold
    assert len(again) <= MOST_CALLS_AGAIN, again


STAGES = [
    ("config.json", "snapshot.json"),
    ("checks.json", "split.json"),
    tuple(samples.histories()),
    ("training.json", "evaluation.json"),
    ("gate.json",),
]


def test_a_running_report_costs_at_most_ten_calls_after_every_task_and_a_few_more_in_training(
    make_client: Client, store: ObjectStore
) -> None:
    paths = RunPaths.of("artifacts", samples.AS_OF, RUNNING)
    for stage in STAGES:
        put_documents(store, paths, RUNNING, *stage)
        if "evaluation.json" in stage:  # evaluate_model writes the bundle
            write_bundle(store, paths)
        client = make_client(store)
        cold, again = look(client, store, RUNNING_REPORT), look(client, store, RUNNING_REPORT)
        assert len(cold) <= (MOST_CALLS_IN_TRAINING if "fold-5.csv" in stage else MOST_CALLS), (stage, cold)
        assert len(again) <= MOST_CALLS_AGAIN, (stage, again)


def test_a_running_report_costs_at_most_ten_calls_while_its_plots_are_drawn_and_its_model_is_uploaded(
    make_client: Client, store: ObjectStore
) -> None:
    """evaluate_model writes the bundle, so that what the tasks after it leave is all that is read one by one."""
    paths = RunPaths.of("artifacts", samples.AS_OF, RUNNING)
    put_documents(store, paths, RUNNING, *(name for stage in STAGES[:-1] for name in stage))
    write_bundle(store, paths)
    put_documents(store, paths, RUNNING, "gate.json", "promotion.json")
    store.put(
        paths.document("approval.json"), ApprovalDocument(approved=True, by="a", at=samples.AS_OF, timed_out=False).to_json()
    )
    store.put(f"models/{samples.promotion_document().version}/model_card.md", b"# Card")
    client = make_client(store)
    cold, again = look(client, store, RUNNING_REPORT), look(client, store, RUNNING_REPORT)
    assert len(cold) <= MOST_CALLS, cold
    assert len(again) <= MOST_CALLS_AGAIN, again


def test_each_epoch_costs_a_running_report_one_call_more(make_client: Client, store: ObjectStore) -> None:
    paths = RunPaths.of("artifacts", samples.AS_OF, RUNNING)
    put_documents(store, paths, RUNNING, *(name for stage in STAGES[:2] for name in stage))
    client = make_client(store)
    for epoch in (1, 2, 3):
        store.put(paths.document("fold-1.csv"), samples.histories(epoch)["fold-1.csv"])
        calls = look(client, store, RUNNING_REPORT)
        assert f"fold 1 of 5: epoch {epoch} of" in client.get(RUNNING_REPORT).text
    assert len(calls) == 2, calls


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_of_an_opened_report_costs_at_most_two_calls(make_client: Client, busy_store: ObjectStore, plot: str) -> None:
    client = make_client(busy_store)
    look(client, busy_store, REPORT)
    address = f"{RUN}/plots/{plot}.png"
    assert len(look(client, busy_store, address)) <= 2
    assert len(look(client, busy_store, address)) <= 1


def test_a_plot_alone_costs_five_calls_the_first_time(make_client: Client, busy_store: ObjectStore) -> None:
    """Each worker of the API server looks for a run's folder once."""
    client = make_client(busy_store)
    assert len(look(client, busy_store, PLOT)) <= 5
    assert len(look(client, busy_store, f"{RUN}/plots/history.png")) <= 3


def test_a_download_of_an_opened_report_costs_two_calls(make_client: Client, busy_store: ObjectStore) -> None:
    client = make_client(busy_store)
    look(client, busy_store, REPORT)
    assert len(look(client, busy_store, f"{RUN}/files/gate.json")) <= 2


# What the fewer calls must not cost ------------------------------------------------------------------------------------


def test_a_document_that_was_rewritten_after_the_bundle_is_shown_as_it_is_now(
    make_client: Client, busy_store: ObjectStore
) -> None:
    busy_store.put(samples.PATHS.document("gate.json"), samples.gate_document("rejected").to_json())
    assert "<h2>Rejected" in make_client(busy_store).get(REPORT).text


def test_a_run_that_was_cleared_shows_what_it_writes_now(make_client: Client, busy_store: ObjectStore) -> None:
    client = make_client(busy_store)
    assert "efficientnet_lite0," in client.get(REPORT).text
    busy_store.put(samples.PATHS.document("training.json"), samples.training_document(architecture="another_network").to_json())
    for reader in (client, make_client(busy_store)):
        page = reader.get(REPORT).text
        assert "another_network," in page and "efficientnet_lite0," not in page


def test_a_document_that_was_removed_is_not_shown_from_the_bundle(make_client: Client, busy_store: ObjectStore) -> None:
    busy_store.client.delete_object(Bucket=busy_store.bucket, Key=samples.PATHS.document("gate.json"))
    assert "<h2>Approved" not in make_client(busy_store).get(REPORT).text


DAMAGE = {
    "empty": b"",
    "cut short": b"{",
    "not an object": b"[]",
    "files that are a list": b'{"files": ["gate.json"]}',
    "a file that is a number": b'{"files": {"gate.json": 1}}',
    "a file that is not there": b'{"files": {"no-such.json": {"etag": null, "content": "{}"}}}',
    "invalid UTF-8": b"\xff\xfe",
    "half a character": b'{"files": {"gate.json": {"etag": "%s", "content": "\\ud800"}}}',
    "nested too deeply": b'{"files": ' + b"[" * 200_000,
    "too large for a page": b" " * (MOST_BYTES + 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_bundle_costs_calls_and_nothing_else(make_client: Client, busy_store: ObjectStore, damage: bytes) -> None:
    whole = make_client(busy_store).get(REPORT).text
    gate = busy_store.head(samples.PATHS.document("gate.json"))
    assert gate is not None
    busy_store.put(samples.PATHS.document(BUNDLE), damage.replace(b"%s", gate.etag.encode()))
    assert make_client(busy_store).get(REPORT).text == whole


def test_a_document_that_is_not_utf8_is_left_out_of_the_bundle(busy_store: ObjectStore) -> None:
    busy_store.put(samples.PATHS.document("gate.json"), b"\xff\xfe")
    write_bundle(busy_store, samples.PATHS)
    listed = {
        entry["Key"].rsplit("/", 1)[-1]: entry["ETag"].strip('"') for entry in busy_store.list_objects(samples.PATHS.folder)
    }
    assert set(read_bundle(busy_store.get(samples.PATHS.document(BUNDLE)), listed)) & {"gate.json", "checks.json"} == {
        "checks.json"
    }


def test_the_page_is_the_same_with_and_without_a_bundle(make_client: Client, busy_store: ObjectStore) -> None:
    bundled = make_client(busy_store)
    page = bundled.get(REPORT).text
    busy_store.client.delete_object(Bucket=busy_store.bucket, Key=samples.PATHS.document(BUNDLE))
    single = make_client(busy_store)
    assert single.get(REPORT).text == page


def test_a_folder_that_somebody_wrote_into_is_refused_although_it_is_known(make_client: Client, busy_store: ObjectStore) -> None:
    client = make_client(busy_store)
    assert client.get(REPORT).status_code == client.get(PLOT).status_code == 200
    busy_store.put(samples.PATHS.document("config.json"), samples.config_document("another_run").to_json())
    for address in (REPORT, PLOT, f"{RUN}/files/gate.json"):
        answer = client.get(address)
        assert answer.status_code == 503
        assert "another_run" in answer.text


def test_a_run_whose_folder_was_moved_away_is_looked_for_again(make_client: Client, busy_store: ObjectStore) -> None:
    client = make_client(busy_store)
    assert "Approved" in client.get(REPORT).text
    for entry in list(busy_store.list_objects(f"{samples.PATHS.folder}/")):
        busy_store.client.delete_object(Bucket=busy_store.bucket, Key=entry["Key"])
    assert "Approved" not in client.get(REPORT).text
    assert client.get(PLOT).status_code == 404
    put_whole_run(busy_store, days=1)
    assert "Approved" in client.get(REPORT).text


def test_a_run_that_gets_its_snapshot_in_another_folder_is_found_there(make_client: Client, store: ObjectStore) -> None:
    """It was cleared before its first snapshot was whole."""
    first, second = (RunPaths.of("artifacts", samples.AS_OF + timedelta(hours=hours), RUNNING) for hours in (0, 1))
    put_documents(store, first, RUNNING, "config.json")
    client = make_client(store)
    assert first.folder in client.get(RUNNING_REPORT).text
    put_documents(store, second, RUNNING, "config.json", "snapshot.json")
    assert second.folder in client.get(RUNNING_REPORT).text


def test_the_bundle_is_no_download_and_holds_nothing_but_the_documents_of_a_report(
    make_client: Client, busy_store: ObjectStore
) -> None:
    assert make_client(busy_store).get(f"{RUN}/files/{BUNDLE}").status_code == 404
    assert BUNDLE not in RUN_DOCUMENTS
    assert not set(OLDER_FILES.values()) & {BUNDLE}
