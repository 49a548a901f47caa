"""Bring a model into use: upload, smoke test, pointer; in an order in which a crash at any point harms nothing.

A version's files are written once and the pointer last. Whatever is cut short leaves the old champion in use, and
doing it again continues where it stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from bcc_ops.exceptions import ArtifactError, NothingNew, PromotionLost
from bcc_ops.models.registry import ModelRegistry, Pointer
from bcc_ops.runs.documents import Anchor, ChampionDocument, EvaluationDocument, GateDocument, ModelDocument, PromotionDocument

SmokeTest = Callable[[Path], None]
"""Takes the downloaded file and raises ModelError if it must not come into use."""


@dataclass(frozen=True)
class Upload:
    """What a version is made of: the model file's content, and the documents beside it."""

    document: ModelDocument
    model: bytes
    split: bytes
    answers: bytes
    evaluation: EvaluationDocument
    model_card: str


def upload_challenger(
    registry: ModelRegistry, upload: Upload, gate: GateDocument, smoke_test: SmokeTest, *, by: str, reason: str, now: datetime
) -> PromotionDocument:
    """Upload an approved challenger and let the pointer name it.

    Args:
        registry: where versions and pointer are stored.
        upload: the version.
        gate: the decision; its `champion_etag` is the pointer that the models were compared under.
        smoke_test: run on the file as it was uploaded.
        by: who approved.
        reason: why.
        now: aware.

    Raises:
        ArtifactError: the gate did not approve.
        ModelError: the smoke test failed; the version is never whole and never in use.
        PromotionLost: another run moved the champion first.
        UnsafeStore: the store cannot tell apart two runs that promote at once; nothing is written.
    """
    if gate.verdict == "rejected":
        raise ArtifactError("the gate rejected this model: it is not uploaded")
    document = upload.document
    before = registry.champion()
    if before and before.champion and before.champion.version == document.version:
        return _promotion(before.champion, document, by)
    if (before.etag if before else None) != gate.champion_etag:
        held_by = before.champion.version if before and before.champion else "nobody"
        raise PromotionLost(
            f"version {document.version} was not uploaded, since the gate compared it with champion "
            f"{gate.champion_version or 'none'} and the champion is now {held_by}. Clear evaluate_model to compare it with "
            "that one"
        )
    registry.require_conditional_writes()
    registry.write_once(document.version, "model.h5", upload.model, metadata=_metadata(document), tags=_tags(document))
    _test_uploaded(registry, document, smoke_test)
    registry.write_once(document.version, "split.parquet", upload.split)
    registry.write_once(document.version, "out_of_fold.parquet", upload.answers)
    registry.write_once(document.version, "evaluation.json", upload.evaluation.to_json())
    registry.write_once(document.version, "model_card.md", upload.model_card.encode())
    registry.write_once(document.version, "model.json", document.to_json())
    anchor = _anchor_after(gate, before.champion if before else None)
    return _promotion(registry.move(document, before, by=by, reason=reason, at=now, anchor=anchor), document, by)


def _anchor_after(gate: GateDocument, champion: ChampionDocument | None) -> Anchor | None:
    """Return the anchor that stays while the challenger replaces `champion`; None if the challenger becomes the anchor.

    A champion that was the anchor without being named, or that stood in for one that cannot be compared, is named from now on.
    """
    if gate.becomes_anchor or champion is None:
        return None
    if champion.anchor is not None and champion.anchor.version == gate.anchor_version:
        return champion.anchor
    return Anchor(version=champion.version, sha256=champion.sha256, since=champion.at, by=champion.by, reason=champion.reason)


