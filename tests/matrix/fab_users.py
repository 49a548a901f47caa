"""Make a user per role of FAB, and a role that may see no DAG. Run by the interpreter of an environment: password, roles."""

from __future__ import annotations

import sys

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

password, *roles = sys.argv[1:]
with get_application_builder() as builder:
    manager = builder.sm
    website = manager.create_permission("can_read", "Website")
    manager.add_permission_to_role(manager.add_role("NoDags"), website)
    for name in roles:
        made = manager.add_user(name.lower(), name, name, f"{name.lower()}@example.org", manager.find_role(name), password)
        if not made:
            sys.exit(f"no user for the role {name}")
