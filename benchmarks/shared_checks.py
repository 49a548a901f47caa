"""The image checks of a first night, on one worker and shared out among two: time, memory, and whether the results are the same.

    python -m benchmarks.shared_checks [--images FOLDER] [--count 240] [--slices 4] [--rounds 3] [--write]
    python -m benchmarks.shared_checks --small --count 100000 --slices 100 --rounds 1 --workers 2 --new 100

COUNT images, spread over the classes, are in a bucket of a local S3 server. With --small, any number of images is made from
these (`benchmarks.small_images`), and the night after has NEW more. Each worker is a process on one core with an empty
cache, and inspects its share of the slices as `inspect_images` does: text and marks, fingerprints, properties. Then one more
worker, with an empty cache too, does what `check_images` does with what they left in the bucket. One and two workers take turns.
The night after, it checks all images again. The clock runs from the start of the processes to the end of the last one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.feature_search import search_features
from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.image_checks import check_images, inspect_images
from bcc_ops.dataset.inspection_cache import MEMORY_FILE, InspectionCache
from bcc_ops.dataset.shared_inspections import sharing_inspections
from bcc_ops.dataset.snapshot import ImageRules, list_images
from bcc_ops.dataset.sync import sync_images
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import ContentRow
from bcc_ops.runs.tables import write_rows
from benchmarks.near_duplicates import BUSI
from benchmarks.report import write_section
from local.s3_server import S3Server, serve

CLASSES = ("benign", "malignant", "normal")
RULES = ImageRules("images", CLASSES, ("*_mask*",))
CONFIG = RetrainingConfig()
CHECK = "check"
SEARCH = "search"
"""Tells whether the last search, which went on from an earlier one, found what one from the beginning finds."""


def main() -> None:
    """Measure in turns, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=BUSI, help="a folder with a folder of images a class")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="how many share it out, in turns")
    parser.add_argument("--small", action="store_true", help="make small images from those of the folder")
    parser.add_argument("--new", type=int, default=0, help="so many more small images in the night after")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--part", nargs=4, metavar=("BUCKET", "CORE", "CACHE", "SLICES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.new and not given.small:
        parser.error("--new needs --small: any number of other images is not there")
    if given.part:
        bucket, core, cache, slices = given.part
        print(json.dumps(work(bucket, int(core), Path(cache), slices)))
        return
    from benchmarks.small_images import small_images  # brings TensorFlow, which the workers do without

    trials: dict[int, list[dict[str, Any]]] = {workers: [] for workers in given.workers}
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "s3") as server:
        for number in range(given.rounds):
            for workers in given.workers:
                bucket = f"round-{number}-{workers}"
                small = small_images(given.images, given.count + given.new)
                images = islice(small, given.count) if given.small else own_images(given.images, given.count)
                server.client().create_bucket(Bucket=bucket)
                count = fill(server, bucket, images)
                trial = measure(server, Path(folder), bucket, count, workers, given.slices)
                if given.new:
                    fill(server, bucket, small)
                    trial |= measure_night(server, Path(folder), bucket)
                print(workers, trial, flush=True)
                trials[workers].append(trial)
    report = markdown(trials, "A first night of small images" if given.small else "Image checks shared out")
    print(report)
    if given.write:
        write_section("first-night" if given.small else "shared-checks", report)


