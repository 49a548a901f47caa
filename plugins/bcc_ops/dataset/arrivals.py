"""Has something new arrived, and is the upload over? The one answer for a waiting sensor and its trigger alike.

A listing is worth a run if it is not one of those known to hold nothing new, and has stayed the same for long enough. This
machine's own looks measure that: the store's clock may differ. If images still arrive when the waiting time ends, what had
settled by then is taken, so that a steady feed is trained on too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, NamedTuple

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.snapshot import ImageRules, Listing, PreviousSnapshot, list_images, moment_of
from bcc_ops.exceptions import ConfigError, NothingNew, SnapshotChanged, StorageError
from bcc_ops.runs.documents import IgnoredKeys, SnapshotChange, SnapshotDocument
from bcc_ops.runs.index import find_run
from bcc_ops.runs.object_store import ObjectStore

log = logging.getLogger(__name__)

FAILURES = 8
"""Failed looks in a row after which the store's error is raised."""
LONGEST_PAUSE = 600.0
"""Seconds between two looks at a store that fails, at most."""

SHORTEST_PAUSE = 0.5
"""Seconds between two looks, at least, unless the interval is shorter."""

IDLE_PART = 5
"""While nothing is new, a pause is the time since the last change divided by this: 100,000 images take 100 requests to list."""
LONGEST_IDLE_PAUSE = 1200.0
"""Seconds between two looks while nothing is new, at most."""

SETTLING_INTERVAL = 10.0
"""Seconds between two looks while a worker waits for images to settle again."""

_MOMENTS = ("deadline", "unchanged_since", "not_before")

Finding = Literal["wait", "settled"]


def utc_now() -> datetime:
    """Tell the time. Whatever waits asks here, so that a test can set the clock."""
    return datetime.now(timezone.utc)


@dataclass
class ArrivalWatch:
    """What a waiting run knows. All of it is plain data: `to_dict` and `from_dict` carry it between processes.

    Args:
        deadline: until when it waits (aware).
        settle_seconds: for how long the listing must stay the same.
        poke_interval: seconds between two looks.
        patient: whether to wait while nothing is new. A run that an event started is not: another run has
            taken up what the event announced.
        known: digests of listings that do not justify a run -> why not, as the end of a sentence.
        digest, unchanged_since: the last look's, and since when it is known to be so.
        failures, not_before: failed looks in a row, and when to look again; None for the next interval.
        idle: whether the last look found nothing that a run could be about.
        arriving: whether images were still arriving when the waiting time ended.
        ignored: what the last look ignored, as the end of a message; "" if nothing.
    """

    deadline: datetime
    settle_seconds: float
    poke_interval: float
    patient: bool = True
    known: dict[str, str] = field(default_factory=dict)
    digest: str | None = None
    unchanged_since: datetime | None = None
    failures: int = 0
    not_before: datetime | None = None
    idle: bool = False
    arriving: bool = False
    ignored: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ArrivalWatch:
        """Return what `to_dict` gave."""
        moments = {name: datetime.fromisoformat(values[name]) for name in _MOMENTS if values.get(name)}
        return cls(**{**values, **moments})

    def look(self, listing: Listing, now: datetime) -> Finding:
        """Take a listing into account.

        Returns:
            "settled" if it is new and stayed the same for long enough, or if images still arrive at the deadline (`arriving`
            then); else "wait".

        Raises:
            NothingNew: waiting is over; the message says what there was.
        """
        self.failures, self.not_before = 0, None
        self.ignored = describe_ignored(listing.ignored)
        if listing.digest != self.digest:
            self.digest, self.unchanged_since = listing.digest, now
        finding = self._conclude(listing, now)
        if self.idle:
            self.not_before = min(now + self._idle_pause(now), self.deadline)
        return finding

    def _idle_pause(self, now: datetime) -> timedelta:
        assert self.unchanged_since is not None
        quiet = (now - self.unchanged_since).total_seconds()
        return timedelta(seconds=max(self.poke_interval, min(quiet / IDLE_PART, LONGEST_IDLE_PAUSE)))

    def hurry(self) -> None:
        """Look without waiting for the end of an idle pause: somebody else waits for the answer."""
        if not self.failures:
            self.not_before = None

    def _conclude(self, listing: Listing, now: datetime) -> Finding:
        assert self.digest is not None and self.unchanged_since is not None
        reason = self.known.get(self.digest)
        if reason is None and not listing.images:
            reason = "no image was found"
        self.idle = reason is not None
        if reason is not None:
            if not self.patient:
                raise NothingNew(f"Nothing to train on: {reason}.{self.ignored}")
            if now >= self.deadline:
                raise NothingNew(f"Nothing to train on until {self.deadline:%Y-%m-%d %H:%M} UTC: {reason}.{self.ignored}")
            return "wait"
        if now - self.unchanged_since >= timedelta(seconds=self.settle_seconds):
            return "settled"
        self.arriving = now >= self.deadline
        return "settled" if self.arriving else "wait"

    def dismiss(self, reason: str) -> None:
        """Note that the last listing is not worth a run; `reason` is the end of a sentence."""
        assert self.digest is not None
        self.known[self.digest] = reason

    def failed(self, error: StorageError, now: datetime) -> None:
        """Take a failed look into account, or raise `error` if looking again is hopeless."""
        self.failures += 1
        if not error.retryable or self.failures >= FAILURES or now >= self.deadline:
            raise error
        self.not_before = now + timedelta(seconds=min(self.poke_interval * 2**self.failures, LONGEST_PAUSE))

    def is_due(self, now: datetime) -> bool:
        """Tell whether it is time to look, and no idle pause or back-off is in progress."""
        return self.not_before is None or now >= self.not_before

    def pause(self, now: datetime) -> float:
        """Return the seconds until the next look.

        That is the interval, longer while nothing is new or the store fails, and less if a settling or the deadline comes
        first.
        """
        if self.not_before is not None:
            return max(0.0, (self.not_before - now).total_seconds())
        ends = [self.deadline]
        if self.unchanged_since is not None and self.digest not in self.known:
            ends.append(self.unchanged_since + timedelta(seconds=self.settle_seconds))
        left = [(end - now).total_seconds() for end in ends if end > now]
        return min([self.poke_interval, *(max(seconds, SHORTEST_PAUSE) for seconds in left)])


