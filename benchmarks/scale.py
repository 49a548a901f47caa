"""Measure how a night's cost grows with the number of images: time, memory, and requests to list them.

    python -m benchmarks.scale IMAGES [--sizes 1000 10000 100000] [--objects 1000000] [--new 100] [--write]

IMAGES is a folder with one folder per class. Their fingerprints, with bits flipped at random, stand for any number of images,
so that no file is needed: what is measured is the search for near-duplicates as `check_images` does it, with what was learned
of each image in its SQLite file, a first time and with NEW more images. Listings are pages as the store would send them. Each
step runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import write_section

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
KEYS_A_PAGE = 1000
CLASSES = ("benign", "malignant", "normal")


def main() -> None:
    """Measure each size in a process of its own, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--objects", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        kind, size, file = given.part
        step = measure_listing(int(size)) if kind == "listing" else measure_search(kind, given, int(size), Path(file))
        print(json.dumps(step))
        return
    searches = [measure_searches(size) for size in given.sizes]
    listings = [_part("listing", size) for size in given.objects]
    report = markdown(searches, listings, given.new)
    print(report)
    if given.write:
        write_section("scale", report)


def measure_searches(size: int) -> dict[str, Any]:
    """Fill a file with what is known of the images, search the first time, then with more, then from the beginning."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "contents.sqlite3"
        found: dict[str, Any] = {}
        for kind in ("fill", "first", "next", "full"):
            found |= _part(kind, size, file)
        return {**found, "file_mb": file.stat().st_size / 1e6}


def _part(kind: str, size: int, file: Path = Path()) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--part", kind, str(size), str(file)]
    result: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    print(kind, size, result, flush=True)
    return {"size": size, **result}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_search(kind: str, given: argparse.Namespace, size: int, file: Path) -> dict[str, Any]:
    """Do one step of `measure_searches`; "full" tells whether the search that went on found what one from the beginning finds."""
    from bcc_ops.config import RetrainingConfig
    from bcc_ops.dataset.feature_search import search_features
    from bcc_ops.dataset.inspection_cache import InspectionCache
    from bcc_ops.dataset.near_duplicates import Thresholds, find_near_duplicates

    with InspectionCache(file) as memory:
        if kind == "fill":
            memory.remember(synthetic_facts(given.images, size + given.new), 64, 16_000_000)
            return {}
        used = time.process_time()
        names = [_name(number) for number in range(size + (0 if kind == "first" else given.new))]
        facts = memory.recall(names, 64, 16_000_000)
        marks = {sha256: known.fingerprint for sha256, known in facts.items() if known.fingerprint}
        if kind == "full":
            return {"equal": memory.recall_searches()[-1] == search_features(marks)}
        find_near_duplicates(marks, {}, Thresholds.of(RetrainingConfig()), _NoPixels(memory))
        return {f"{kind}_cpu": time.process_time() - used, f"{kind}_mb": _peak_mb()}


class _NoPixels:
    """The memory, with an answer for each pair: nobody has files whose pixels could be compared."""

    def __init__(self, memory: Any) -> None:
        self.recall_searches, self.remember_search = memory.recall_searches, memory.remember_search
        self.recall_features = memory.recall_features

    def recall_similarity(self, pairs: Any) -> dict[Any, Any]:
        """Say of every pair that it is not alike."""
        from bcc_ops.dataset.similarity import Similarity

        return dict.fromkeys(pairs, Similarity(0.0, 1.0))

    def remember_similarity(self, learned: Any) -> None:
        """Keep nothing."""


def _name(number: int) -> str:
    return f"{number * 2654435761 % 2**32:064x}"


def synthetic_facts(folder: Path, count: int) -> Iterator[tuple[str, Any]]:
    """Yield as many contents as asked for: the fingerprints of real images with a fifth of the bits flipped."""
    from bcc_ops.dataset.decoding import decode_rgb
    from bcc_ops.dataset.fingerprints import Fingerprint, fingerprint, to_gray
    from bcc_ops.dataset.inspection_cache import ContentFacts

    originals = []
    for path in sorted(folder.glob("*/*).png"))[:600]:
        rgb = decode_rgb(path)
        originals.append(fingerprint(rgb, to_gray(rgb)).features())
    for number in range(count):
        rng = np.random.default_rng(number)
        points, descriptors = originals[number % len(originals)]
        noise = np.packbits(rng.random((*descriptors.shape, 8), np.float32) < 0.2, axis=-1)[..., 0]
        mark = Fingerprint.of(str(number), rng.bytes(8), points, descriptors ^ noise)
        yield _name(number), ContentFacts(width=500, height=500, mode="L", fingerprint=mark)


def measure_listing(size: int) -> dict[str, Any]:
    """List, write and compare a snapshot of this many objects; count the listings of an idle night."""
    from bcc_ops.dataset.snapshot import ImageRules, ListingBuilder, compare, write_images
    from bcc_ops.runs.rows import ImageRow
    from bcc_ops.runs.tables import iterate_rows

    used = time.process_time()
    builder = ListingBuilder(ImageRules("images", CLASSES, ("*_mask*",)), versioned=True)
    for start in range(0, size, KEYS_A_PAGE):
        builder.add_page({"Versions": [_version(number) for number in range(start, min(start + KEYS_A_PAGE, size))]})
    listing = builder.build()
    found: dict[str, Any] = {"digest": listing.digest, "listing_cpu": time.process_time() - used, "listing_mb": _peak_mb()}
    table = write_images(listing.images)
    change = compare(iterate_rows(ImageRow, table), listing.images)
    found |= {"changed": change.total, "snapshot_cpu": time.process_time() - used, "snapshot_mb": _peak_mb()}
    found["requests"] = idle_looks(listing) * -(-size // KEYS_A_PAGE)
    return found


def _version(number: int) -> dict[str, Any]:
    key = f"images/{CLASSES[number % 3]}/hospital/{number:08d}.png"
    told = {"Size": 250_000 + number, "ETag": f'"{number:032x}"', "VersionId": f"{number:032x}"}
    return {"Key": key, "IsLatest": True, "LastModified": NOW, **told}


def idle_looks(listing: Any) -> int:
    """Count the listings of a night of six hours in which nothing comes, with the worker's last one."""
    from bcc_ops.dataset.arrivals import ArrivalWatch
    from bcc_ops.exceptions import NothingNew

    watch = ArrivalWatch(NOW + timedelta(hours=6), 60, 60.0, known={listing.digest: "nothing is new"})
    now, looks = NOW, 1
    while True:
        looks += 1
        try:
            watch.look(listing, now)
        except NothingNew:
            return looks
        now += timedelta(seconds=watch.pause(now))


def markdown(searches: list[dict[str, Any]], listings: list[dict[str, Any]], new: int) -> str:
    """Return the tables."""
    lines = ["## Scale", "", "`python -m benchmarks.scale IMAGES --write`", ""]
    lines += [
        f"| images | first search, CPU s | peak MB | with {new} more, CPU s | peak MB | equal to a full search | file, MB |"
    ]
    lines.append("|---" * 7 + "|")
    for one in searches:
        cells = [f"{one['size']:,}", *(f"{one[name]:,.0f}" for name in ("first_cpu", "first_mb", "next_cpu", "next_mb"))]
        lines.append(f"| {' | '.join(cells)} | {'yes' if one['equal'] else 'no'} | {one['file_mb']:,.0f} |")
    lines += [
        "",
        "| objects | listing, CPU s | peak MB | with snapshot and comparison, CPU s | peak MB | requests in an idle night |",
    ]
    lines.append("|---" * 6 + "|")
    for one in listings:
        cells = [f"{one[name]:,.0f}" for name in ("listing_cpu", "listing_mb", "snapshot_cpu", "snapshot_mb")]
        lines.append(f"| {one['size']:,} | {' | '.join(cells)} | {one['requests']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
