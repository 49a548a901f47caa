"""Draw a run's plots and its stand-alone report."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcc_ops.dataset.content_findings import may_name_a_patient
from bcc_ops.exceptions import ArtifactError, ModelError, ObjectChanged, ObjectNotFound
from bcc_ops.report.galleries import (
    Explain,
    draw_augmentations,
    draw_findings,
    draw_galleries,
    shown_cases,
    shown_findings,
)
from bcc_ops.report.misclassified import find_misclassified
from bcc_ops.report.page import render_report
from bcc_ops.report.plots import draw_plots
from bcc_ops.runs.documents import FOLDS, Reference
from bcc_ops.runs.history import RunSummary, summarise_run
from bcc_ops.runs.index import list_runs
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.record import FILES, HISTORIES, RunRecord, read_record
from bcc_ops.runs.rows import ContentRow, SplitRow
from bcc_ops.runs.tables import read_predictions, read_rows

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
    """Draw a run's plots and its stand-alone report, with what the run has; what it lacks is left out and named.

    Args:
        store: the bucket.
        paths: of the run.
        run_id: Airflow's.
        references: file name -> the reference that was handed in, None if a task handed none.
        fetch: brings image files here.
        say: takes a line for the log, as `logging.Logger.info` does.
    """
    run = read_referenced(store, paths, references)
    for name, why in run.unreadable.items():
        say("%s cannot be read and is left out: %s", name, why)
    predictions = _predictions(store, run)
    plots = draw_plots(run, predictions, earlier_runs(store, paths))
    contents = _contents(store, run, say)
    if contents is not None:
        try:
            plots |= _pictures_of_findings(run, contents, fetch)
            plots |= _pictures_of_cases(store, run, predictions, contents, fetch=fetch, say=say)
        except ObjectChanged as error:
            say("no pictures: %s", error)
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
        head = store.head(paths.document(name)) if name in ("config.json", *HISTORIES) else None
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


def _contents(store: ObjectStore, run: RunRecord, say: Callable[..., None]) -> list[ContentRow] | None:
    """Return what the checks saw of each image; None if it is not there: nobody can tell then which images must not be shown."""
    try:
        if run.checks is None or run.checks.contents is None:
            raise ArtifactError("checks.json does not say what the images hold")
        return read_rows(ContentRow, store.get_referenced(run.checks.contents))
    except (ArtifactError, ObjectNotFound) as error:
        say("no pictures: %s", error)
        return None


def _pictures_of_findings(run: RunRecord, contents: Sequence[ContentRow], fetch: FetchFiles) -> dict[str, bytes]:
    checks = run.checks
    if checks is None or not checks.findings:
        return {}
    shown = shown_findings(contents, checks.findings)
    files = fetch({row.key for rows in shown.values() for row in rows})
    drawn = draw_findings(shown, checks.findings, files, synthetic=run.synthetic)
    return {"content_findings": drawn} if drawn else {}


def _pictures_of_cases(
    store: ObjectStore,
    run: RunRecord,
    predictions: Mapping[str, Sequence[Any]] | None,
    contents: Sequence[ContentRow],
    *,
    fetch: FetchFiles,
    say: Callable[..., None],
) -> dict[str, bytes]:
    """Return the galleries of wrong cases. Without one, nothing here imports TensorFlow, which takes many seconds."""
    evaluation = run.evaluation
    if evaluation is None or predictions is None:
        return {}
    threshold = evaluation.challenger.operating_point.threshold
    cases = find_misclassified(predictions, evaluation.classes, evaluation.positive_class, threshold)
    say("missed: %d, false alarms: %d", len(cases.missed), len(cases.false_alarms))
    hidden = {row.key for row in contents if may_name_a_patient(row.findings)}
    shown = shown_cases(cases, hidden)
    if not shown:
        return {}
    rows = _split(store, run)
    samples = _samples([row for row in rows if row.key not in hidden], evaluation.classes)
    files = fetch({*(case.key for case in shown), *samples.values()})
    folds = {row.key: row.fold for row in rows}
    held_out_by = {files[case.key]: folds.get(case.key) for case in shown if case.key in files}
    explain, why_not = _explainer(store, run, held_out_by)
    if why_not:
        say("%s", why_not)
    plots = draw_galleries(
        cases,
        files,
        hidden=hidden,
        classes=evaluation.classes,
        positive_class=evaluation.positive_class,
        explain=explain,
        why_not=why_not,
        keep_aspect=run.training is not None and run.training.keep_aspect,
        synthetic=run.synthetic,
    )
    if run.config is not None and samples:
        from bcc_ops.dataset.input_pipeline import Augmentation

        config = run.config.config
        images = [(label, files[key]) for label, key in samples.items()]
        plots["augmentations"] = draw_augmentations(
            images, Augmentation.of(config), keep_aspect=config.keep_aspect, seed=config.seed, synthetic=run.synthetic
        )
    return plots


def _explainer(store: ObjectStore, run: RunRecord, folds: Mapping[Path, int | None]) -> tuple[Explain | None, str]:
    """Return Grad-CAM on the models that gave the answers, or None and why it is not available.

    Args:
        folds: image file -> the fold that it is in; None if that is unknown.
    """
    if run.evaluation is None or run.evaluation.model is None:
        return None, "No Grad-CAM: the evaluation names no model."
    if run.training is None:
        return None, "No Grad-CAM: without training.json, it is not known what the model saw of an image."
    from bcc_ops.evaluation.grad_cam import GradCam
    from bcc_ops.models.classifier import load_classifier

    # The file of several models has trained on the image: what it looks at does not explain the answer that is shown.
    of_folds = {one.fold: one.model for one in run.training.folds}
    models = {fold: of_folds.get(fold, run.evaluation.model) if fold else run.evaluation.model for fold in set(folds.values())}
    explainers = {}
    try:
        with tempfile.TemporaryDirectory(prefix="bcc-report-") as folder:
            for model in set(models.values()):
                path = Path(folder) / "model.h5"
                path.write_bytes(store.get_referenced(model))
                explainers[model] = GradCam(load_classifier(path, keep_aspect=run.training.keep_aspect))
    except (ModelError, ArtifactError, ObjectNotFound) as error:
        return None, f"No Grad-CAM: {error}"

    def explain(paths: Sequence[Path], classes: Sequence[int]) -> npt.NDArray[np.float32]:
        heats: dict[int, npt.NDArray[np.float32]] = {}
        for model, explainer in explainers.items():
            places = [place for place, path in enumerate(paths) if models[folds[path]] == model]
            if places:
                heats.update(zip(places, explainer([paths[place] for place in places], [classes[place] for place in places])))
        return np.stack([heats[place] for place in range(len(paths))])

    return explain, ""


def _split(store: ObjectStore, run: RunRecord) -> list[SplitRow]:
    if run.split is None or run.split.table is None:
        return []
    return read_rows(SplitRow, store.get_referenced(run.split.table))


def _samples(rows: Iterable[SplitRow], classes: Sequence[str]) -> dict[str, str]:
    """Return one image of each class that a model was trained on: class -> key."""
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.sha256):
        if row.fold != FOLDS[0]:  # The model of the first fold was trained on the others, whatever became of theirs.
            first.setdefault(row.label, row.key)
    return {label: first[label] for label in classes if label in first}


def _siblings(store: ObjectStore, paths: RunPaths) -> dict[str, tuple[str, int | None]]:
    """Return the files beside the stand-alone report that were there before it."""
    prefix = f"{paths.folder}/"
    sizes = {entry["Key"][len(prefix) :]: entry["Size"] for entry in store.list_objects(prefix)}
    return {name: (name, sizes[name]) for name in FILES if name in sizes and name not in _WRITTEN_BESIDE}
