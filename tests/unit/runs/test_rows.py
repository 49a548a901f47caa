"""What a component without the worker's packages needs of a run's tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LISTING = """
import sys
for name in ("numpy", "pyarrow", "cv2", "PIL", "tensorflow"):
    sys.modules[name] = None
from datetime import datetime, timezone
from bcc_ops.dataset.snapshot import ImageRules, ListingBuilder
builder = ListingBuilder(ImageRules("images", ("benign",), ()), versioned=False)
entry = {"Key": "images/benign/a.png", "Size": 9, "ETag": "e", "LastModified": datetime.now(timezone.utc)}
builder.add_page({"Contents": [entry]})
print(len(builder.build().images), len(builder.build().digest))
"""


def test_a_triggerer_without_the_workers_packages_lists_images() -> None:
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "", "HOME": str(Path.home())}
    answer = subprocess.run([sys.executable, "-c", LISTING], env=environment, capture_output=True, text=True, check=False)
    assert answer.stdout.split() == ["1", "64"], answer.stderr
