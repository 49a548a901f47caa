"""Find every place that holds an image, or something made from it: what must be erased when a patient withdraws consent.

The bucket's documents tell it. One run is read at a time, so that memory does not grow with the number of runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bcc_ops.config import Settings
from bcc_ops.dataset.content_findings import may_name_a_patient
from bcc_ops.dataset.inspection_cache import MEMORY_FILE, knows_any
from bcc_ops.dataset.shared_inspections import shards_about
from bcc_ops.exceptions import BccError, ConfigError
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.report.galleries import shown_cases, shown_findings
from bcc_ops.report.misclassified import find_misclassified
from bcc_ops.runs.documents import FOLDS, ChecksDocument, EvaluationDocument, SnapshotDocument
from bcc_ops.runs.index import list_runs
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths, fold_file
from bcc_ops.runs.rows import ContentRow, ImageRow, SplitRow
from bcc_ops.runs.tables import read_answers, read_predictions, read_rows


@dataclass(frozen=True)
class ObjectVersion:
    """A version of the image in the bucket, or the mark that it was deleted."""

    key: str
    version_id: str
    written: datetime
    size: int
    delete_marker: bool


@dataclass(frozen=True)
class OutOfFoldAnswer:
    """What the model that held the image out answers about it: class -> probability."""

    key: str
    fold: int
    probabilities: dict[str, float]


@dataclass(frozen=True)
class RunUse:
    """What a run did with the image.

    Attributes:
        folder: of the run.
        keys: under which the image was listed.
        folds: which it is in; empty if it was left out or refused.
        answers: what the model that held it out answers about it.
        predicted: whether predictions.parquet holds answers about it.
        pictures: plots that show it, and with them report.html. "augmentations" only if the table of splits names it.
        checkpoints: folders of unfinished trainings on the run's images.
        problem: why part of this could not be read.
    """

    folder: str
    keys: tuple[str, ...]
    folds: tuple[int, ...] = ()
    answers: tuple[OutOfFoldAnswer, ...] = ()
    predicted: bool = False
    pictures: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class ModelUse:
    """A version that the image is in.

    `how`: "trained on", "evaluated on", or "started from VERSION" for one whose weights began there.
    """

    version: str
    how: str
    champion: bool


@dataclass
class Trace:
    """Every place, as far as the documents tell."""

    wanted: str
    digests: set[str] = field(default_factory=set)
    objects: list[ObjectVersion] = field(default_factory=list)
    runs: list[RunUse] = field(default_factory=list)
    models: list[ModelUse] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    shards: list[tuple[str, str]] = field(default_factory=list)
    """Key and version of what workers share of the image checks, with a row about it."""

    @property
    def found(self) -> bool:
        """Whether the image is known at all."""
        return bool(self.objects or self.runs or self.cached or self.shards)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "wanted": self.wanted,
            "sha256": sorted(self.digests),
            "objects": [{**vars(one), "written": one.written.isoformat()} for one in self.objects],
            "runs": [asdict(one) for one in self.runs],
            "models": [vars(one) for one in self.models],
            "cached_on_this_worker": self.cached,
            "shards": self.shards,
        }


def trace_image(store: ObjectStore, settings: Settings, wanted: str, say: Any = lambda line: None) -> Trace:
    """Find every place that holds an image.

    Args:
        store: the configured bucket.
        settings: where images, runs and models are stored in it, and this worker's cache.
        wanted: the image's key, or the sha256 of its content.
        say: takes a line for people, one per run.

    Raises:
        ConfigError: `wanted` is empty.
    """
    wanted = wanted.strip().removeprefix(store.uri(""))
    if not wanted:
        raise ConfigError("name the image: its key in the bucket, or the sha256 of its content")
    trace = Trace(wanted)
    is_digest = len(wanted) == 64 and set(wanted) <= set("0123456789abcdef")
    if is_digest:
        trace.digests.add(wanted)
    keys = set() if is_digest else {wanted}
    checkpoints = [folder.rstrip("/") for folder in store.list_folders(f"{settings.artifacts_prefix}/checkpoints/")]
    for paths in list_runs(store, settings.artifacts_prefix):
        say(paths.folder_name)
        use = _use_in_run(store, paths, trace, keys, checkpoints)
        if use is not None:
            trace.runs.append(use)
            keys |= set(use.keys)
    for key in sorted(keys):
        trace.objects.extend(_versions_of(store, key))
    trace.models.extend(_models(store, settings, trace.runs))
    trace.cached.extend(_cached(settings.cache_dir, trace.digests))
    trace.shards.extend(shards_about(store, settings.artifacts_prefix, trace.digests))
    return trace


def _use_in_run(store: ObjectStore, paths: RunPaths, trace: Trace, keys: set[str], checkpoints: list[str]) -> RunUse | None:
    try:
        contents = _rows(store, paths, "contents.parquet", ContentRow)
        rows = [row for row in contents if row.key in keys or row.sha256 in trace.digests]
        trace.digests.update(row.sha256 for row in rows)
        named = {row.key for row in rows}
        named |= {row.key for row in _rows(store, paths, "images.parquet", ImageRow) if row.key in keys}
        if not named:
            return None
        folds = tuple(sorted({row.fold for row in _rows(store, paths, "split.parquet", SplitRow) if row.key in named}))
        predicted, pictures = _seen_in(store, paths, named, {row.key for row in contents if may_name_a_patient(row.findings)})
        pictures += _findings_with(store, paths, contents, named)
        if set(folds) - {FOLDS[0]}:
            pictures.append("augmentations (if it is the sample of its class)")
        snapshot = store.find(SnapshotDocument, paths.document("snapshot.json"))
        return RunUse(
            folder=paths.folder_name,
            keys=tuple(sorted(named)),
            folds=folds,
            answers=_answers(store, paths, named, folds, snapshot.classes) if snapshot else (),
            predicted=predicted,
            pictures=tuple(pictures),
            checkpoints=tuple(folder for folder in checkpoints if snapshot and f"/{snapshot.digest[:16]}-" in folder),
        )
    except BccError as error:
        return RunUse(paths.folder_name, (), problem=str(error))


def _rows(store: ObjectStore, paths: RunPaths, name: str, kind: type[Any]) -> list[Any]:
    key = paths.document(name)
    return read_rows(kind, store.get(key)) if store.head(key) else []


def _answers(
    store: ObjectStore, paths: RunPaths, keys: set[str], folds: Sequence[int], classes: Sequence[str]
) -> tuple[OutOfFoldAnswer, ...]:
    """Return the out-of-fold answers about these images; from the folds' own files while they are not combined."""
    whole = paths.document("out_of_fold.parquet")
    tables = [whole] if store.head(whole) else [paths.document(fold_file(fold, "parquet")) for fold in folds]
    found = []
    for table in tables:
        rows, probabilities = read_answers(store.get(table), classes) if store.head(table) else ([], ())
        for row, answer in zip(rows, probabilities):
            if row.key in keys:
                by_class = {name: round(float(value), 6) for name, value in zip(classes, answer)}
                found.append(OutOfFoldAnswer(row.key, row.fold, by_class))
    return tuple(found)


