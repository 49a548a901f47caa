"""Import Keras without matplotlib and scikit-learn, which it takes along for plots and wrappers that nobody here uses.

They are a third of what its import costs (docs/benchmarks.md), which a person who asks about one image waits for.
Keras treats both as optional: where their import fails it goes on without.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bcc_ops.models.classifier import Classifier

OPTIONAL = ("matplotlib", "sklearn")


def import_keras() -> ModuleType:
    """Import Keras, the lean way where this process has not imported it yet."""
    if "keras" in sys.modules:
        return sys.modules["keras"]
    held_back = [name for name in OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(held_back))  # type: ignore[arg-type]  # None: "there is no such module"
    try:
        return importlib.import_module("keras")
    finally:
        for name in held_back:
            del sys.modules[name]


def load_classifier(path: Path) -> Classifier:
    """`bcc_ops.models.classifier.load_classifier`, with Keras imported the lean way."""
    import_keras()
    from bcc_ops.models.classifier import load_classifier

    return load_classifier(path)
