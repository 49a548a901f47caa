"""A run's documents in, a version in use out: builds what `promote` uploads, and what its smoke test asks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bcc_ops.exceptions import ArtifactError, ObjectChanged, ObjectNotFound, PromotionLost
from bcc_ops.models.registry import ModelRegistry, version_name
from bcc_ops.promotion.model_card import RunDocuments, read_template, render_model_card
from bcc_ops.promotion.promote import Upload, lost, upload_challenger
from bcc_ops.promotion.smoke_test import Sample, run_smoke_test
from bcc_ops.runs.documents import ModelDocument, PromotionDocument, Reference, SmokeTestImage
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.rows import ImageRow
from bcc_ops.runs.tables import read_predictions, read_rows

if TYPE_CHECKING:
    from bcc_ops.dataset.sync import LocalImage

SMOKE_TEST_IMAGES = 6

Fetch = Callable[[list[ImageRow]], "Sequence[LocalImage]"]
"""Brings images of the bucket to this machine."""


def upload_run(
    registry: ModelRegistry,
    paths: RunPaths,
    documents: RunDocuments,
    *,
    template: str,
    fetch: Fetch,
    by: str,
    now: datetime,
) -> PromotionDocument:
    """Make a version of a run's challenger and bring it into use.

    Args:
        registry: where versions are stored.
        paths: of the run.
        documents: of the run.
        template: path of the model card's template file; "" for none.
        fetch: brings the smoke test's images here.
        by: who approved.
        now: aware.

    Raises:
        PromotionLost: another run was first; its `document` is the run's promotion.json.
        ModelError, ArtifactError, ConfigError: as `upload_challenger` and `read_template` say.
    """
    text = read_template(template)
    document = model_document(registry, paths, documents, text, smoke_test_images(registry.store, documents))
    evaluation, gate = documents.evaluation, documents.gate
    model = registry.store.get_referenced(documents.training.model)
    split = registry.store.get_referenced(split_table(documents))
    answers = registry.store.get_referenced(answers_table(documents))
    upload = Upload(document, model, split, answers, evaluation, render_model_card(document, documents, text))

    def smoke_test(path: Path) -> None:
        run_smoke_test(path, samples_of(document, fetch), len(document.classes), keep_aspect=document.keep_aspect)

    try:
        return upload_challenger(registry, upload, gate, smoke_test, by=by, reason=" ".join(gate.reasons), now=now)
    except PromotionLost as error:
        error.document = lost(document, gate, error, by=by, now=now)
        raise


def require_same_model(paths: RunPaths, documents: RunDocuments, evaluation: Reference, split: Reference) -> None:
    """Make sure that the gate judged the model that is about to be uploaded, on the split that it was trained with.

    They differ if tasks were cleared without those after them, or if somebody edited what a task handed on.

    Args:
        paths: of the run.
        documents: of the run.
        evaluation, split: references to those of `documents`.

    Raises:
        ArtifactError: they do not belong together; the message says which task to clear.
    """
    training, evaluated, gate = documents.training, documents.evaluation, documents.gate
    if training.split not in (None, split):
        raise ArtifactError(
            "the model was trained with another split of this run: clear train_model too, and everything after it"
        )
    if evaluated.model != training.model or evaluated.held_out_digest != documents.split.held_out_digest:
        raise ArtifactError(
            "evaluation.json is about another model or other images: clear evaluate_model and gate_model too, so that they judge "
            "this model"
        )
    if (gate.evaluation, gate.split) != (evaluation, split):
        raise ArtifactError("gate.json is about another evaluation: clear gate_model too, so that it judges this model")
    named = (documents.snapshot.images, documents.split.table, training.model, training.answers, evaluated.predictions)
    if other := next((file.key for file in named if file is not None and not file.key.startswith(f"{paths.folder}/")), None):
        raise ArtifactError(f"a document of this run names {other}, which is not in the run's folder: start a new run")


def model_document(
    registry: ModelRegistry, paths: RunPaths, documents: RunDocuments, template: str, smoke_test: Sequence[SmokeTestImage] = ()
) -> ModelDocument:
    """Return the version's `model.json`.

    Raises:
        ArtifactError: the run has no split or no answers.
    """
    training, evaluation, snapshot = documents.training, documents.evaluation, documents.snapshot
    table = split_table(documents)
    # Everything that the card shows: with another text under the same name, an interrupted upload could never be finished.
    told = (snapshot, documents.checks, documents.split, training, evaluation, documents.gate)
    contents = [*(document.to_json() for document in told), template.encode()]
    version = version_name(snapshot.as_of, training.model.sha256, *(hashlib.sha256(content).hexdigest() for content in contents))
    return ModelDocument(
        version=version,
        classes=training.classes,
        positive_class=snapshot.positive_class,
        image_size=training.image_size,
        keep_aspect=training.keep_aspect,
        preprocessing=training.preprocessing,
        architecture=training.architecture,
        operating_point=evaluation.challenger.operating_point,
        temperature=evaluation.challenger.calibration.temperature,
        synthetic=evaluation.synthetic,
        as_of=snapshot.as_of,
        run=paths.folder_name,
        snapshot_digest=snapshot.digest,
        folds=tuple(fold.fold for fold in training.folds),
        answers=Reference(key=registry.key(version, "out_of_fold.parquet"), sha256=answers_table(documents).sha256),
        split=Reference(key=registry.key(version, "split.parquet"), sha256=table.sha256),
        smoke_test=tuple(smoke_test),
        model=Reference(key=registry.key(version, "model.h5"), sha256=training.model.sha256),
        evaluation=Reference.of(registry.key(version, "evaluation.json"), evaluation.to_json()),
    )


def split_table(documents: RunDocuments) -> Reference:
    """Return the reference to the run's split.parquet.

    Raises:
        ArtifactError: the run has no split.
    """
    if documents.split.table is None:
        raise ArtifactError("split.json names no split.parquet: a version must say what it was trained on")
    return documents.split.table


def answers_table(documents: RunDocuments) -> Reference:
    """Return the reference to the run's out_of_fold.parquet.

    Raises:
        ArtifactError: the run has none.
    """
    if documents.training.answers is None:
        raise ArtifactError("training.json names no out_of_fold.parquet: later challengers are compared with these answers")
    return documents.training.answers


def smoke_test_images(store: ObjectStore, documents: RunDocuments) -> tuple[SmokeTestImage, ...]:
    """Choose a few images of the run that the model file was asked about, with its answers.

    Raises:
        ArtifactError: the evaluation names no predictions, or the snapshot does not list the images.
    """
    evaluation = documents.evaluation
    if evaluation.predictions is None:
        raise ArtifactError("evaluation.json names no predictions.parquet: the smoke test has nothing to compare with")
    table = read_predictions(store.get_referenced(evaluation.predictions))
    asked = [i for i, answer in enumerate(table[f"file_{evaluation.classes[0]}"]) if answer is not None]
    chosen = [asked[place] for place in spread(len(asked), SMOKE_TEST_IMAGES)]
    answers = {table["key"][i]: tuple(table[f"file_{name}"][i] for name in evaluation.classes) for i in chosen}
    rows = read_rows(ImageRow, store.get_referenced(documents.snapshot.images))
    return tuple(SmokeTestImage(**row._asdict(), probabilities=answers[row.key]) for row in rows if row.key in answers)


def samples_of(document: ModelDocument, fetch: Fetch) -> list[Sample]:
    """Fetch the images that a version is to be tested with.

    Raises:
        ObjectNotFound, ObjectChanged: one of them is gone or was replaced.
    """
    expected = {image.key: image.probabilities for image in document.smoke_test}
    rows = [ImageRow(**image.model_dump(exclude={"probabilities"})) for image in document.smoke_test]
    return [Sample(image.key, image.path, expected[image.key]) for image in fetch(rows)]


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, evenly spread."""
    return sorted({(2 * i + 1) * count // (2 * wanted) for i in range(wanted)}) if count else []


def smoke_test_version(document: ModelDocument, path: Path, fetch: Fetch, say: Callable[[str], None]) -> None:
    """Smoke-test a version that was uploaded earlier, with its own images if they are still there.

    If they are not, or if the version is of an older release, the file must still load and answer with probabilities.

    Args:
        document: the version's `model.json`.
        path: its file, downloaded.
        fetch: brings images here.
        say: takes a sentence for the log.

    Raises:
        ModelError: it fails.
    """
    samples: list[Sample] = []
    problem = "its model.json names none"
    try:
        samples = samples_of(document, fetch)
    except (ObjectNotFound, ObjectChanged) as error:
        problem = str(error)
    if not samples:
        say(f"The images that this version was tested with are not available ({problem}); it only has to load and to answer.")
        samples = [_gray_image(path.with_name("gray.png"))]
    run_smoke_test(path, samples, len(document.classes), keep_aspect=document.keep_aspect)


def _gray_image(path: Path) -> Sample:
    from PIL import Image

    Image.new("RGB", (64, 64), (128, 128, 128)).save(path)
    return Sample("a gray image", path, None)
