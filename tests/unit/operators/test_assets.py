"""The assets that the pipeline announces."""

from __future__ import annotations

from bcc_ops.config import Settings
from bcc_ops.operators.assets import announce, champion_asset
from tests.factories.tasks import context


def test_the_champions_asset_is_the_pointer() -> None:
    asset = champion_asset(Settings())
    assert (asset.name, asset.uri) == ("bcc_champion", "s3://breast-images/models/champion.json")


def test_an_event_says_which_version_came_into_use() -> None:
    given, asset = context(), champion_asset(Settings())
    announce(given, asset, "v2", "a" * 64)
    assert given["outlet_events"][asset].extra == {"version": "v2", "sha256": "a" * 64}
