"""How long it takes to check images and to find their near-duplicates.

    python -m benchmarks.near_duplicates [--images FOLDER] [--sizes 25000 50000 100000] [--dry]

Two things: the hashes of 100,000 images brought into candidates and groups (drawn hashes, a third of them near-duplicates of
others), and a folder of real images checked cold, and again with nothing new. Peak memory is the process's own, each
measurement in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import write_section

BUSI = Path(__file__).resolve().parents[2] / "shared" / "data" / "Dataset_BUSI_with_GT"


def draw_hashes(count: int, seed: int = 20261122) -> list[bytes]:
    """Hashes as of `count` images: two thirds at random, one third 0 to 4 bits away from one of those."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (count, 8), dtype=np.uint8)
    originals = count - count // 3
    for number in range(originals, count):
        bits = np.unpackbits(hashes[rng.integers(originals)])
        bits[rng.choice(64, rng.integers(0, 5), replace=False)] ^= 1
        hashes[number] = np.packbits(bits)
    return [row.tobytes() for row in hashes]


def group_hashes(count: int) -> dict[str, Any]:
    """Group the hashes of `count` images: seconds, groups, the largest."""
    from bcc_ops.config import RetrainingConfig
    from bcc_ops.dataset.near_duplicates import group_contents, hash_neighbours

    hashes = draw_hashes(count)
    contents = [f"{number:064x}" for number in range(count)]
    started, worked = time.perf_counter(), time.process_time()
    pairs = hash_neighbours(hashes, RetrainingConfig.resolve({}).hash_distance)
    group_of, _ = group_contents(contents, {(contents[one], contents[other]): "perceptual" for one, other, _ in pairs})
    sizes = Counter(Counter(group_of.values()).values())
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - worked,
        "pairs": len(pairs),
        "groups": sum(count for size, count in sizes.items() if size > 1),
        "largest": max(sizes),
    }


def check_images(folder: str, memory: str) -> dict[str, Any]:
    """Check a folder once: seconds without the imports, and what was found."""
    from bcc_ops.config import RetrainingConfig
    from bcc_ops.dataset.folder_check import check_folder

    started, worked = time.perf_counter(), time.process_time()
    document = check_folder(Path(folder), RetrainingConfig.resolve({}), memory_path=Path(memory))
    groups = [*document.checks.groups, *document.checks.conflicts]
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - worked,
        "images": document.checks.checked,
        "groups": len(groups),
        "conflicts": len(document.checks.conflicts),
        "largest": max((len(group.keys) for group in groups), default=1),
    }


def apart(work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """Do something in a process of its own, and add its peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (work, given))


def _measured(work: Callable[..., dict[str, Any]], given: tuple[Any, ...]) -> dict[str, Any]:
    return {**work(*given), "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _row(first: str, measured: dict[str, Any], *counts: str) -> str:
    cells = [first, f"{measured['seconds']:.1f}", f"{measured['cpu']:.1f}", f"{measured['mb']:.0f} MB"]
    return f"| {' | '.join([*cells, *(f'{measured[name]:,}' for name in counts)])} |"


def main() -> None:
    """Measure, print and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, default=BUSI, help="a folder with one folder of images per class")
    parser.add_argument("--sizes", type=int, nargs="+", default=[25_000, 50_000, 100_000], help="how many hashes to group")
    parser.add_argument("--dry", action="store_true", help="print only")
    given = parser.parse_args()

    lines = ["## Near-duplicates", "", "`python -m benchmarks.near_duplicates`", ""]
    lines += [
        "| hashes | seconds | CPU seconds | peak memory | pairs | groups | largest group |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in given.sizes:
        one = apart(group_hashes, count)
        lines.append(_row(f"{count:,}", one, "pairs", "groups", "largest"))
        print(json.dumps(one))
    if given.images.is_dir():
        lines += [
            "",
            "| images checked | seconds | CPU seconds | peak memory | groups | conflicts | largest group |",
            "|---|---|---|---|---|---|---|",
        ]
        with tempfile.TemporaryDirectory() as scratch:
            for named in ("cold", "nothing new"):
                one = apart(check_images, str(given.images), f"{scratch}/contents.sqlite3")
                lines.append(_row(f"{one['images']}, {named}", one, "groups", "conflicts", "largest"))
                print(json.dumps(one))
    if not given.dry:
        write_section("near-duplicates", "\n".join(lines))


if __name__ == "__main__":
    main()
