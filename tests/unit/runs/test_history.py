"""A run in a line."""

from __future__ import annotations

from typing import Any

from bcc_ops.runs.history import RunSummary, summarise_run
from tests.unit.report import samples


def summary(*names: str, **changes: Any) -> RunSummary:
    """Of a run that has these documents only; all without `names`."""
    documents = samples.whole_run("rejected", **changes)
    documents = {name: content for name, content in documents.items() if not names or name in names}
    return summarise_run(samples.PATHS, lambda key: documents.get(key.rpartition("/")[2]))


def test_a_whole_run_is_summed_up() -> None:
    found, challenger = summary(), samples.evaluation_document().challenger
    assert (found.folder, found.as_of, found.run_id) == (samples.PATHS.folder_name, samples.AS_OF, samples.RUN_ID)
    assert (found.run_kind, found.verdict, found.images, found.problem) == ("nightly", "rejected", challenger.images, None)
    assert (found.balanced_accuracy, found.macro_auc) == (challenger.balanced_accuracy, challenger.macro_auc)
    assert found.positive_sensitivity == challenger.operating_point.sensitivity


def test_what_a_run_has_not_got_yet_is_left_open() -> None:
    found = summary("config.json")
    assert (found.run_id, found.verdict, found.images, found.macro_auc, found.synthetic) == (
        samples.RUN_ID,
        None,
        None,
        None,
        False,
    )
    assert summary("none").run_id is None


def test_a_damaged_document_is_a_problem_of_its_run_alone() -> None:
    documents = {**samples.whole_run(), "gate.json": b"{"}
    found = summarise_run(samples.PATHS, lambda key: documents.get(key.rpartition("/")[2]))
    assert found.problem is not None and "gate.json" in found.problem
    assert (found.folder, found.as_of, found.verdict) == (samples.PATHS.folder_name, samples.AS_OF, None)
