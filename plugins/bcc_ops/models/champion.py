"""The model in use, loaded if it may be: never a file that is not the promised one, never one that is unsafe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np

from bcc_ops.exceptions import ArtifactError, ModelError, ObjectNotFound
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.runs.documents import ModelDocument, OperatingPoint
from bcc_ops.runs.tables import SplitRow, read_rows


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
        version, as_of, synthetic: from the pointer.
        classes: the order of its answers, from its `model.json`; empty where that could not be read.
        operating_point, temperature: as they were fitted on its own tuning part.
        seen: digests (of bytes and of pixels) of the images that it was trained or tuned on.
        record: the rows of the split that it was trained with.
        model: the loaded file; None where there is a problem.
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
    model: PredictsImages | None = None
    problem: str | None = None


TRAINED_OR_TUNED = ("train", "tuning")


def load_champion(registry: ModelRegistry, folder: Path) -> ChampionModel | None:
    """Load the champion; return it with a problem instead of a model if that fails, and None if there is no champion.

    Args:
        registry: where it is stored.
        folder: a folder of this machine, for the file.

    Raises:
        ArtifactError: the pointer is damaged.
        StorageUnavailable: the store did not answer; trying again may help, so this is not a problem of the champion.
    """
    from bcc_ops.models.classifier import load_classifier

    pointer = registry.champion()
    if pointer is None or pointer.champion is None:
        return None
    named = pointer.champion
    champion = ChampionModel(named.version, named.as_of, named.synthetic)
    try:
        document = registry.model(named.version)
        champion = replace(
            champion,
            classes=document.classes,
            operating_point=document.operating_point,
            temperature=document.temperature,
            seen=images_seen(registry, document),
            record=tuple(split_of(registry, document)),
        )
        path = registry.fetch(named.version, named.sha256, folder / "champion.h5")
        return replace(champion, model=load_classifier(path))
    except (ModelError, ArtifactError, ObjectNotFound) as error:
        return replace(champion, problem=str(error))


def images_seen(registry: ModelRegistry, document: ModelDocument) -> frozenset[str]:
    """Return digests of the images that a version, or one that its weights come from, was trained or tuned on.

    An image has two: of its bytes and of its pixels.

    Raises:
        ArtifactError, ModelError, ObjectNotFound: the split or the `model.json` of one of them is damaged or gone, so that
            it is unknown.
    """
    seen: set[str] = set()
    while True:
        used = [row for row in split_of(registry, document) if row.partition in TRAINED_OR_TUNED]
        seen.update(digest for row in used for digest in (row.sha256, row.pixels) if digest)
        if document.warm_started_from is None:
            return frozenset(seen)
        document = registry.model(document.warm_started_from)


def split_of(registry: ModelRegistry, document: ModelDocument) -> list[SplitRow]:
    """Read the split that a version was trained with."""
    return read_rows(SplitRow, registry.store.get_referenced(document.split))
