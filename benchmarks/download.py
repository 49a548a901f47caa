"""Cold downloads into the cache, against the notebook's way and the usual tools; and the cost of a very large listing.

    python -m benchmarks.download [--images FOLDER] [--objects 20000] [--rounds 7] [--small-rounds 3]

All ways fetch the same objects from the same local S3 server, one after the other, in turns; the median of the rounds
counts. The server runs on the same machine and shares its cores with whatever downloads. Ours does what the others do
not: it digests every byte, compares sizes and ETags, and keeps an index.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.snapshot import ImageRules, ListingBuilder, compare, list_images
from bcc_ops.dataset.sync import sync_images
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import ImageRow
from bcc_ops.runs.tables import read_rows, write_rows
from benchmarks.report import write_section
from local.s3_server import S3Server, serve

RULES = ImageRules("images", ("benign", "malignant", "normal"), ("*_mask*",))
BUSI = Path(__file__).resolve().parents[2] / "shared" / "data" / "Dataset_BUSI_with_GT"
SMALL = 4096
"""Bytes of each of the many small objects."""
OURS, NOTEBOOK, S5CMD = "this project (obstore in threads, verified, cached)", "the notebook's way (boto3, one by one)", "s5cmd"


class Bucket:
    """A bucket full of images, and the ways to download them. Each way fills an empty folder."""

    def __init__(self, server: S3Server, name: str) -> None:
        self.server = server
        self.name = name
        self.client = server.client()
        self.keys: list[str] = []
        self.rows: list[ImageRow] = []

    def fill(self, objects: dict[str, bytes]) -> None:
        """Upload, and list what is there."""
        self.client.create_bucket(Bucket=self.name)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: self.client.put_object(Bucket=self.name, Key=key, Body=objects[key]), objects))
        self.rows = list_images(ObjectStore(self.client, self.name), RULES).images
        self.keys = [row.key for row in self.rows]

    @property
    def environment(self) -> dict[str, str]:
        """For the command-line tools."""
        return {
            **os.environ,
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.server.endpoint,
        }

    def notebook(self, folder: Path) -> None:
        """`download_file` in a loop."""
        for key in self.keys:
            target = folder / key
            target.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(self.name, key, str(target))

    def boto3_threads(self, folder: Path) -> None:
        """`get_object` in 16 threads, written to a file."""

        def get(key: str) -> None:
            target = folder / key
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(get, self.keys))

    def obstore_threads(self, folder: Path) -> None:
        """obstore's `get` in 16 threads, written to a file."""
        store = S3Store(
            self.name,
            endpoint=self.server.endpoint,
            access_key_id=self.server.access_key,
            secret_access_key=self.server.secret_key,
            region="us-east-1",
            client_options={"allow_http": True},
        )

        def get(key: str) -> None:
            target = folder / key
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(obstore.get(store, key).bytes())

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(get, self.keys))

    def ours(self, folder: Path) -> None:
        """From an empty cache to verified files, as download_images does it."""
        cache = ImageCache(folder / "cache", 10**12)
        images = sync_images(ObjectStore(self.client, self.name), self.rows, cache)
        cache.close()
        if len(images) != len(self.keys):
            raise RuntimeError(f"{len(images)} of {len(self.keys)} images arrived")

    def s5cmd(self, folder: Path) -> None:
        """`s5cmd cp`, with its defaults; masks are left out as we leave them out."""
        self._run(
            [tool("s5cmd"), "--endpoint-url", self.server.endpoint, "--log", "error", "cp", "--exclude", "*_mask*"],
            [f"s3://{self.name}/images/*", f"{folder}/"],
        )

    def aws_sync(self, aws: str, folder: Path) -> None:
        """`aws s3 sync`, with its defaults; masks are left out as we leave them out."""
        self._run([aws, "s3", "sync", "--only-show-errors", "--exclude", "*_mask*"], [f"s3://{self.name}/images/", str(folder)])

    def _run(self, command: list[str], places: list[str]) -> None:
        subprocess.run([*command, *places], env=self.environment, check=True, stdout=subprocess.DEVNULL)


