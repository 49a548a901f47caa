"""Versions and the champion pointer: the only mutable object there is.

A version's files are written once (`If-None-Match`), and its `model.json` last: a version that has one is whole. The
pointer moves by compare-and-swap on its ETag, so that of two runs that promote at once one wins and the other learns
that it lost; at no moment does it name anything but a whole version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bcc_ops.exceptions import ArtifactError, ModelError, ObjectNotFound, PreconditionFailed, PromotionLost, UnsafeStore
from bcc_ops.runs.documents import (
    Anchor,
    ChampionDocument,
    ChampionMove,
    HistoryDocument,
    Hold,
    ModelDocument,
    Reference,
    digest_of,
    parse_document,
)
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import AS_OF_FORMAT, champion_pointer, model_file

MODEL_FILES = {
    "model.h5": "application/x-hdf5",
    "split.parquet": "application/vnd.apache.parquet",
    "out_of_fold.parquet": "application/vnd.apache.parquet",
    "evaluation.json": "application/json",
    "model_card.md": "text/markdown; charset=utf-8",
    "model.json": "application/json",
}
"""A version's files in the order in which they are written, with their content types."""

LONGEST_HISTORY = 200
"""Earlier champions that the pointer lists itself. With one more, the older half goes into a document of its own."""

LARGEST_POINTER = 2**22
"""Bytes of the pointer that are read. One with a whole history, and thousands of models withdrawn, has less than a tenth."""

HISTORY_FOLDER = ".champion-history"
PROBE = ".conditional-writes"
"""Beside the versions; a name with a dot in front is never a version."""


@dataclass(frozen=True)
class Pointer:
    """The champion's pointer as it was read. If `champion` is None, `problem` says why it cannot be read, and the way out."""

    champion: ChampionDocument | None
    etag: str
    problem: str | None = None
    content: bytes = b""


def version_name(as_of: datetime, *contents: str) -> str:
    """Return a version's name: when its images are from, and what it is made of. Names sort by time.

    The same content has the same name, so that a retry writes nothing twice, and other content never meets a name that
    is taken.

    Args:
        as_of: of the snapshot, aware.
        contents: sha256 of everything that the version's files are made of: the model, the run's documents, the card's template.
    """
    return f"{as_of.astimezone(timezone.utc).strftime(AS_OF_FORMAT)}-{digest_of(contents)[:12]}"