def own_images(folder: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield key and content of so many images of a folder, spread over it."""
    paths = [path for path in sorted(folder.glob("*/*")) if path.parent.name in CLASSES and "_mask" not in path.name]
    for path in paths[:: max(1, len(paths) // count)][:count]:
        yield f"images/{path.parent.name}/{path.name}", path.read_bytes()


def fill(server: S3Server, bucket: str, images: Iterator[tuple[str, bytes]]) -> int:
    """Put the images into a bucket, and count them."""
    client = server.client()
    with ThreadPoolExecutor(8) as pool:
        return sum(1 for _ in pool.map(lambda image: client.put_object(Bucket=bucket, Key=image[0], Body=image[1]), images))


def measure(server: S3Server, folder: Path, bucket: str, images: int, workers: int, slices: int) -> dict[str, Any]:
    """Let so many workers share the images of a bucket out, and check them on one more."""
    ends = [images * number // slices for number in range(slices + 1)]
    cuts = [f"{begin}-{end}" for begin, end in pairwise(ends)]
    began = time.monotonic()
    running = [
        _start(server, bucket, core, folder / f"{bucket}-worker-{core}", ",".join(cuts[core::workers])) for core in range(workers)
    ]
    inspected = [_result(process) for process in running]
    seconds = time.monotonic() - began
    checked = _result(_start(server, bucket, 0, folder / f"{bucket}-worker-checks", CHECK))
    return {"seconds": seconds, "workers": inspected, "check": checked, "images": images}


def measure_night(server: S3Server, folder: Path, bucket: str) -> dict[str, Any]:
    """Let the worker that checked all images check them again, with those that are new."""
    cache = folder / f"{bucket}-worker-checks"
    began = time.monotonic()
    night = _result(_start(server, bucket, 0, cache, CHECK)) | {"seconds": time.monotonic() - began}
    return {"night": night, "equal": _result(_start(server, bucket, 0, cache, SEARCH))["equal"]}


def _start(server: S3Server, bucket: str, core: int, cache: Path, slices: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.shared_checks", "--part", bucket, str(core), str(cache), slices]
    return subprocess.Popen(command, env={**os.environ, **server.aws_variables}, stdout=subprocess.PIPE, text=True)


def _result(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a worker ended with {process.returncode}")
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result


def work(bucket: str, core: int, cache: Path, slices: str) -> dict[str, Any]:
    """Be a worker: inspect slices of the images, or check all of them."""
    import boto3

    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[core % len(allowed)]})
    store = ObjectStore(boto3.client("s3"), bucket)
    rows = list_images(store, RULES).images
    memory_path = cache / MEMORY_FILE
    memory_path.parent.mkdir(parents=True, exist_ok=True)
    if slices == SEARCH:
        return {"equal": is_as_from_the_beginning(memory_path)}
    digest = ""
    with closing(ImageCache(cache, 10**12)) as images_here:
        if slices == CHECK:
            images = sync_images(store, rows, images_here)
            with sharing_inspections(store, "artifacts", memory_path, {image.sha256 for image in images}, CONFIG):
                found = check_images(
                    images, CONFIG, memory_path=memory_path, snapshot_digest="benchmark", classes=CLASSES, previous=None
                )
            digest = hashlib.sha256(write_rows(ContentRow, found.contents)).hexdigest()
        else:
            for cut in slices.split(","):
                begin, end = map(int, cut.split("-"))
                images = sync_images(store, rows[begin:end], images_here)
                contents = {image.sha256 for image in images}
                with sharing_inspections(store, "artifacts", memory_path, contents, CONFIG, with_search=False):
                    with InspectionCache(memory_path) as memory:
                        inspect_images(images, CONFIG, memory)
    return {
        "cpu_seconds": time.process_time(),
        "peak_mb": _peak_mb(),
        "contents": digest,
    }


def is_as_from_the_beginning(memory_path: Path) -> bool:
    """Return whether the last search of features found what one from the beginning finds."""
    with InspectionCache(memory_path) as memory:
        last = memory.recall_searches()[-1]
        facts = memory.recall(last.contents, CONFIG.min_side, CONFIG.max_pixels)
        return search_features({sha256: known.fingerprint for sha256, known in facts.items() if known.fingerprint}) == last


def _peak_mb() -> float:
    # Linux keeps ru_maxrss across exec: a worker would report its parent's memory, which holds TensorFlow with --small.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if not found:
        raise SystemExit("/proc/self/status does not tell a process's peak memory: run this benchmark on Linux")
    return int(found.group(1)) / 1024


def markdown(trials: dict[int, list[dict[str, Any]]], heading: str) -> str:
    """Return the section: a line per number of workers, with the medians and the range of the rounds."""
    images = next(iter(trials.values()))[0]["images"]
    lines = [
        f"## {heading}",
        "",
        f"`python -m benchmarks.shared_checks {shlex.join(sys.argv[1:])}`",
        "",
        f"{images:,} images. Each worker is a process on one core with an empty cache. Median of the rounds, and their range.",
        "",
        "| workers | seconds | CPU seconds of each | peak MB of each | `check_images` afterwards, CPU seconds | its peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for workers, rounds in trials.items():
        each = [worker for trial in rounds for worker in trial["workers"]]
        columns = (
            _told([trial["seconds"] for trial in rounds]),
            _told([worker["cpu_seconds"] for worker in each]),
            _told([worker["peak_mb"] for worker in each]),
            _told([trial["check"]["cpu_seconds"] for trial in rounds]),
            _told([trial["check"]["peak_mb"] for trial in rounds]),
        )
        lines.append(f"| {workers} | {' | '.join(columns)} |")
    for workers, rounds in trials.items():
        nights = [trial["night"] for trial in rounds if "night" in trial]
        if nights:
            seconds, cpu, peak = (_told([night[what] for night in nights]) for what in ("seconds", "cpu_seconds", "peak_mb"))
            same = "the same pairs" if all(trial["equal"] for trial in rounds) else "**other pairs**"
            lines += [
                "",
                f"The night after those of {workers} workers, with new images: {seconds} seconds, {cpu} CPU seconds, {peak} MB, "
                f"listing and download of what is new included. A search from the beginning finds {same}.",
            ]
    usual = {workers: statistics.median(trial["seconds"] for trial in rounds) for workers, rounds in trials.items()}
    if {1, 2} <= usual.keys():
        digests = {trial["check"]["contents"] for rounds in trials.values() for trial in rounds}
        same = "is the same, byte by byte" if len(digests) == 1 else f"**differs**: {len(digests)} different ones"
        lines += ["", f"Two workers are {usual[1] / usual[2]:.2f} times as fast as one. `contents.parquet` {same}."]
    return "\n".join(lines)


def _told(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    main()
