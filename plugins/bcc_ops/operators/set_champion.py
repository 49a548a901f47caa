"""Roll back, or promote a version by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcc_ops.exceptions import ConfigError
from bcc_ops.operators.assets import announce, champion_asset
from bcc_ops.operators.base import BccOperator
from bcc_ops.runs.documents import ModelDocument

if TYPE_CHECKING:
    from airflow.sdk import Context


class SetChampionOperator(BccOperator):
    """Test a version's file and let it be the champion, which is held from then on; or release the hold.

    Announces it on its asset, which must be among the `outlets`. Skips if there is nothing to change. Who asked and why are kept
    in the pointer's history. Returns `{version, sha256, previous}`.

    Args:
        version: name of a whole version; empty to release the hold alone.
        reason: why, for those who read the history.
        release_hold: let runs replace the champion again. Rendered as text from the form.
    """

    template_fields: Sequence[str] = ("version", "reason", "release_hold")

    def __init__(self, *, version: str, reason: str, release_hold: str | bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.version = version
        self.reason = reason
        self.release_hold = release_hold

    def work(self, context: Context) -> dict[str, str | None]:
        """Check the form, test the file, move the pointer, announce."""
        from bcc_ops.models.registry import ModelRegistry
        from bcc_ops.promotion.promote import release_hold, set_champion
        from bcc_ops.promotion.run_upload import smoke_test_version

        version, reason, release = self.version.strip(), self.reason.strip(), str(self.release_hold).lower() == "true"
        if not reason or not (version or release):
            raise ConfigError("give a reason, and a version or release_hold; `python -m bcc_ops models` lists the versions")
        registry = ModelRegistry(self.store, self.settings.models_prefix)
        fetch = self.fetch_images

        def smoke_test(document: ModelDocument, path: Path) -> None:
            smoke_test_version(document, path, fetch, self.log.info)

        asked = context["dag_run"].triggering_user_name or "someone without a login"
        now = datetime.now(timezone.utc)
        if not version:
            champion = release_hold(registry, by=asked, reason=reason, now=now)
            self.log.info("Champion %s is no longer held: %s (%s)", champion.version, reason, asked)
            return {"version": champion.version, "sha256": champion.sha256, "previous": champion.version}
        champion = set_champion(registry, version, smoke_test, by=asked, reason=reason, now=now, release_hold=release)
        announce(context, champion_asset(self.settings), champion.version, champion.sha256)
        previous = champion.history[0].version if champion.history else None
        self.log.info("Champion is now %s, after %s: %s (%s)", champion.version, previous or "none", reason, asked)
        return {"version": champion.version, "sha256": champion.sha256, "previous": previous}
