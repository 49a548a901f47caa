"""Measure everything, one benchmark after the other: `make bench`.

    python -m benchmarks [--images FOLDER]

On two cores this takes some two hours, most of them the notebook's; each benchmark can be run alone, as its own
docstring says. One that fails does not keep the others from being measured, and shows in the exit status.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.near_duplicates import BUSI


def main() -> int:
    """Run each benchmark in a process of its own, so that none measures what another left in memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=BUSI, help="a folder with one folder of images per class")
    images = str(parser.parse_args().images)
    failed = [
        name
        for name, arguments in (
            ("near_duplicates", ["--images", images]),
            ("shortcuts", ["--images", images, "--write"]),
            ("findings", []),
            ("speed", []),
            ("download", ["--images", images]),
            ("split_histories", []),
            ("scale", [images, "--write"]),
            ("shared_checks", ["--images", images, "--write"]),
            ("celery", [images, "--write"]),
            ("gate_simulation", ["--write"]),
            ("training", [images, "--write"]),
        )
        if subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *arguments]) != 0
    ]
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
