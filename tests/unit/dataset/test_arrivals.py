"""When is a listing worth a run? Played through minute by minute."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from bcc_ops.dataset.arrivals import FAILURES, ArrivalWatch
from bcc_ops.dataset.snapshot import Listing
from bcc_ops.exceptions import AccessDenied, NothingNew, StorageUnavailable
from bcc_ops.runs.documents import IgnoredKeys
from bcc_ops.runs.rows import ImageRow

TWO = datetime(2026, 11, 22, 2, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return TWO + timedelta(seconds=seconds)


def images(*names: str, written: float = -3600) -> Listing:
    rows = [ImageRow(name, "benign", 1, f"etag of {name}", "", at(written)) for name in names]
    return Listing(rows, (), False, at(written) if rows else None)


def watch(*known: Listing, patient: bool = True, wait: float = 3600) -> ArrivalWatch:
    reasons = {listing.digest: "the images are those of the last run" for listing in known}
    return ArrivalWatch(at(wait), settle_seconds=60, poke_interval=30, patient=patient, known=reasons)


@pytest.mark.parametrize("written", [-3600, -90, -10, 0, 500])
def test_how_long_images_have_settled_is_measured_by_looks_and_not_by_the_stores_clock(written: float) -> None:
    """A store whose clock is behind dates an image that has just come an hour ago."""
    waiting = watch(images("a"))
    assert waiting.look(images("a", "b", written=written), at(0)) == "wait"
    assert waiting.look(images("a", "b", written=written), at(59)) == "wait"
    assert waiting.look(images("a", "b", written=written), at(60)) == "settled"


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


def test_a_quiet_night_is_waited_out_and_then_told() -> None:
    waiting = watch(images("a"))
    assert waiting.look(images("a"), at(0)) == "wait"
    assert waiting.look(images("a"), at(3599)) == "wait"
    with pytest.raises(NothingNew, match=r"until 2026-11-22 03:00 UTC: the images are those of the last run\."):
        waiting.look(images("a"), at(3600))


def test_an_upload_that_never_ends_is_cut_at_the_deadline() -> None:
    waiting = watch(images("a"))
    assert waiting.look(images("a", "b"), at(3595)) == "wait"
    assert not waiting.arriving
    assert waiting.look(images("a", "b", "c"), at(3600)) == "settled"
    assert waiting.arriving


def test_the_message_of_a_skipped_night_names_what_was_ignored() -> None:
    ignored = (IgnoredKeys(reason="folder of no configured class", count=12, examples=("images/Malignant/1.png",)),)
    listing = replace(images("a"), ignored=ignored)
    with pytest.raises(NothingNew, match=r"Ignored: 12 folder of no configured class \(images/Malignant/1.png\)\.$"):
        watch(listing).look(listing, at(3600))


def test_an_empty_prefix_is_never_a_reason_to_run() -> None:
    waiting = watch(wait=60)
    assert waiting.look(images(), at(0)) == "wait"
    with pytest.raises(NothingNew, match="no image was found"):
        waiting.look(images(), at(60))


def test_an_event_whose_images_another_run_took_up_is_over_at_once() -> None:
    with pytest.raises(NothingNew, match=r"Nothing to train on: the images are those of the last run\."):
        watch(images("a"), patient=False).look(images("a"), at(0))


def test_an_event_waits_for_its_upload_to_end() -> None:
    waiting = watch(images("a"), patient=False)
    assert waiting.look(images("a", "b", written=-1), at(0)) == "wait"
    assert waiting.look(images("a", "b", written=-1), at(60)) == "settled"


def test_too_few_images_are_waited_on_until_more_come() -> None:
    waiting = watch(images("a"))
    assert waiting.look(images("a", "b"), at(0)) == "wait"
    assert waiting.look(images("a", "b"), at(60)) == "settled"
    waiting.dismiss("1 images are new and 2 are needed")
    assert waiting.look(images("a", "b"), at(90)) == "wait"
    assert waiting.look(images("a", "b", "c"), at(120)) == "wait"
    assert waiting.look(images("a", "b", "c"), at(180)) == "settled"


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
    assert (waiting.failures, waiting.pause(at(60))) == (0, 30)


def test_what_no_repetition_mends_is_told_at_once() -> None:
    with pytest.raises(AccessDenied):
        watch().failed(AccessDenied("no"), at(0))


def test_the_next_look_comes_when_something_is_due() -> None:
    waiting = watch(images("a"), wait=100)
    assert waiting.pause(at(0)) == 30
    waiting.look(images("a", "b"), at(0))
    assert waiting.pause(at(50)) == 10
    assert waiting.pause(at(59.9)) == 0.5
    assert waiting.pause(at(95)) == 5
    assert waiting.pause(at(200)) == 30


def idle_looks(waiting: ArrivalWatch, begin: float = 0) -> list[float]:
    """Play an idle night: when the listing is looked at, in seconds."""
    looks, now = [], begin
    while True:
        looks.append(now)
        try:
            waiting.look(images("a"), at(now))
        except NothingNew:
            return looks
        now += waiting.pause(at(now))


def test_an_idle_night_of_six_hours_lists_at_most_40_times_with_what_the_worker_looks() -> None:
    waiting = watch(images("a"), wait=6 * 3600)
    waiting.poke_interval = 60
    looks = idle_looks(waiting)
    assert looks[-1] == 6 * 3600
    assert len(looks) + 1 <= 40  # the worker looks once more when the waiting is over
    assert looks[:4] == [0, 60, 120, 180]
    assert max(later - sooner for sooner, later in itertools.pairwise(looks)) <= 1201


def test_pauses_begin_anew_when_something_changed() -> None:
    waiting = watch(images("a"), images("a", "b"), wait=6 * 3600)
    idle_until = 0.0
    while idle_until < 3600:
        waiting.look(images("a"), at(idle_until))
        idle_until += waiting.pause(at(idle_until))
    assert waiting.pause(at(idle_until)) == 0
    waiting.look(images("a", "b"), at(idle_until))
    assert waiting.pause(at(idle_until)) == 30


def test_an_idle_pause_ends_early_for_another_run_and_a_back_off_does_not() -> None:
    waiting = watch(images("a"), wait=6 * 3600)
    waiting.look(images("a"), at(0))
    assert not waiting.is_due(at(10))
    waiting.hurry()
    assert waiting.is_due(at(10))
    waiting.failed(StorageUnavailable("no answer"), at(10))
    waiting.hurry()
    assert not waiting.is_due(at(20))
