"""Write the UI's logins, from the environment, to where Airflow's simple auth manager reads them.

`AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS` names the users; `LOGIN_<NAME>` is the password of each. The file is only ever
readable by its owner, and is in memory (docker-compose.yaml mounts a tmpfs there).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path


def logins(environment: Mapping[str, str]) -> dict[str, str]:
    """User -> password, for every configured user.

    Raises:
        KeyError: a user has no password; the argument is the variable's name.
    """
    users = [user.split(":")[0].strip() for user in environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"].split(",")]
    return {user: environment[f"LOGIN_{user.upper()}"] for user in users}


def main() -> int:
    """Write the file. Exit status 1: a password is missing."""
    try:
        content = json.dumps(logins(os.environ))
    except KeyError as missing:
        print(f"write_logins: {missing.args[0]} is not set", file=sys.stderr)
        return 1
    path = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
