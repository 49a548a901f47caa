"""The champion as an Airflow asset: what other DAGs (scoring, deployment) can be scheduled on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import Asset

from bcc_ops.config import Settings
from bcc_ops.runs.paths import champion_pointer

if TYPE_CHECKING:
    from airflow.sdk import Context


def champion_asset(settings: Settings) -> Asset:
    """Return the pointer to the model in use. Each event's `extra` has the version and the file's sha256."""
    uri = f"s3://{settings.bucket}/{champion_pointer(settings.models_prefix)}"
    return Asset(name=f"bcc_champion__{settings.instance}" if settings.instance else "bcc_champion", uri=uri, group=settings.tag)


def announce(context: Context, asset: Asset, version: str, sha256: str) -> None:
    """Say with the task's event on `asset` which version it is about."""
    context["outlet_events"][asset].extra = {"version": version, "sha256": sha256}
