"""When is a listing worth a run? Played through minute by minute."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from bcc_ops.dataset.arrivals import FAILURES, ArrivalWatch
from bcc_ops.dataset.snapshot import Listing
from bcc_ops.exceptions import AccessDenied, NothingNew, StorageUnavailable
from bcc_ops.runs.tables import ImageRow

TWO = datetime(2026, 11, 22, 2, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return TWO + timedelta(seconds=seconds)


def images(*names: str, written: float = -3600) -> Listing:
    rows = [ImageRow(name, "benign", 1, f"etag of {name}", "", at(written)) for name in names]
    return Listing(rows, (), False, at(written) if rows else None)


def watch(*known: Listing, patient: bool = True, wait: float = 3600) -> ArrivalWatch:
    reasons = {listing.digest: "the images are those of the last run" for listing in known}
    return ArrivalWatch(at(wait), settle_seconds=60, poke_interval=30, patient=patient, known=reasons)


def test_images_that_came_long_ago_are_settled_at_the_first_look() -> None:
    assert watch(images("a")).look(images("a", "b"), at(0)) == "settled"


def test_an_upload_that_goes_on_is_not_read_half() -> None:
    waiting = watch(images("a"))
    assert waiting.look(images("a", "b", written=-10), at(0)) == "wait"
    assert waiting.look(images("a", "b", "c", written=20), at(30)) == "wait"
    assert waiting.look(images("a", "b", "c", written=20), at(60)) == "wait"
    assert waiting.look(images("a", "b", "c", written=20), at(90)) == "settled"


def test_a_removal_between_two_looks_begins_the_settling_anew() -> None:
    waiting = watch(images("x"))
    assert waiting.look(images("a", "b", written=-20), at(0)) == "wait"
    assert waiting.look(images("a", written=-20), at(30)) == "wait"
    assert waiting.look(images("a", written=-20), at(60)) == "wait"
    assert waiting.look(images("a", written=-20), at(90)) == "settled"


def test_a_clock_of_the_store_that_is_ahead_does_not_settle_early() -> None:
    waiting = watch()
    assert waiting.look(images("a", written=500), at(0)) == "wait"
    assert waiting.look(images("a", written=500), at(59)) == "wait"
    assert waiting.look(images("a", written=500), at(60)) == "settled"


def test_a_quiet_night_is_waited_out_and_then_told() -> None:
    waiting = watch(images("a"))
    assert waiting.look(images("a"), at(0)) == "wait"
    assert waiting.look(images("a"), at(3599)) == "wait"
    with pytest.raises(NothingNew, match=r"until 2026-11-22 03:00 UTC: the images are those of the last run\."):
        waiting.look(images("a"), at(3600))


def test_an_upload_that_never_ends_is_left_to_the_next_run() -> None:
    waiting = watch(images("a"))
    assert waiting.look(images("a", "b", written=3590), at(3595)) == "wait"
    with pytest.raises(NothingNew, match="still arriving at 2026-11-22 03:00"):
        waiting.look(images("a", "b", "c", written=3599), at(3600))


def test_what_is_settled_at_the_deadline_is_taken() -> None:
    assert watch(images("a")).look(images("a", "b"), at(3600)) == "settled"


def test_an_empty_prefix_is_never_a_reason_to_run() -> None:
    waiting = watch(wait=60)
    assert waiting.look(images(), at(0)) == "wait"
    with pytest.raises(NothingNew, match="there is not an image at all"):
        waiting.look(images(), at(60))


def test_an_event_whose_images_another_run_took_up_is_over_at_once() -> None:
    with pytest.raises(NothingNew, match=r"Nothing to train on: the images are those of the last run\."):
        watch(images("a"), patient=False).look(images("a"), at(0))


def test_an_event_waits_for_its_upload_to_end() -> None:
    waiting = watch(images("a"), patient=False)
    assert waiting.look(images("a", "b", written=-1), at(0)) == "wait"
    assert waiting.look(images("a", "b", written=-1), at(59)) == "settled"


def test_too_few_images_are_waited_on_until_more_come() -> None:
    waiting = watch(images("a"))
    assert waiting.look(images("a", "b"), at(0)) == "settled"
    waiting.dismiss("1 images are new and 2 are needed")
    assert waiting.look(images("a", "b"), at(30)) == "wait"
    assert waiting.look(images("a", "b", "c", written=40), at(60)) == "wait"
    assert waiting.look(images("a", "b", "c", written=40), at(120)) == "settled"


def test_a_restart_in_the_middle_loses_nothing() -> None:
    looks = [(images("a", "b", written=-10), 0), (images("a", "b", "c", written=20), 30), (images("a", "c", written=20), 60)]
    looks += [(images("a", "c", written=20), 90), (images("a", "c", written=20), 119), (images("a", "c", written=20), 120)]
    steady, restarted = watch(images("a")), watch(images("a"))
    for listing, second in looks:
        restarted = ArrivalWatch.from_dict(json.loads(json.dumps(restarted.to_dict())))
        assert restarted == steady
        assert restarted.look(listing, at(second)) == steady.look(listing, at(second)) == ("settled" if second == 120 else "wait")


def test_failures_are_looked_over_with_growing_pauses_and_then_told() -> None:
    waiting, error = watch(wait=10**6), StorageUnavailable("listing s3://b/images/: no answer")
    pauses = []
    for _ in range(FAILURES - 1):
        waiting.failed(error, at(0))
        pauses.append(waiting.pause(at(0)))
    assert pauses == [60, 120, 240, 480, 600, 600, 600]
    with pytest.raises(StorageUnavailable, match="no answer"):
        waiting.failed(error, at(0))


def test_a_look_that_succeeds_forgives_the_failures_before() -> None:
    waiting = watch(images("a"))
    waiting.failed(StorageUnavailable("no answer"), at(0))
    waiting.look(images("a"), at(60))
    assert (waiting.failures, waiting.not_before) == (0, None)


def test_what_no_repetition_mends_is_told_at_once() -> None:
    with pytest.raises(AccessDenied):
        watch().failed(AccessDenied("no"), at(0))


def test_the_next_look_comes_when_something_is_due() -> None:
    waiting = watch(images("a"), wait=100)
    assert waiting.pause(at(0)) == 30
    waiting.look(images("a", "b", written=-50), at(0))
    assert waiting.pause(at(0)) == 10
    assert waiting.pause(at(9.9)) == 0.5
    assert waiting.pause(at(95)) == 5
    assert waiting.pause(at(200)) == 30
