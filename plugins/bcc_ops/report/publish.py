"""Draw a run's plots and its stand-alone report."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcc_ops.exceptions import ArtifactError, ModelError, ObjectChanged, ObjectNotFound
from bcc_ops.report.galleries import Explain, draw_augmentations, draw_galleries, shown_cases
from bcc_ops.report.misclassified import find_misclassified
from bcc_ops.report.page import render_report
from bcc_ops.report.plots import draw_plots
from bcc_ops.runs.documents import Reference
from bcc_ops.runs.history import RunSummary, summarise_run
from bcc_ops.runs.index import list_runs
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.record import FILES, RunRecord, read_record
from bcc_ops.runs.tables import SplitRow, read_predictions, read_rows

FetchFiles = Callable[[Iterable[str]], Mapping[str, Path]]
"""Keys of the snapshot's images -> their files on this worker."""

RUNS_IN_TREND = 30

_WRITTEN_BESIDE = {"report.html", "approval.json", "promotion.json"}


@dataclass(frozen=True)
class Published:
    """What is written of a run's report: plots by their name in `runs.paths.PLOTS`, as PNGs, and the stand-alone page."""

    plots: Mapping[str, bytes]
    page: bytes


def publish_report(
    store: ObjectStore,
    paths: RunPaths,
    run_id: str,
    references: Mapping[str, Mapping[str, str] | None],
    *,
    fetch: FetchFiles,
    say: Callable[..., None],
) -> Published:
    """Draw a run's plots and its stand-alone report, with what the run has; what it has not is left out and said.

    Args:
        store: the bucket.
        paths: of the run.
        run_id: Airflow's.
        references: file name -> the reference that was handed in, None where a task handed none.
        fetch: brings image files here.
        say: takes a line for the log, as `logging.Logger.info` does.
    """
    run = read_referenced(store, paths, references)
    for name, why in run.unreadable.items():
        say("%s cannot be read and is left out: %s", name, why)
    predictions = _predictions(store, run)
    plots = draw_plots(run, predictions, earlier_runs(store, paths))
    plots.update(_pictures(store, run, predictions, fetch, say))
    say("%d plots: %s", len(plots), ", ".join(sorted(plots)))
    page = render_report(
        run,
        run_id=run_id,
        folder=store.uri(paths.folder),
        plots={name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in plots.items()},
        files=_siblings(store, paths),
        stand_alone=True,
    )
    return Published(plots, page.encode())


def read_referenced(store: ObjectStore, paths: RunPaths, references: Mapping[str, Mapping[str, str] | None]) -> RunRecord:
    """Return the run's documents, exactly as they were referred to; the parameters and the epochs are of the run itself.

    What is written beside this task is not looked at: the report must not depend on who is faster.
    """

    def read(name: str) -> bytes | None:
        reference = references.get(name)
        if reference is not None:
            return store.get_referenced(Reference.model_validate(dict(reference)))
        head = store.head(paths.document(name)) if name in ("config.json", "history.csv") else None
        return store.get(head.key) if head else None

    return read_record(read)


def earlier_runs(store: ObjectStore, paths: RunPaths) -> list[RunSummary]:
    """Return the assessed runs up to and with this one, oldest first, the newest 30."""

    def read(key: str) -> bytes | None:
        return store.get(key) if store.head(key) else None

    found: list[RunSummary] = []
    for one in reversed(list_runs(store, paths.artifacts_prefix)):
        if one.folder_name <= paths.folder_name and store.head(one.document("gate.json")):
            found.append(summarise_run(one, read))
        if len(found) == RUNS_IN_TREND:
            break
    return found[::-1]


def _predictions(store: ObjectStore, run: RunRecord) -> Mapping[str, Sequence[Any]] | None:
    if run.evaluation is None or run.evaluation.predictions is None:
        return None
    return read_predictions(store.get_referenced(run.evaluation.predictions))


def _pictures(
    store: ObjectStore,
    run: RunRecord,
    predictions: Mapping[str, Sequence[Any]] | None,
    fetch: FetchFiles,
    say: Callable[..., None],
) -> dict[str, bytes]:
    """Return the plots that show images. Without a wrong case nothing here imports TensorFlow, which takes many seconds."""
    evaluation = run.evaluation
    if evaluation is None or predictions is None:
        return {}
    threshold = evaluation.challenger.operating_point.threshold
    cases = find_misclassified(predictions, evaluation.classes, evaluation.positive_class, threshold)
    say("missed: %d, false alarms: %d", len(cases.missed), len(cases.false_alarms))
    shown = shown_cases(cases)
    if not shown:
        return {}
    samples = _samples(store, run)
    try:
        files = fetch({*(case.key for case in shown), *samples.values()})
    except ObjectChanged as error:
        say("no pictures: %s", error)
        return {}
    explain, why_not = _explainer(store, evaluation.model)
    if why_not:
        say("%s", why_not)
    plots = draw_galleries(
        cases,
        files,
        classes=evaluation.classes,
        positive_class=evaluation.positive_class,
        explain=explain,
        why_not=why_not,
        synthetic=run.synthetic,
    )
    if run.config is not None and samples:
        from bcc_ops.dataset.input_pipeline import Augmentation

        config = run.config.config
        images = [(label, files[key]) for label, key in samples.items()]
        plots["augmentations"] = draw_augmentations(images, Augmentation.of(config), seed=config.seed, synthetic=run.synthetic)
    return plots


def _explainer(store: ObjectStore, model: Reference | None) -> tuple[Explain | None, str]:
    """Grad-CAM on the challenger, or None and why it is not available."""
    if model is None:
        return None, "No Grad-CAM: the evaluation names no model."
    from bcc_ops.evaluation.grad_cam import GradCam
    from bcc_ops.models.classifier import load_classifier

    try:
        with tempfile.TemporaryDirectory(prefix="bcc-report-") as folder:
            path = Path(folder) / "model.h5"
            path.write_bytes(store.get_referenced(model))
            return GradCam(load_classifier(path)), ""
    except (ModelError, ArtifactError, ObjectNotFound) as error:
        return None, f"No Grad-CAM: {error}"


def _samples(store: ObjectStore, run: RunRecord) -> dict[str, str]:
    """Return a train image a class: class -> key."""
    if run.split is None or run.split.table is None:
        return {}
    rows = read_rows(SplitRow, store.get_referenced(run.split.table))
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.sha256):
        if row.partition == "train":
            first.setdefault(row.label, row.key)
    return {label: first[label] for label in run.split.classes if label in first}


def _siblings(store: ObjectStore, paths: RunPaths) -> dict[str, tuple[str, int | None]]:
    """Return the files beside the stand-alone report that were there before it."""
    prefix = f"{paths.folder}/"
    sizes = {entry["Key"][len(prefix) :]: entry["Size"] for entry in store.list_objects(prefix)}
    return {name: (name, sizes[name]) for name in FILES if name in sizes and name not in _WRITTEN_BESIDE}
