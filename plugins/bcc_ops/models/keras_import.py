"""Import Keras without matplotlib and scikit-learn, which it loads for plots and wrappers that nobody uses here.

They are a third of what its import costs (docs/benchmarks.md), and a person who asks about one image waits for it. Keras treats
both as optional: if their import fails, it goes on without them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

OPTIONAL = ("matplotlib", "sklearn")


def import_keras() -> ModuleType:
    """Import Keras, the lean way if this process has not imported it yet."""
    if "keras" in sys.modules:
        return sys.modules["keras"]
    held_back = [name for name in OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(held_back))  # type: ignore[arg-type]  # None: "there is no such module"
    try:
        return importlib.import_module("keras")
    finally:
        for name in held_back:
            del sys.modules[name]
