"""The trigger that waits for new images: what it is made again from. How it waits is tested with its sensor."""

from __future__ import annotations

from typing import Any

from bcc_ops.triggers.new_images import NewImagesTrigger


def test_the_trigger_serialises_to_what_makes_it_again() -> None:
    arguments: dict[str, Any] = {
        "aws_conn_id": "aws_default",
        "bucket": "breast-images",
        "rules": ["images", ["benign", "malignant", "normal"], ["*_mask*"], 64_000_000],
        "versioned": True,
        "gives_way_in": "bcc_retraining",
        "watch": {
            "deadline": "2026-11-22T08:00:00+00:00",
            "settle_seconds": 60,
            "poke_interval": 60.0,
            "patient": True,
            "known": {"abc": "the 3 images are those of the last assessed run, x"},
            "digest": "abc",
            "unchanged_since": "2026-11-22T01:00:00+00:00",
            "failures": 2,
            "not_before": "2026-11-22T02:05:00+00:00",
            "idle": True,
        },
    }
    trigger = NewImagesTrigger(**arguments)
    assert trigger.serialize() == ("bcc_ops.triggers.new_images.NewImagesTrigger", arguments)
    assert NewImagesTrigger(**trigger.serialize()[1]).serialize() == trigger.serialize()
