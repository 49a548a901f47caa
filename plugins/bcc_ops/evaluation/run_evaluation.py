"""A run's documents in, its evaluation out: what `evaluate` needs is read from the bucket, and its table written there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.metadata_source import read_file_metadata, read_metadata
from bcc_ops.evaluation.comparison import EvaluationPlan, RunImages
from bcc_ops.evaluation.evaluate import Evaluated, EvaluationInputs, Models, evaluate
from bcc_ops.evaluation.external import ExternalSearch, OwnImages
from bcc_ops.evaluation.shortcuts import with_shortcuts
from bcc_ops.exceptions import ArtifactError
from bcc_ops.models.champion import ChampionModel
from bcc_ops.runs.documents import (
    ChecksDocument,
    Reference,
    SnapshotDocument,
    SplitDocument,
    TrainingDocument,
)
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import AssignmentRow, ContentRow, ImageRow, SplitRow
from bcc_ops.runs.tables import Row, read_answers, read_rows

if TYPE_CHECKING:
    from bcc_ops.dataset.dicom import GivesPseudonyms
    from bcc_ops.dataset.sync import LocalImage
    from bcc_ops.models.classifier import Classifier


@dataclass(frozen=True)
class RunInputs:
    """What a run is evaluated with.

    Args:
        config, snapshot, checks, split, training: the run's documents.
        images: key -> local file.
        fetch: brings other images of the bucket here, for the external ones; leaves out what the store does not give.
        memory_path: where this worker keeps what the image checks have learned of each content.
        pseudonyms: the deployment's, with which DICOM files are fetched.
    """

    config: RetrainingConfig
    snapshot: SnapshotDocument
    checks: ChecksDocument
    split: SplitDocument
    training: TrainingDocument
    images: Mapping[str, Path]
    fetch: Callable[[list[ImageRow]], Sequence[LocalImage]]
    memory_path: Path
    pseudonyms: GivesPseudonyms


def evaluate_run(
    store: ObjectStore,
    inputs: RunInputs,
    champion: ChampionModel | None,
    anchor: ChampionModel | None,
    *,
    folder: Path,
    say: Callable[[str], None],
) -> Evaluated:
    """Evaluate a run's challenger beside the champion and the anchor.

    Args:
        store: the bucket.
        inputs: its documents and images.
        champion: the model in use; None if there is none.
        anchor: the version that challengers are measured against besides; None if it is the champion.
        folder: an empty folder of this machine, for the model files.
        say: takes a sentence for the log.

    Raises:
        ArtifactError: a document lacks its table, or the answers are not about the split's images.
        ModelError: the challenger's file is damaged, unsafe, or does not answer with probabilities.
        DataError: there is nothing to evaluate on.
    """
    training = inputs.training
    split = _rows(store, SplitRow, inputs.split.table, "split.json names no split.parquet")
    contents = _rows(store, ContentRow, inputs.checks.contents, "checks.json names no contents.parquet")
    assignments = _rows(store, AssignmentRow, inputs.split.assignments, "split.json names no assignments.parquet")
    rows, answers = _out_of_fold(store, training, split)
    seen = frozenset[str]().union(*(version.seen for version in (champion, anchor) if version is not None))
    external = external_search(store, inputs, OwnImages.of(split, seen, inputs.images)).find(inputs.memory_path)
    for one in external:
        say(f"External test set {one.name}: {one.note}")
    metadata = read_metadata(store, inputs.snapshot.metadata).or_else(read_file_metadata(store, inputs.checks))
    evaluated = evaluate(
        plan_of(inputs),
        Models(
            file=_load(store, training.model, folder, training.keep_aspect),
            folds={fold.fold: partial(_load, store, fold.model, folder, training.keep_aspect) for fold in training.folds},
            champion=champion,
            anchor=anchor,
        ),
        EvaluationInputs(
            images=RunImages(split, contents, assignments, inputs.images, metadata),
            rows=rows,
            answers=answers,
            first=inputs.split.previous_run is None,
            as_of=inputs.snapshot.as_of,
            synthetic=inputs.checks.synthetic > 0,
            held_out_digest=inputs.split.held_out_digest,
            external=external,
        ),
        say,
    )
    return with_shortcuts(evaluated, contents, inputs.config.patient_pattern)


def external_search(store: ObjectStore, inputs: RunInputs, own: OwnImages) -> ExternalSearch:
    """Return how a run's external test sets are found."""
    return ExternalSearch(
        store=store,
        config=inputs.config,
        classes=inputs.training.classes,
        grouping=inputs.split.grouping,
        as_of=inputs.snapshot.as_of,
        fetch=inputs.fetch,
        own=own,
        pseudonyms=inputs.pseudonyms,
    )


def _out_of_fold(
    store: ObjectStore, training: TrainingDocument, split: Sequence[SplitRow]
) -> tuple[list[SplitRow], NDArray[np.float64]]:
    """Read the challenger's out-of-fold answers, and make sure that they are about the split's images of its folds."""
    if training.answers is None:
        raise ArtifactError("training.json names no out_of_fold.parquet: clear combine_folds")
    rows, answers = read_answers(store.get_referenced(training.answers), training.classes)
    folds = {fold.fold for fold in training.folds}
    if sorted(rows) != sorted(row for row in split if row.fold in folds):
        raise ArtifactError("the out-of-fold answers are not about the images of this run's split: clear train_model")
    return rows, answers


def _load(store: ObjectStore, model: Reference, folder: Path, keep_aspect: bool) -> Classifier:
    from bcc_ops.models.classifier import load_classifier

    path = folder / f"{model.sha256}.h5"
    path.write_bytes(store.get_referenced(model))
    return load_classifier(path, keep_aspect=keep_aspect)


def plan_of(inputs: RunInputs) -> EvaluationPlan:
    """Return how a run's models are to be evaluated."""
    return EvaluationPlan(
        classes=inputs.training.classes,
        positive_class=inputs.snapshot.positive_class,
        wanted_sensitivity=inputs.config.wanted_sensitivity,
        grouping=inputs.split.grouping,
        slice_pattern=inputs.config.slice_pattern,
        smallest_slice=inputs.config.min_subgroup_images,
    )


def _rows(store: ObjectStore, row_type: type[Row], reference: Reference | None, problem: str) -> list[Row]:
    if reference is None:
        raise ArtifactError(problem)
    return read_rows(row_type, store.get_referenced(reference))