def _seen_in(store: ObjectStore, paths: RunPaths, keys: set[str], hidden: set[str]) -> tuple[bool, list[str]]:
    """Return whether a run predicted on any of these images, and the galleries that show one.

    Galleries of an older release did not leave out `hidden` images: both sets are looked at.
    """
    table, document = paths.document("predictions.parquet"), store.find(EvaluationDocument, paths.document("evaluation.json"))
    if document is None or not store.head(table):
        return False, []
    predictions = read_predictions(store.get(table))
    threshold = document.challenger.operating_point.threshold
    cases = find_misclassified(predictions, document.classes, document.positive_class, threshold)
    shown = {case.key for case in (*shown_cases(cases, hidden), *shown_cases(cases, ()))}
    galleries = (("missed_cancers", cases.missed), ("false_alarms", cases.false_alarms))
    pictures = [name for name, of_kind in galleries if any(case.key in keys & shown for case in of_kind)]
    return bool(keys & set(predictions["key"])), pictures


def _findings_with(store: ObjectStore, paths: RunPaths, contents: Sequence[ContentRow], keys: set[str]) -> list[str]:
    checks = store.find(ChecksDocument, paths.document("checks.json"))
    shown = shown_findings(contents, checks.findings) if checks else {}
    return ["content_findings"] if any(row.key in keys for rows in shown.values() for row in rows) else []


def _versions_of(store: ObjectStore, key: str) -> Iterator[ObjectVersion]:
    for entry in store.list_everything(key):
        if entry["Key"] == key:
            deleted = bool(entry.get("DeleteMarker", False))
            yield ObjectVersion(key, entry.get("VersionId") or "", entry["LastModified"], entry.get("Size", 0), deleted)


def _models(store: ObjectStore, settings: Settings, runs: list[RunUse]) -> Iterator[ModelUse]:
    """Yield the versions whose own run used the image, and those whose training started from one that was trained on it."""
    registry = ModelRegistry(store, settings.models_prefix)
    pointer = registry.read_pointer()
    champion = pointer.champion.version if pointer and pointer.champion else None
    folds = {use.folder: set(use.folds) for use in runs}
    trained: set[str] = set()
    for version in registry.versions():  # oldest first: what a version started from comes before it
        try:
            document = registry.model(version)
        except BccError:
            continue
        used = folds.get(document.run.rsplit("/", 1)[-1], set())
        # A model is trained on every fold but the one that it holds out, and the file of several models on all.
        if used and (len(document.folds) > 1 or used != set(document.folds)):
            trained.add(version)
            yield ModelUse(version, "trained on", version == champion)
        elif document.warm_started_from in trained:
            trained.add(version)
            yield ModelUse(version, f"started from {document.warm_started_from}", version == champion)
        elif used:
            yield ModelUse(version, "evaluated on", version == champion)


def _cached(cache_dir: Path, digests: set[str]) -> list[str]:
    paths = [cache_dir / "files" / digest[0] / digest for digest in sorted(digests)]
    memory = cache_dir / MEMORY_FILE
    return [str(path) for path in paths if path.exists()] + ([str(memory)] if knows_any(memory, digests) else [])
