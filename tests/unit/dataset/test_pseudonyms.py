"""Pseudonyms stay the same between nights, and tell nothing to who has no salt."""

from __future__ import annotations

import pytest

from bcc_ops.config import Settings
from bcc_ops.dataset.pseudonyms import Pseudonyms, passing_pseudonyms, pseudonyms_of
from bcc_ops.exceptions import ConfigError, ObjectNotFound, PreconditionFailed
from bcc_ops.runs.object_store import ObjectStore


class Shelf(ObjectStore):
    """A bucket in memory. `first` writes what another run writes between our look and our write."""

    def __init__(self, first: bytes | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.first = first

    def get(self, key: str, version_id: str | None = None) -> bytes:
        if key not in self.objects:
            raise ObjectNotFound(key)
        return self.objects[key]

    def put(self, key: str, content: bytes, **options: object) -> str:
        assert options["create_only"]
        if self.first:
            self.objects[key] = self.first
        if key in self.objects:
            raise PreconditionFailed(key)
        self.objects[key] = content
        return ""


def test_one_patient_has_one_pseudonym_however_it_is_spelled() -> None:
    names = Pseudonyms(b"salt")
    assert len({names.of(patient) for patient in ("elco", "ELCO", " Elco ", "ＥＬＣＯ")}) == 1
    assert len({names.of(patient) for patient in ("17", "17.0", "017", "18")}) == 3


def test_another_salt_gives_other_pseudonyms_and_another_name() -> None:
    ours, theirs = Pseudonyms(b"salt"), passing_pseudonyms()
    assert ours.of("ELCO") != theirs.of("ELCO")
    assert ours.salt_name != theirs.salt_name
    assert "ELCO" not in ours.of("ELCO") and "salt" not in ours.salt_name


def test_the_salt_in_the_bucket_is_made_once() -> None:
    shelf = Shelf()
    first, second = (pseudonyms_of(Settings(), shelf) for _ in range(2))
    assert first.of("ELCO") == second.of("ELCO")
    assert list(shelf.objects) == ["artifacts/metadata-salt"]
    assert len(shelf.objects["artifacts/metadata-salt"]) == 64
    assert pseudonyms_of(Settings(), Shelf()).of("ELCO") != first.of("ELCO")


def test_of_two_runs_that_make_a_salt_at_once_both_use_the_first() -> None:
    assert pseudonyms_of(Settings(), Shelf(first=b"theirs")).of("ELCO") == Pseudonyms(b"theirs").of("ELCO")


def test_the_deployments_own_salt_counts_and_is_kept_out_of_the_bucket() -> None:
    shelf = Shelf()
    settings = Settings.from_environment({"BCC_METADATA_SALT": "a secret of the tests"})
    assert pseudonyms_of(settings, shelf).of("ELCO") == Pseudonyms(b"a secret of the tests").of("ELCO")
    assert not shelf.objects
    assert "secret of" not in f"{settings!r}"


def test_a_salt_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(ConfigError, match="BCC_METADATA_SALT: needs 16 characters"):
        pseudonyms_of(Settings.from_environment({"BCC_METADATA_SALT": "salt"}), Shelf())