def set_champion(
    registry: ModelRegistry,
    version: str,
    smoke_test: Callable[[ModelDocument, Path], None],
    *,
    by: str,
    reason: str,
    now: datetime,
    release_hold: bool = False,
) -> ChampionDocument:
    """Let the pointer name a version that a person chose: a rollback, or a promotion by hand.

    From then on the champion is held: no run replaces it without a person. It becomes the anchor too, even if it was the champion
    already. A damaged pointer is replaced: this is the way out of it.

    Args:
        registry: where versions and pointer are stored.
        version: of a whole version.
        smoke_test: run on the version's file.
        by: who chose.
        reason: why.
        now: aware.
        release_hold: leave no hold behind: the nights may replace this version.

    Raises:
        ModelError: there is no such version, it is not whole, or it fails the smoke test.
        NothingNew: it is the champion and the anchor already.
        PromotionLost: the champion was moved in the meantime.
        UnsafeStore: as in `upload_challenger`.
    """
    before = registry.read_pointer()
    document = registry.model(version)
    if _names(before, document) and not _anchored_elsewhere(before):
        if release_hold and before is not None and before.champion is not None and before.champion.hold is not None:
            return registry.release(before, by=by, reason=reason, at=now)
        raise NothingNew(f"version {version} is the champion already")
    registry.require_conditional_writes()
    _test_uploaded(registry, document, lambda path: smoke_test(document, path))
    return registry.move(document, before, by=by, reason=reason, at=now, by_person=True, release=release_hold)


def release_hold(registry: ModelRegistry, *, by: str, reason: str, now: datetime) -> ChampionDocument:
    """Release the hold: the nights may replace the champion again. Withdrawn models stay withdrawn.

    Raises:
        NothingNew: nobody holds the champion.
        ArtifactError: the pointer is damaged.
        PromotionLost: the champion was moved in the meantime.
        UnsafeStore: as in `upload_challenger`.
    """
    before = registry.champion()
    if before is None or before.champion is None or before.champion.hold is None:
        raise NothingNew("nobody holds the champion")
    registry.require_conditional_writes()
    return registry.release(before, by=by, reason=reason, at=now)


def _names(pointer: Pointer | None, document: ModelDocument) -> bool:
    champion = pointer.champion if pointer else None
    return champion is not None and (champion.version, champion.sha256) == (document.version, document.model.sha256)


def _anchored_elsewhere(pointer: Pointer | None) -> bool:
    champion = pointer.champion if pointer else None
    return champion is not None and champion.anchor is not None and champion.anchor.version != champion.version


def _test_uploaded(registry: ModelRegistry, document: ModelDocument, smoke_test: SmokeTest) -> None:
    with tempfile.TemporaryDirectory(prefix="bcc-smoke-test-") as folder:
        smoke_test(registry.fetch(document.version, document.model.sha256, Path(folder) / "model.h5"))


def _promotion(champion: ChampionDocument, document: ModelDocument, by: str) -> PromotionDocument:
    return PromotionDocument(
        version=document.version,
        model=document.model,
        promoted=True,
        reason=champion.reason,
        previous_champion=champion.history[0].version if champion.history else None,
        approved_by=by,
        at=champion.at,
    )


def lost(document: ModelDocument, gate: GateDocument, error: PromotionLost, *, by: str, now: datetime) -> PromotionDocument:
    """Return what is written about an approved challenger that another run beat to the pointer."""
    return PromotionDocument(
        version=document.version,
        model=document.model,
        promoted=False,
        reason=str(error),
        previous_champion=gate.champion_version,
        approved_by=by,
        at=now,
    )


def _metadata(document: ModelDocument) -> dict[str, str]:
    return {
        "version": document.version,
        "run": document.run.rsplit("/", 1)[-1],
        "as-of": document.as_of.isoformat(),
        "classes": quote(",".join(document.classes), safe=","),
        "image-size": str(document.image_size),
        "keep-aspect": str(document.keep_aspect).lower(),
    }


def _tags(document: ModelDocument) -> dict[str, str]:
    return {"version": document.version, "as_of": document.as_of.isoformat(), "synthetic": str(document.synthetic).lower()}
