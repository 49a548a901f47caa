"""The promises of the split over random histories of a bucket; `make bench` plays more of them."""

from __future__ import annotations

from benchmarks.split_histories import EVENTS, check


def test_no_image_changes_folds_and_no_answer_counts_of_a_model_that_was_trained_on_it() -> None:
    total = check(60, derandomize=True)
    assert total["histories"] == 60
    assert {event for event in EVENTS if total[event]} == set(EVENTS), "every event happens"
    assert total["older release"] > 30
    assert min(total["recorded"], total["asked"]) > 1000