def tool(name: str) -> str:
    """Return a command of this virtual environment, or of the path."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise SystemExit(f"{name} is not installed; `make setup` brings it")
    return found


@contextmanager
def aws_command() -> Iterator[str | None]:
    """`aws`, in an environment of its own since it pins another botocore; None if it is not available."""
    if found := shutil.which("aws"):
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="bench-aws-") as folder:
        try:
            subprocess.run([tool("uv"), "venv", "-q", "-p", sys.executable, folder], check=True)
            subprocess.run([tool("uv"), "pip", "install", "-q", "--python", f"{folder}/bin/python", "awscli"], check=True)
        except (subprocess.CalledProcessError, SystemExit) as error:
            print(f"aws s3 sync is left out: {error}", flush=True)
            yield None
        else:
            yield f"{folder}/bin/aws"


def measure(way: Callable[[Path], None], expected: int | None) -> float:
    """Return the seconds of a cold download into an empty folder, whose files are then counted if a number is expected."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        began = time.perf_counter()
        way(Path(folder))
        seconds = time.perf_counter() - began
        arrived = sum(1 for path in Path(folder).rglob("*") if path.is_file())
    if expected is not None and arrived != expected:
        raise RuntimeError(f"{way}: {arrived} files arrived, not {expected}")
    return seconds


def compare_ways(bucket: Bucket, aws: str | None, rounds: int) -> dict[str, float]:
    """Way -> median seconds."""
    ways: dict[str, Callable[[Path], None]] = {
        NOTEBOOK: bucket.notebook,
        "boto3 `get_object` in 16 threads": bucket.boto3_threads,
        "obstore in 16 threads, bare": bucket.obstore_threads,
        S5CMD: bucket.s5cmd,
        OURS: bucket.ours,
    }
    if aws:
        ways["`aws s3 sync`"] = lambda folder: bucket.aws_sync(aws, folder)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            if number and seconds[name][0] > 60:  # minutes each time: once is enough
                continue
            # Ours counts for itself: it keeps the same content under two names once.
            seconds[name].append(measure(way, None if name == OURS else len(bucket.keys)))
            print(f"{len(bucket.keys)} objects, round {number + 1}, {name}: {seconds[name][-1]:.2f} s", flush=True)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def table(bucket: Bucket, seconds: dict[str, float]) -> str:
    """Return one comparison as a Markdown table."""
    megabytes = sum(row.size for row in bucket.rows) / 1e6
    lines = ["| | seconds | MB/s | objects/s | times the notebook's way | times s5cmd |", "|---|---|---|---|---|---|"]
    for name, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        metrics = (taken, megabytes / taken, len(bucket.keys) / taken, seconds[NOTEBOOK] / taken, seconds[S5CMD] / taken)
        lines.append("| {} | {:.2f} | {:.0f} | {:.0f} | {:.1f} | {:.2f} |".format(name, *metrics))
    return "\n".join(lines)


class ManyKeys:
    """A client whose bucket has a million images. Pages are made on request, and making them is timed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds_for_pages = 0.0

    def pages(self) -> Iterator[dict[str, Any]]:
        """As boto3's paginator of list_objects_v2 gives them."""
        written = datetime(2026, 1, 1, tzinfo=timezone.utc)
        for first in range(0, self.count, 1000):
            began = time.process_time()
            contents = [
                {
                    "Key": f"images/{RULES.classes[n % 3]}/hospital-{n % 97:02d}/patient-{n // 7:07d}/scan ({n:07d}).png",
                    "Size": 180_000 + n % 1000,
                    "ETag": f'"{n:032x}"',
                    "LastModified": written + timedelta(seconds=n),
                    "StorageClass": "STANDARD",
                }
                for n in range(first, min(first + 1000, self.count))
            ]
            self.seconds_for_pages += time.process_time() - began
            yield {"Contents": contents}