class ModelRegistry:
    """The versions and the pointer under one prefix.

    Args:
        store: the bucket.
        models_prefix: where the versions are stored.
    """

    def __init__(self, store: ObjectStore, models_prefix: str) -> None:
        self.store = store
        self.models_prefix = models_prefix
        self.pointer_key = champion_pointer(models_prefix)

    def key(self, version: str, name: str) -> str:
        """Return the key of one of a version's files."""
        return model_file(self.models_prefix, version, name)

    def read_pointer(self) -> Pointer | None:
        """Return the pointer as it is now, damaged or not; None if no model is in use yet."""
        try:
            content, etag = self.store.get_with_etag(self.pointer_key, at_most=LARGEST_POINTER + 1)
        except ObjectNotFound:
            return None
        where = self.store.uri(self.pointer_key)
        try:
            if len(content) > LARGEST_POINTER:
                raise ArtifactError(f"{where} is not a ChampionDocument: it has more than {LARGEST_POINTER:,} bytes")
            return Pointer(parse_document(ChampionDocument, content, where), etag)
        except ArtifactError as error:
            return Pointer(None, etag, f"{error}; bcc_set_champion replaces it with a version of your choice", content)

    def champion(self) -> Pointer | None:
        """Return the pointer as it is now; None if no model is in use yet.

        Raises:
            ArtifactError: it is damaged.
        """
        pointer = self.read_pointer()
        if pointer is not None and pointer.champion is None:
            raise ArtifactError(pointer.problem)
        return pointer

    def versions(self) -> list[str]:
        """Return the names of the versions there are, whole or not, oldest images first."""
        root = f"{self.models_prefix}/"
        names = (folder[len(root) :].rstrip("/") for folder in self.store.list_folders(root))
        return [name for name in names if not name.startswith(".")]

    def history(self, champion: ChampionDocument) -> Iterator[ChampionMove]:
        """Yield every earlier champion, newest first, however long ago.

        Raises:
            ArtifactError, ObjectNotFound: an older part is gone or is not what it was.
        """
        yield from champion.history
        older = champion.older
        while older is not None:
            document = self.store.load(HistoryDocument, older)
            yield from document.moves
            older = document.older

    def require_conditional_writes(self) -> None:
        """Make sure that the store honours `If-None-Match` and `If-Match`: versions and the pointer rely on them.

        Raises:
            UnsafeStore: it writes although the condition does not hold.
        """
        key, content = f"{self.models_prefix}/{PROBE}", b"This object shows that the store honours conditional writes.\n"
        with suppress(PreconditionFailed):
            self.store.put(key, content, create_only=True)
        attempts: dict[str, dict[str, Any]] = {"If-None-Match": {"create_only": True}, "If-Match": {"if_etag": "0" * 32}}
        for header, condition in attempts.items():
            try:
                self.store.put(key, content, **condition)
            except PreconditionFailed:
                continue
            raise UnsafeStore(
                f"the store of {self.store.uri(self.models_prefix)} ignores {header}: of two runs that promote at once, both "
                "would seem to win. No model is promoted there. Use a store with conditional writes (S3 has them)"
            )

    def model(self, version: str) -> ModelDocument:
        """Return a version's `model.json`.

        Raises:
            ModelError: there is no such version, or it was never finished.
            ArtifactError: it is damaged.
        """
        document = self.store.find(ModelDocument, self.key(version, "model.json"))
        if document is None:
            if version in self.versions():
                raise ModelError(f"version {version} is not whole: its upload was cut short before model.json")
            raise ModelError(f"there is no version {version} under {self.store.uri(self.models_prefix)}/")
        if document.version != version:
            raise ArtifactError(f"{self.store.uri(self.key(version, 'model.json'))} is about version {document.version}")
        return document

    def fetch(self, version: str, sha256: str, path: Path) -> Path:
        """Download a version's `.h5` to `path`, if it is the file that was promised.

        Raises:
            ModelError: it is gone, or its content is another (truncated, swapped): it must not be loaded.
        """
        key = self.key(version, "model.h5")
        try:
            content = self.store.get(key)
        except ObjectNotFound:
            raise ModelError(f"{self.store.uri(key)} is gone; choose another version with bcc_set_champion") from None
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise ModelError(
                f"{self.store.uri(key)} is not the promised file: sha256 {found[:12]}… of {len(content)} bytes, not "
                f"{sha256[:12]}…; it is not loaded. Choose another version with bcc_set_champion"
            )
        path.write_bytes(content)
        return path

    def write_once(
        self,
        version: str,
        name: str,
        content: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Reference:
        """Write one of a version's files if it is not there, and return the reference to it.

        Doing it again with the same content changes nothing.

        Raises:
            ModelError: the file already exists with other content.
        """
        key = self.key(version, name)
        reference = Reference.of(key, content)
        try:
            self.store.put(
                key,
                content,
                content_type=MODEL_FILES[name],
                metadata={"sha256": reference.sha256, **(metadata or {})},
                tags=tags,
                create_only=True,
            )
        except PreconditionFailed:
            if hashlib.sha256(self.store.get(key)).hexdigest() != reference.sha256:
                raise ModelError(f"{self.store.uri(key)} already exists with other content; versions are written once") from None
        return reference

    def move(
        self,
        document: ModelDocument,
        expected: Pointer | None,
        *,
        by: str,
        reason: str,
        at: datetime,
        by_person: bool = False,
        release: bool = False,
        anchor: Anchor | None = None,
    ) -> ChampionDocument:
        """Let the pointer name `document`'s version, if it still is as `expected`.

        If a person moves it, the champion is held, and the model that it replaces is withdrawn. A run's move changes neither.

        Args:
            document: of a whole version that passed its smoke test.
            expected: the pointer as it was read when this was decided; None for "there was none".
            by: who or what decided.
            reason: why.
            at: now, aware.
            by_person: a person chose this version.
            release: leave no hold behind.
            anchor: what later challengers are measured against besides this version; None if this version becomes the anchor.

        Raises:
            PromotionLost: the pointer has moved since.
        """
        before = expected.champion if expected else None
        history, older = self._listed_history(before)
        hold, withdrawn = (before.hold, before.withdrawn) if before else (None, ())
        if by_person:
            hold = Hold(by=by, at=at, reason=reason)
            replaced = {before.sha256} if before else set()
            withdrawn = tuple(sorted({*withdrawn, *replaced} - {document.model.sha256}))
        champion = ChampionDocument(
            version=document.version,
            sha256=document.model.sha256,
            as_of=document.as_of,
            synthetic=document.synthetic,
            run=document.run,
            at=at,
            by=by,
            reason=reason,
            history=history,
            older=older,
            anchor=anchor or Anchor(version=document.version, sha256=document.model.sha256, since=at, by=by, reason=reason),
            hold=None if release else hold,
            withdrawn=withdrawn,
            replaced=self._archive(expected, at) if expected and before is None else None,
        )
        return self._swap(champion, expected, f"version {champion.version} is uploaded but was not promoted")

    def release(self, expected: Pointer, *, by: str, reason: str, at: datetime) -> ChampionDocument:
        """Release the hold and leave the champion as it is, if the pointer still is as `expected`.

        Raises:
            ArtifactError: the pointer is damaged.
            PromotionLost: the pointer has moved since.
        """
        before = expected.champion
        if before is None:
            raise ArtifactError(expected.problem)
        history, older = self._listed_history(before)
        said = {"by": by, "reason": f"The hold was released: {reason}", "at": at}
        return self._swap(
            before.model_copy(update={**said, "history": history, "older": older, "hold": None}),
            expected,
            "the hold was not released",
        )

    def _swap(self, champion: ChampionDocument, expected: Pointer | None, lost: str) -> ChampionDocument:
        try:
            self.store.put(
                self.pointer_key,
                champion.to_json(),
                content_type="application/json",
                create_only=expected is None,
                if_etag=expected.etag if expected else None,
            )
        except (PreconditionFailed, ObjectNotFound) as error:
            now = self.read_pointer()
            if now and now.champion == champion:
                return champion  # Our own write, whose answer was lost on the way and which the client sent again.
            winner = now.champion.version if now and now.champion else "nothing readable"
            raise PromotionLost(f"{lost}, since the champion has moved to {winner} in the meantime ({error})") from None
        return champion

    def _listed_history(self, before: ChampionDocument | None) -> tuple[tuple[ChampionMove, ...], Reference | None]:
        """Return the history of the next pointer. If it is too long to list, its older half is written into a document first."""
        if before is None:
            return (), None
        moves, older = (_as_move(before), *before.history), before.older
        if len(moves) > LONGEST_HISTORY:
            moves, rest = moves[: LONGEST_HISTORY // 2], moves[LONGEST_HISTORY // 2 :]
            document = HistoryDocument(moves=rest, older=older)
            content = document.to_json()
            key = f"{self.models_prefix}/{HISTORY_FOLDER}/{hashlib.sha256(content).hexdigest()}.json"
            with suppress(PreconditionFailed):  # an attempt before this one wrote it and then lost the race
                self.store.put(key, content, content_type="application/json", create_only=True)
            older = Reference.of(key, content)
        return moves, older

    def _archive(self, unreadable: Pointer, at: datetime) -> str:
        """Keep a copy of a pointer that cannot be read before it is replaced: a newer release may still understand it.

        Of one that is too large, the beginning is kept.
        """
        digest = hashlib.sha256(unreadable.content).hexdigest()[:12]
        key = f"{self.models_prefix}/{HISTORY_FOLDER}/unreadable-{at.astimezone(timezone.utc):{AS_OF_FORMAT}}-{digest}.json"
        with suppress(PreconditionFailed):
            self.store.put(key, unreadable.content, content_type="application/json", create_only=True)
        return key


def _as_move(champion: ChampionDocument) -> ChampionMove:
    return ChampionMove(**champion.model_dump(include=set(ChampionMove.model_fields)))