@dataclass(frozen=True)
class Arrivals:
    """The moment that a run is about, and what was seen then."""

    as_of: datetime
    images: int
    digest: str
    change: SnapshotChange | None
    sentence: str

    def to_xcom(self) -> dict[str, Any]:
        """As JSON values."""
        change = self.change.model_dump(mode="json") if self.change else None
        return {**asdict(self), "as_of": self.as_of.isoformat(), "change": change}


class Settled(NamedTuple):
    """A listing, and the moment that it is of."""

    as_of: datetime
    listing: Listing


def describe_ignored(ignored: Sequence[IgnoredKeys]) -> str:
    """Return a sentence, with a space in front, about the keys that are not images; "" if there are none.

    Whoever uploads to `Malignant/` instead of `malignant/` finds out here.
    """
    parts = [f"{one.count} {one.reason} ({one.examples[0]})" for one in ignored]
    return f" Ignored: {'; '.join(parts)}." if parts else ""


class ArrivalCheck:
    """Looks at the images for a run, by the rules of its kind.

    Args:
        store: the bucket.
        settings: where images and runs are in it.
        config: the run's parameters.
    """

    def __init__(self, store: ObjectStore, settings: Settings, config: RetrainingConfig) -> None:
        self.store = store
        self.settings = settings
        self.config = config
        self.rules = ImageRules.of(settings, config)

    def saved(self, run_id: str) -> Arrivals | None:
        """Return what the run saw when it took its snapshot, if it has one: a repeated run keeps to it."""
        paths = find_run(self.store, self.settings.artifacts_prefix, run_id)
        document = self.store.find(SnapshotDocument, paths.document("snapshot.json")) if paths else None
        if document is None:
            return None
        sentence = f"The run's own snapshot as of {document.as_of:%Y-%m-%d %H:%M:%S} UTC: {document.total} images."
        return Arrivals(document.as_of, document.total, document.digest, document.change, sentence)

    def on_request(self, as_of: datetime | None) -> Arrivals:
        """Return a person asked: the images of that moment (None for now), whether new or not.

        Raises:
            ConfigError: the moment is in the future.
        """
        now = utc_now()
        if as_of is not None and as_of > now:
            raise ConfigError(f"as_of: {as_of:%Y-%m-%d %H:%M:%S} UTC is in the future; leave it empty for now")
        listing = list_images(self.store, self.rules, as_of and moment_of(as_of, None))
        moment = moment_of(as_of or now, listing.newest)
        return self._arrivals(listing, moment, self._previous(moment))

    def for_backfill(self, logical_date: datetime) -> Arrivals:
        """Return the images as of the backfill's date.

        Raises:
            NothingNew: they are those of the last assessed run before, or there are none.
        """
        moment = moment_of(logical_date, None)
        listing = list_images(self.store, self.rules, moment)
        previous = self._previous(moment)
        ignored = describe_ignored(listing.ignored)
        if not listing.images:
            raise NothingNew(f"Nothing to train on: there was no image as of {moment:%Y-%m-%d %H:%M:%S} UTC.{ignored}")
        if listing.digest == previous.digest:
            raise NothingNew(f"Nothing to train on: {_as_before(previous)}.{ignored}")
        return self._arrivals(listing, moment, previous)

    def begin(self, *, patient: bool, poke_interval: float) -> ArrivalWatch:
        """Begin to wait: for a nightly run (patient) or one that an event started."""
        now = utc_now()
        previous = self._previous(now)
        return ArrivalWatch(
            deadline=now + timedelta(minutes=self.config.wait_for_images_minutes),
            settle_seconds=self.config.settle_seconds,
            poke_interval=poke_interval,
            patient=patient,
            known={previous.digest: _as_before(previous)} if previous.digest else {},
        )

    def advance(self, watch: ArrivalWatch) -> Arrivals | None:
        """Look once. Return what is new, settled and enough; None means to keep waiting, as `watch` says.

        Raises:
            NothingNew: waiting is over.
            StorageError: S3 failed, and looking again is hopeless.
        """
        now = utc_now()
        if not watch.is_due(now):
            return None
        try:
            listing = list_images(self.store, self.rules)
            if watch.look(listing, now) == "wait":
                return None
            moment = moment_of(now, listing.newest)
            if watch.arriving:
                moment, listing = self._settled_by_now(watch, now)
            arrivals = self._arrivals(listing, moment, self._previous(moment))
        except StorageError as error:
            log.warning("%s (failed look %d)", error, watch.failures + 1)
            watch.failed(error, now)
            return None
        news = arrivals.change.total if arrivals.change else arrivals.images
        if news < self.config.min_new_images:
            reason = f"{news} images are new, changed or gone, and {self.config.min_new_images} are needed"
            if watch.arriving:  # the waiting time is over, and what settled in it is too little
                raise NothingNew(f"Nothing to train on until {watch.deadline:%Y-%m-%d %H:%M} UTC: {reason}.{watch.ignored}")
            watch.dismiss(reason)
            watch.look(listing, now)
            return None
        return arrivals

    def _settled_by_now(self, watch: ArrivalWatch, now: datetime) -> tuple[datetime, Listing]:
        """List what had settled when the waiting time ended while images were still arriving.

        Raises:
            NothingNew: that is nothing, or nothing new.
        """
        moment = (now - timedelta(seconds=self.config.settle_seconds)).replace(microsecond=0)
        listing = list_images(self.store, self.rules, moment)
        reason = watch.known.get(listing.digest) if listing.images else "no image had settled"
        if reason is not None:
            raise NothingNew(
                f"Images were still arriving at {watch.deadline:%Y-%m-%d %H:%M} UTC, the end of the waiting time, and of those "
                f"that had settled by then: {reason}. The next run takes them up.{watch.ignored}"
            )
        return moment, listing

    def listing_of(self, sighted: Mapping[str, Any], *, may_settle: bool, sleep: Callable[[float], None]) -> Settled:
        """List the images that a run was started for, and make sure that they are what the sensor saw.

        On a bucket without versions, an upload between the sensor and the snapshot may have replaced or removed some of them for
        a moment. Then the images must settle again, and the run is about a later moment.

        Args:
            sighted: the sensor's XCom.
            may_settle: the run is about now, and not about a past moment that was asked for.
            sleep: waits so many seconds.

        Raises:
            SnapshotChanged: the run is about a past moment, and its images are no longer there.
            NothingNew: no image is left.
        """
        as_of = datetime.fromisoformat(sighted["as_of"])
        listing = list_images(self.store, self.rules, as_of)
        if listing.digest == sighted["digest"]:
            return Settled(as_of, listing)
        told = f"the images as of {as_of:%Y-%m-%d %H:%M:%S} UTC are no longer those that the sensor saw"
        if not may_settle:
            raise SnapshotChanged(
                f"{told}: some were replaced or removed since, and this bucket keeps no versions. Choose a later as_of, and "
                "switch versions on for the bucket"
            )
        log.warning("%s: waiting until they have settled", told)
        now = utc_now()
        deadline = now + timedelta(seconds=LONGEST_PAUSE + 2 * self.config.settle_seconds)
        watch = ArrivalWatch(deadline, self.config.settle_seconds, poke_interval=SETTLING_INTERVAL, patient=False)
        listing = list_images(self.store, self.rules)
        while watch.look(listing, now) == "wait":
            sleep(watch.pause(now))
            now, listing = utc_now(), list_images(self.store, self.rules)
        if watch.arriving:
            return Settled(*self._settled_by_now(watch, now))
        return Settled(moment_of(now, listing.newest), listing)

    def _previous(self, moment: datetime) -> PreviousSnapshot:
        return PreviousSnapshot.before(self.store, self.settings.artifacts_prefix, moment)

    def _arrivals(self, listing: Listing, moment: datetime, previous: PreviousSnapshot) -> Arrivals:
        change = previous.change_to(listing)
        if change is None or previous.paths is None:
            since = "no run was assessed before"
        else:
            since = f"{change.added} added, {change.changed} changed, {change.removed} removed since {previous.paths.folder_name}"
        sentence = f"{len(listing.images)} images as of {moment:%Y-%m-%d %H:%M:%S} UTC; {since}."
        return Arrivals(moment, len(listing.images), listing.digest, change, sentence)


def _as_before(previous: PreviousSnapshot) -> str:
    assert previous.paths is not None and previous.document is not None
    return f"the {previous.document.total} images are those of the last assessed run, {previous.paths.folder_name}"
