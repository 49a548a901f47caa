"""Roll back, or promote a version by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcc_ops.config import Settings
from bcc_ops.exceptions import ConfigError
from bcc_ops.operators.assets import announce, champion_asset
from bcc_ops.operators.base import BccOperator
from bcc_ops.runs.documents import ModelDocument

if TYPE_CHECKING:
    from airflow.sdk import Context


class SetChampionOperator(BccOperator):
    """Test a version's file and let it be the champion; skips where it is the champion already.

    Who asked and why are kept in the pointer's history. Returns `{version, sha256, previous}`.

    Args:
        version: name of a whole version.
        reason: why, for those who read the history.
    """

    template_fields: Sequence[str] = ("version", "reason")

    def __init__(self, *, version: str, reason: str, **kwargs: Any) -> None:
        super().__init__(outlets=[champion_asset(Settings.from_environment())], **kwargs)
        self.version = version
        self.reason = reason

    def work(self, context: Context) -> dict[str, str | None]:
        """Check the form, test the file, move the pointer, announce."""
        from bcc_ops.dataset.sync import sync_images
        from bcc_ops.models.registry import ModelRegistry
        from bcc_ops.promotion.promote import set_champion
        from bcc_ops.promotion.run_upload import smoke_test_version

        version, reason = self.version.strip(), self.reason.strip()
        if not version or not reason:
            raise ConfigError("version and reason are both needed; `python -m bcc_ops models` lists the versions")
        registry = ModelRegistry(self.store, self.settings.models_prefix)
        fetch = partial(sync_images, self.store, cache=self.image_cache)

        def smoke_test(document: ModelDocument, path: Path) -> None:
            smoke_test_version(registry, document, path, fetch, self.log.info)

        asked = context["dag_run"].triggering_user_name or "someone without a login"
        champion = set_champion(registry, version, smoke_test, by=asked, reason=reason, now=datetime.now(timezone.utc))
        announce(context, champion_asset(self.settings), champion.version, champion.sha256)
        previous = champion.history[0].version if champion.history else None
        self.log.info("Champion is now %s, after %s: %s (%s)", champion.version, previous or "none", reason, asked)
        return {"version": champion.version, "sha256": champion.sha256, "previous": previous}
