"""A run's documents in, its evaluation out: what `evaluate` needs is read from the bucket, and its table written there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.metadata_source import read_metadata
from bcc_ops.dataset.snapshot import ImageRules, list_images
from bcc_ops.dataset.splits import group_images
from bcc_ops.evaluation.comparison import EvaluationPlan, LabelledImages, RunImages
from bcc_ops.evaluation.evaluate import Evaluated, EvaluationInputs, Models, evaluate
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
from bcc_ops.runs.tables import AssignmentRow, ContentRow, ImageRow, Row, SplitRow, read_answers, read_rows

if TYPE_CHECKING:
    from bcc_ops.dataset.sync import LocalImage
    from bcc_ops.models.classifier import Classifier


@dataclass(frozen=True)
class RunInputs:
    """What a run has to be evaluated with.

    Args:
        config, snapshot, checks, split, training: the run's documents.
        images: key -> local file.
        fetch: brings other images of the bucket here, for the external ones; leaves out what the store does not give.
    """

    config: RetrainingConfig
    snapshot: SnapshotDocument
    checks: ChecksDocument
    split: SplitDocument
    training: TrainingDocument
    images: Mapping[str, Path]
    fetch: Callable[[list[ImageRow]], Sequence[LocalImage]]


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
        folder: an empty folder of this machine, for the model files and what is learned of the external images.
        say: takes a sentence for the log.

    Raises:
        ArtifactError: a document misses its table, or the answers are not about the split's images.
        ModelError: the challenger's file is damaged, unsafe, or answers with no probabilities.
        DataError: there is nothing to evaluate on.
    """
    training = inputs.training
    split = _rows(store, SplitRow, inputs.split.table, "split.json names no split.parquet")
    contents = _rows(store, ContentRow, inputs.checks.contents, "checks.json names no contents.parquet")
    assignments = _rows(store, AssignmentRow, inputs.split.assignments, "split.json names no assignments.parquet")
    rows, answers = _out_of_fold(store, training, split)
    own = frozenset(digest for row in split for digest in (row.sha256, row.pixels) if digest)
    own = own.union(*(version.seen for version in (champion, anchor) if version is not None))
    external, external_note = external_images(store, inputs, own, folder)
    evaluated = evaluate(
        plan_of(inputs),
        Models(
            file=_load(store, training.model, folder, training.keep_aspect),
            folds={fold.fold: partial(_load, store, fold.model, folder, training.keep_aspect) for fold in training.folds},
            champion=champion,
            anchor=anchor,
        ),
        EvaluationInputs(
            images=RunImages(split, contents, assignments, inputs.images, read_metadata(store, inputs.snapshot.metadata)),
            rows=rows,
            answers=answers,
            first=inputs.split.previous_run is None,
            as_of=inputs.snapshot.as_of,
            synthetic=inputs.checks.synthetic > 0,
            held_out_digest=inputs.split.held_out_digest,
            external=external,
            external_note=external_note,
        ),
        say,
    )
    return with_shortcuts(evaluated, contents, inputs.config.patient_pattern)


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


def external_images(
    store: ObjectStore, inputs: RunInputs, own: frozenset[str], folder: Path
) -> tuple[LabelledImages | None, str | None]:
    """List and check the labelled images under `external_prefix` as of the run's moment, and describe them in a sentence.

    They are checked and grouped as the run's own: near-duplicates, and a patient's images, are not independent evidence here
    either. Left out, and counted: what a run would refuse, and what this run, the champion or the anchor has trained
    on, by its bytes or its pixels, which would be no test from outside.

    Args:
        store: the bucket.
        inputs: the run's documents.
        own: digests (of bytes and of pixels) of the images of this run's split, and of those that champion and anchor have seen.
        folder: of this machine, for what is learned of them.
    """
    from bcc_ops.dataset.image_checks import CONFLICT, UNREADABLE, check_images

    prefix = inputs.config.external_prefix.strip("/")
    if not prefix:
        return None, None
    images_prefix = inputs.snapshot.prefix
    if f"{prefix}/".startswith(f"{images_prefix}/") or f"{images_prefix}/".startswith(f"{prefix}/"):
        return (
            None,
            f"Not evaluated: external_prefix {prefix!r} overlaps with the images that are trained on ({images_prefix!r}).",
        )
    rules = ImageRules(prefix, inputs.training.classes, inputs.config.ignored_names, inputs.config.max_file_mb * 1_000_000)
    listing = list_images(store, rules, inputs.snapshot.as_of)
    fetched = inputs.fetch(listing.images) if listing.images else []
    images = [image for image in fetched if image.sha256 not in own]
    rows: tuple[ContentRow, ...] = ()
    if images:
        rows = check_images(
            images,
            inputs.config.model_copy(update={"max_refused_fraction": 1.0}),  # a test from outside fails no run
            memory_path=folder / "external.sqlite3",
            snapshot_digest="",
            classes=inputs.training.classes,
            previous=None,
        ).contents
    usable = [row for row in rows if not row.refused and row.pixels not in own]
    group_of = group_images(usable, inputs.config.patient_pattern)
    usable = [row._replace(group=group_of[row.key]) for row in usable]
    counts, groups = Counter(row.label for row in usable), len({row.group for row in usable})
    by_class = ", ".join(f"{counts[name]} {name}" for name in inputs.training.classes)
    note = f"{len(usable)} images in {groups} {inputs.split.grouping}s under {prefix}/ ({by_class})"
    left_out = Counter("under two labels" if row.refused == CONFLICT else row.refused for row in rows if row.refused)
    if len(fetched) < len(listing.images):
        left_out[UNREADABLE] = len(listing.images) - len(fetched)
    if also := len(fetched) - len(images) + sum(not row.refused and row.pixels in own for row in rows):
        left_out["also in this run"] = also
    if left_out:
        note += f"; left out: {', '.join(f'{count} {reason}' for reason, count in sorted(left_out.items()))}"
    return (LabelledImages.of_rows(usable, {image.key: image.path for image in images}) if usable else None), f"{note}."


def _rows(store: ObjectStore, row_type: type[Row], reference: Reference | None, problem: str) -> list[Row]:
    if reference is None:
        raise ArtifactError(problem)
    return read_rows(row_type, store.get_referenced(reference))
