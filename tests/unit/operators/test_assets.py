"""The assets that the pipeline announces."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow.sdk import DAG

from bcc_ops.config import Settings
from bcc_ops.operators.assets import announce, champion_asset
from bcc_ops.operators.set_champion import SetChampionOperator
from bcc_ops.operators.upload_model import UploadModelOperator
from tests.factories.tasks import context


def test_the_champions_asset_is_the_pointer_and_an_outlet_of_both_tasks() -> None:
    asset = champion_asset(Settings())
    assert (asset.name, asset.uri) == ("bcc_champion", "s3://breast-images/models/champion.json")
    with DAG("d", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
        upload = UploadModelOperator(task_id="upload", run={}, checks={}, split={}, training={}, evaluation={}, gate={})
        choose = SetChampionOperator(task_id="choose", version="v1", reason="better", release_hold="False")
    assert [task.outlets for task in (upload, choose)] == [[asset], [asset]]


def test_an_event_says_which_version_came_into_use() -> None:
    given, asset = context(), champion_asset(Settings())
    announce(given, asset, "v2", "a" * 64)
    assert given["outlet_events"][asset].extra == {"version": "v2", "sha256": "a" * 64}
