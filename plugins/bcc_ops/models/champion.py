"""Load the versions that a challenger is compared with, if they may be: never an unsafe file, nor one that was changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bcc_ops.exceptions import ArtifactError, ModelError, ObjectNotFound
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.runs.documents import ModelDocument, OperatingPoint
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import read_answers, read_rows


class PredictsImages(Protocol):
    """What is asked of a model: `models.classifier.Classifier` is one."""

    @property
    def image_size(self) -> int:
        """Side of the input, pixels."""

    @property
    def classes_count(self) -> int:
        """How many probabilities it answers."""

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        """(n, classes) probabilities, float32."""


@dataclass(frozen=True)
class ChampionModel:
    """The model in use, as far as it could be loaded.

    Args:
        version, as_of, synthetic: from the pointer, or from its `model.json`.
        classes: the order of its answers, from its `model.json`; empty if that could not be read.
        operating_point, temperature: as they are in its `model.json`.
        seen: digests (of bytes and of pixels) of the images that its file was trained on.
        record: the rows of the split that it was trained with.
        answered: the images of its out-of-fold answers; empty for a version of an older release.
        answers: (len(answered), classes), its out-of-fold answers in the order of `classes`.
        model: the loaded file; None if there is a problem.
        problem: why it cannot be compared; None if it can.
    """

    version: str
    as_of: datetime
    synthetic: bool
    classes: tuple[str, ...] = ()
    operating_point: OperatingPoint | None = None
    temperature: float | None = None
    seen: frozenset[str] = frozenset()
    record: tuple[SplitRow, ...] = ()
    answered: tuple[SplitRow, ...] = ()
    answers: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    model: PredictsImages | None = None
    problem: str | None = None


def load_champion(registry: ModelRegistry, folder: Path) -> ChampionModel | None:
    """Load the champion; return it with a problem instead of a model if that fails, and None if there is no champion.

    Args:
        registry: where it is stored.
        folder: a folder of this machine, for the file.

    Raises:
        ArtifactError: the pointer is damaged.
        StorageUnavailable: the store did not answer; trying again may help, so this is not a problem of the champion.
    """
    pointer = registry.champion()
    if pointer is None or pointer.champion is None:
        return None
    named = pointer.champion
    return _load(registry, ChampionModel(named.version, named.as_of, named.synthetic), named.sha256, folder)


def load_anchor(registry: ModelRegistry, folder: Path) -> ChampionModel | None:
    """Load the anchor as `load_champion` does the champion; None if there is none, or if it is the champion.

    Raises:
        ArtifactError, StorageUnavailable: as `load_champion`.
    """
    pointer = registry.champion()
    if pointer is None or pointer.champion is None:
        return None
    anchor = pointer.champion.anchor
    if anchor is None or anchor.version == pointer.champion.version:
        return None
    return _load(registry, ChampionModel(anchor.version, anchor.since, False), anchor.sha256, folder)


def _load(registry: ModelRegistry, version: ChampionModel, sha256: str, folder: Path) -> ChampionModel:
    from bcc_ops.models.classifier import load_classifier

    try:
        document = registry.model(version.version)
        if document.model.sha256 != sha256:
            raise ModelError(
                f"the pointer names another file than the model.json of {version.version}: its answers are not that file's"
            )
        rows, answers = answers_of(registry, document)
        version = replace(
            version,
            as_of=document.as_of,
            synthetic=document.synthetic,
            classes=document.classes,
            operating_point=document.operating_point,
            temperature=document.temperature,
            seen=images_seen(registry, document),
            record=tuple(split_of(registry, document)),
            answered=tuple(rows),
            answers=answers,
        )
        path = registry.fetch(version.version, sha256, folder / f"{version.version}.h5")
        return replace(version, model=load_classifier(path, keep_aspect=document.keep_aspect))
    except (ModelError, ArtifactError, ObjectNotFound) as error:
        return replace(version, problem=str(error))


def images_seen(registry: ModelRegistry, document: ModelDocument) -> frozenset[str]:
    """Return digests of the images that the file of a version, or of one that its weights come from, was trained on.

    An image has two: of its bytes and of its pixels. A file that is made from several folds' models was trained on all images.

    Raises:
        ArtifactError, ModelError, ObjectNotFound: the split or the `model.json` of one of them is damaged or gone, so that
            it is unknown.
    """
    seen: set[str] = set()
    while True:
        kept = document.folds[0] if len(document.folds) == 1 else None
        used = [row for row in split_of(registry, document) if row.fold != kept]
        seen.update(digest for row in used for digest in (row.sha256, row.pixels) if digest)
        if document.warm_started_from is None:
            return frozenset(seen)
        document = registry.model(document.warm_started_from)


def split_of(registry: ModelRegistry, document: ModelDocument) -> list[SplitRow]:
    """Read the split that a version was trained with."""
    return read_rows(SplitRow, registry.store.get_referenced(document.split))


def answers_of(registry: ModelRegistry, document: ModelDocument) -> tuple[list[SplitRow], NDArray[np.float64]]:
    """Read a version's out-of-fold answers: images, and (n, classes) probabilities. A version of an older release has none.

    Raises:
        ArtifactError, ObjectNotFound: they are damaged or gone.
    """
    if document.answers is None:
        return [], np.zeros((0, len(document.classes)))
    rows, answers = read_answers(registry.store.get_referenced(document.answers), document.classes)
    if unknown := {row.label for row in rows} - set(document.classes):
        raise ArtifactError(
            f"{document.answers.key} has labels that {document.version} does not know: {', '.join(sorted(unknown))}"
        )
    if not ((answers >= 0).all() and np.allclose(answers.sum(axis=1), 1, atol=0.01)):  # nor are they if one is NaN
        raise ArtifactError(f"{document.answers.key} has answers that are not probabilities")
    return rows, answers
