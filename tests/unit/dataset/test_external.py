"""What is asked of the external test sets before hours are spent on training."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.external import require_external_images
from bcc_ops.exceptions import ConfigError
from bcc_ops.runs.object_store import ObjectStore

CLASSES = ("benign", "malignant", "normal")
LATER = datetime.now(timezone.utc) + timedelta(days=1)
EARLIER = datetime(2020, 1, 2, tzinfo=timezone.utc)


def warnings_about(store: ObjectStore, as_of: datetime, prefixes: str = "far/Ulm") -> list[str]:
    return require_external_images(store, CLASSES, RetrainingConfig.resolve({"external_prefixes": prefixes}), as_of)


def test_a_whole_set_and_none_are_fine(store: ObjectStore) -> None:
    for name in CLASSES:
        store.put(f"far/Ulm/{name}/1.png", b"content")
    assert warnings_about(store, LATER) == []
    assert warnings_about(store, LATER, "") == []


def test_an_empty_set_fails_and_says_what_is_there_instead(store: ObjectStore) -> None:
    store.put("far/Ulm/Malignant/1.png", b"content")
    with pytest.raises(ConfigError) as caught:
        warnings_about(store, LATER)
    assert str(caught.value) == (
        "external_prefixes: the set 'Ulm' is empty: it has no image in far/Ulm/benign/, far/Ulm/malignant/, "
        "far/Ulm/normal/. "
        "Ignored: 1 folder of no configured class (far/Ulm/Malignant/1.png). Upload its images, or correct the parameter"
    )


def test_a_set_that_lacks_a_class_or_came_later_is_a_warning(store: ObjectStore) -> None:
    store.put("far/Ulm/malignant/1.png", b"content")
    assert warnings_about(store, LATER) == [
        "The external test set Ulm has no benign and no normal image: metrics that need one are missing."
    ]
    assert warnings_about(store, EARLIER) == [
        "The external test set Ulm had no image on 2020-01-02 00:00:00 UTC: the run does without it."
    ]
