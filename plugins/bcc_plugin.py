"""Register the plugin from Airflow's plugins folder, unless an installed wheel registers it. Nothing else happens here."""

from __future__ import annotations

from bcc_ops.installation import registered_by_wheel

if not registered_by_wheel():
    from bcc_ops.plugin import BccPlugin  # noqa: F401 - Airflow looks for plugins among the names of this module