def large_listing(count: int) -> str:
    """Return a snapshot of `count` objects and its comparison with the one before: own CPU and memory."""
    client = ManyKeys(count)
    before = write_rows(ImageRow, _listing(ManyKeys(count - 1000)).images)
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.process_time()
    listing = _listing(client)
    listed = time.process_time()
    digest = listing.digest
    digested = time.process_time()
    size = len(write_rows(ImageRow, listing.images))
    written = time.process_time()
    change = compare(read_rows(ImageRow, before), listing.images)
    compared = time.process_time()
    if (len(listing.images), change.added, len(digest)) != (count, 1000, 64):
        raise RuntimeError("the listing is not what was made")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parts = {
        "entries to images": listed - began - client.seconds_for_pages,
        "digest": digested - listed,
        f"images.parquet ({size / 1e6:.0f} MB)": written - digested,
        "reading the previous one and comparing": compared - written,
    }
    lines = ["| | CPU seconds |", "|---|---|", *(f"| {name} | {seconds:.1f} |" for name, seconds in parts.items())]
    lines.append(f"| **together** (bound: 60) | **{sum(parts.values()):.1f}** |")
    return "\n".join(lines) + f"\n\nPeak memory {max(peak, peak_before):.0f} MB (bound: 1500)."


def _listing(client: ManyKeys) -> Any:
    builder = ListingBuilder(RULES, versioned=False)
    for page in client.pages():
        builder.add_page(page)
    return builder.build()


def real_objects(folder: Path) -> dict[str, bytes]:
    """Return the images of one folder per class, masks included, as they would be in the bucket."""
    return {f"images/{path.relative_to(folder)}": path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def small_objects(count: int) -> dict[str, bytes]:
    """Many small objects with different contents."""
    noise = random.Random(20261122)
    return {f"images/{RULES.classes[n % 3]}/scan ({n:06d}).png": noise.randbytes(SMALL) for n in range(count)}


def main() -> None:
    """Measure, print as it goes, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--images", type=Path, default=BUSI, help="a folder with one folder per class; left out if there is none")
    parser.add_argument("--objects", type=int, default=20_000, help="how many small objects")
    parser.add_argument("--rounds", type=int, default=7, help="with the real images")
    parser.add_argument(
        "--small-rounds", type=int, default=3, help="with the small objects, of ways that take less than a minute"
    )
    parser.add_argument("--listing", type=int, default=1_000_000, help="how many keys the large listing has")
    asked = parser.parse_args()
    sections = []
    with tempfile.TemporaryDirectory(prefix="bench-s3-") as data, serve(Path(data)) as server, aws_command() as aws:
        sets = {"small": small_objects(asked.objects)}
        if asked.images.is_dir():
            sets = {"real": real_objects(asked.images), **sets}
        for name, objects in sets.items():
            bucket = Bucket(server, f"bench-{name}")
            bucket.fill(objects)
            size = sum(row.size for row in bucket.rows) / 1e6
            what = "real images" if name == "real" else f"objects of {SMALL} bytes"
            rounds = asked.rounds if name == "real" else asked.small_rounds
            seconds = compare_ways(bucket, aws, rounds)
            heading = f"### Cold download of {len(bucket.keys):,} {what} ({size:.1f} MB), median of {rounds}"
            sections.append(f"{heading}\n\n{table(bucket, seconds)}")
    with multiprocessing.get_context("spawn").Pool(1) as alone:  # so that its memory is its own
        sections.append(f"### Snapshot of {asked.listing:,} objects\n\n{alone.apply(large_listing, (asked.listing,))}")
    introduction = (
        "## Download and listing\n\n"
        "`python -m benchmarks.download [--images FOLDER]`: cold downloads from a local S3 server (SeaweedFS) on the same "
        "machine, whose cores it shares, in turns. Ours digests every byte and keeps an index, which the others do not.\n\n"
        "Downloads go through obstore and not through boto3 in threads because of these metrics; boto3 remains for what "
        "obstore cannot name or verify (`bcc_ops/dataset/object_download.py`)."
    )
    write_section("download", "\n\n".join([introduction, *sections]))


if __name__ == "__main__":
    main()
