"""Check, at the end of an image's build, what a night would otherwise find out: the default backbone's weights are there."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bcc_ops.exceptions import BccError
from bcc_ops.training.pretrained import efficientnet_lite_weights


def main() -> int:
    """Exit status 1: the weights are missing or damaged, in one line."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            arrays = efficientnet_lite_weights("efficientnet_lite0", Path(folder))
    except BccError as error:
        print(f"check_image: {error}", file=sys.stderr)
        return 1
    print(f"the weights of efficientnet_lite0 are there: {len(arrays)} arrays")
    return 0


if __name__ == "__main__":
    sys.exit(main())
