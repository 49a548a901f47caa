"""The model in use, loaded if it may be: never a file that is not the promised one, never one that is unsafe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bcc_ops.evaluation.evaluate import ChampionModel
from bcc_ops.exceptions import ArtifactError, ModelError, ObjectNotFound
from bcc_ops.models.registry import ModelRegistry, Pointer
from bcc_ops.promotion.gate import ChampionState
from bcc_ops.runs.documents import ModelDocument
from bcc_ops.runs.tables import SplitRow, read_rows

TRAINED_OR_TUNED = ("train", "tuning")


def load_champion(registry: ModelRegistry, folder: Path) -> ChampionModel | None:
    """The champion with its model loaded; with a problem in its place where that cannot be; None without a champion.

    Args:
        registry: where it lies.
        folder: a folder of this machine, for the file.

    Raises:
        ArtifactError: the pointer is damaged.
        StorageUnavailable: the store did not answer; trying again may mend that, so it is no problem of the champion.
    """
    from bcc_ops.models.keras_import import load_classifier

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
        )
        path = registry.fetch(named.version, named.sha256, folder / "champion.h5")
        return replace(champion, model=load_classifier(path))
    except (ModelError, ArtifactError, ObjectNotFound) as error:
        return replace(champion, problem=str(error))


def images_seen(registry: ModelRegistry, document: ModelDocument) -> frozenset[str]:
    """sha256 of the images that a version, or one that its weights come from, was trained or tuned on.

    Raises:
        ArtifactError, ModelError, ObjectNotFound: the split or the `model.json` of one of them is damaged or gone, so that
            nobody knows.
    """
    seen: set[str] = set()
    while True:
        rows = read_rows(SplitRow, registry.store.get_referenced(document.split))
        seen.update(row.sha256 for row in rows if row.partition in TRAINED_OR_TUNED)
        if document.warm_started_from is None:
            return frozenset(seen)
        document = registry.model(document.warm_started_from)


def champion_state(pointer: Pointer | None) -> ChampionState | None:
    """What the gate must know of the pointer."""
    if pointer is None or pointer.champion is None:
        return None
    named = pointer.champion
    return ChampionState(named.version, pointer.etag, named.as_of, named.synthetic)
