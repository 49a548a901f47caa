"""The tree of errors that the module's docstring draws is the one that the classes are."""

from __future__ import annotations

import re

from bcc_ops import exceptions
from bcc_ops.exceptions import BccError, ImageRefused


def drawn() -> dict[str, tuple[str, bool]]:
    """Class -> its parent, and whether a retry may help, as drawn."""
    tree: dict[str, tuple[str, bool]] = {}
    above = {0: "BccError"}
    for line in (exceptions.__doc__ or "").splitlines():
        if match := re.match(r"([│├└─ ]+)(\w+)( +\*)?", line):
            depth = len(match.group(1)) // 4
            tree[match.group(2)] = (above[depth - 1], match.group(3) is not None)
            above[depth] = match.group(2)
    return tree


def test_the_docstring_draws_every_class_below_its_parent_with_whether_a_retry_can_help() -> None:
    classes = [found for found in vars(exceptions).values() if isinstance(found, type) and issubclass(found, Exception)]
    errors = {error.__name__: error for error in classes if error is not BccError}
    assert drawn() == {name: (error.__bases__[0].__name__, error.retryable) for name, error in errors.items()}  # type: ignore[attr-defined]


def test_a_refused_image_carries_its_reason_apart_from_the_sentence() -> None:
    error = ImageRefused("too small", "41 x 38 px, smallest side 64")
    assert (error.reason, error.detail) == ("too small", "41 x 38 px, smallest side 64")
    assert str(error) == "too small: 41 x 38 px, smallest side 64"
