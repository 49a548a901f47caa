"""Names for patients that do not tell who they are: keyed digests of their identifiers.

Whoever has a pseudonym and not the salt can neither compute nor guess the identifier, however few digits it has. The salt must
stay the same between nights, or nobody would know which images are of one patient.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import unicodedata

from bcc_ops.config import Settings
from bcc_ops.exceptions import ConfigError, ObjectNotFound, PreconditionFailed
from bcc_ops.runs.object_store import ObjectStore

DIGITS = 16
"""Hexadecimal digits of a pseudonym: two of a million patients have the same with a chance of 1 in 30 million."""
SALT_NAME_DIGITS = 8
SHORTEST_SALT = 16
"""Characters of a salt that a person chooses."""
SALT_FILE = "metadata-salt"
"""Under the artifacts prefix: the salt that the first run with patients makes if the deployment has none."""

NOT_KNOWN = frozenset(("na", "n/a", "nan", "none", "null", "nil", "unknown", "not known", "anonymous", "anonymized", "-", "?"))
"""What stands for an empty cell, whatever its case. As a patient, it would make one group of all who are not known."""

_WHOLE_NUMBER = re.compile(r"(\d+)\.0+")


class Pseudonyms:
    """Patients' identifiers -> pseudonyms.

    Args:
        salt: secret bytes.
    """

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    @property
    def salt_name(self) -> str:
        """Name the salt without telling it, so that two runs can be seen to have used the same one."""
        return self._digest("salt")[:SALT_NAME_DIGITS]

    def of(self, patient: str) -> str:
        """Return the pseudonym of an identifier. Case, width, spaces around it and `.0` after a whole number do not matter."""
        spelled = unicodedata.normalize("NFKC", patient).strip().casefold()
        whole = _WHOLE_NUMBER.fullmatch(spelled)
        return self._digest(f"patient\0{whole.group(1) if whole else spelled}")[:DIGITS]

    def _digest(self, text: str) -> str:
        return hmac.new(self._salt, text.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()


def passing_pseudonyms() -> Pseudonyms:
    """Return pseudonyms that only this process knows: for a folder that is looked at once."""
    return Pseudonyms(secrets.token_bytes(32))


def pseudonyms_of(settings: Settings, store: ObjectStore) -> Pseudonyms:
    """Return the deployment's pseudonyms: by `BCC_METADATA_SALT`, or by the salt in the bucket, which is made once.

    Raises:
        ConfigError: the setting is too short to be a secret.
    """
    chosen = settings.metadata_salt.get_secret_value()
    if chosen:
        if len(chosen) < SHORTEST_SALT:
            raise ConfigError(
                f"BCC_METADATA_SALT: needs {SHORTEST_SALT} characters or more, such as `openssl rand -hex 32` gives"
            )
        return Pseudonyms(chosen.encode())
    key = f"{settings.artifacts_prefix}/{SALT_FILE}"
    try:
        return Pseudonyms(store.get(key))
    except ObjectNotFound:
        made = secrets.token_hex(32).encode()
    try:
        store.put(key, made, content_type="text/plain", create_only=True)
    except PreconditionFailed:  # another run was first
        return Pseudonyms(store.get(key))
    return Pseudonyms(made)
