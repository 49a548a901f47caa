"""Content findings against labels that a person assigned by eye, and what looking costs.

    python -m benchmarks.findings [--data FOLDER] [--part tune] [--dry]

`findings_labels.csv` names 240 images of three hospitals, drawn at random, and what a person sees on each. That person saw no
answer of the program. The thresholds were chosen on the third that is marked `tune`; the table is about the other two thirds.

Text is two or more readable letters or digits in a row. One is not: the number beside a caliper, the Q that is left of a
scanner's mark. `cut_device` is what is left of such a mark if two characters are; it counts as text.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.near_duplicates import apart
from benchmarks.report import write_section

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LABELS = Path(__file__).with_name("findings_labels.csv")
FIRST_HOSPITAL = "Dataset_BUSI_with_GT"
NEW_IMAGES = 20

IS_TEXT = frozenset({"axilla", "position", "device", "cut_device", "other_text"})
FOUND_TEXT = frozenset({"axilla", "position", "device", "measurement", "unknown_text", "unread_text"})
COMPARED: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "text of any kind": (IS_TEXT, FOUND_TEXT),
    "axilla": (frozenset({"axilla"}),) * 2,
    "side or position": (frozenset({"position"}),) * 2,
    "calipers": (frozenset({"calipers"}),) * 2,
    "Doppler colour": (frozenset({"doppler"}),) * 2,
    "two views": (frozenset({"two_views"}),) * 2,
    "not an ultrasound image": (frozenset({"not_ultrasound"}),) * 2,
    "nearly blank": (frozenset({"nearly_blank"}),) * 2,
}
"""What is compared: the labels that mean it, and the findings that do."""


def read_labels(part: str) -> dict[str, frozenset[str]]:
    """Return key -> what a person sees, of the images of a part."""
    with LABELS.open(newline="") as file:
        return {row["key"]: frozenset(row["seen"].split()) for row in csv.DictReader(file) if row["part"] == part}


def look(paths: Mapping[str, Path]) -> dict[str, frozenset[str]]:
    """Return what the program finds in each image."""
    from bcc_ops.dataset.content_findings import names_of
    from bcc_ops.dataset.image_content import find_in_contents
    from bcc_ops.dataset.inspection_cache import InspectionCache

    with tempfile.TemporaryDirectory() as scratch, InspectionCache(Path(scratch) / "memory.sqlite3") as memory:
        return {key: frozenset(names_of(found)) for key, found in find_in_contents(paths, (), memory).items()}


def compare(labels: Mapping[str, frozenset[str]], found: Mapping[str, frozenset[str]]) -> list[str]:
    """Return the table's rows: how often each finding is right on images that have it, and on those that do not."""
    rows = []
    for name, (means, says) in COMPARED.items():
        there = [bool(found[key] & says) for key, seen in labels.items() if seen & means]
        absent = [not found[key] & says for key, seen in labels.items() if not seen & means]
        rows.append(f"| {name} | {_share(there)} | {_share(absent)} |")
    return rows


def _share(right: Iterable[bool]) -> str:
    from bcc_ops.evaluation.intervals import wilson

    judged = list(right)
    if not judged:
        return "no such image"
    share = sum(judged) / len(judged)
    low, high = wilson(share, len(judged))
    return f"{share:.2f} ({low:.2f} to {high:.2f}), {sum(judged)} of {len(judged)}"


def check(folder: str, memory: str, most: int, held_back: int) -> dict[str, Any]:
    """Check some images of a folder, without the last ones, and say which of them are marked as axilla."""
    from bcc_ops.config import RetrainingConfig
    from bcc_ops.dataset.folder_check import list_labelled_folder
    from bcc_ops.dataset.image_checks import check_images

    config = RetrainingConfig.resolve({})
    classes, images, _, digest = list_labelled_folder(Path(folder), config)
    images = sorted(images, key=lambda image: image.sha256)[:most]
    images = images[: len(images) - held_back]
    started, worked = time.perf_counter(), time.process_time()
    checks = check_images(images, config, memory_path=Path(memory), snapshot_digest=digest, classes=classes, previous=None)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - worked,
        "images": checks.document.checked,
        "axilla": [key for found in checks.document.findings if found.finding == "axilla" for key in found.keys],
    }


def measure(data: Path, most: int) -> tuple[list[str], list[str]]:
    """Return the rows about what checking costs, and the keys of the images that are marked as axilla."""
    rows, marked = [], []
    with tempfile.TemporaryDirectory() as scratch:
        memory = f"{scratch}/contents.sqlite3"
        for what, held_back in (("for the first time", NEW_IMAGES), (f"again, with {NEW_IMAGES} new ones", 0)):
            one = apart(check, str(data / FIRST_HOSPITAL), memory, most, held_back)
            print(json.dumps(one), flush=True)
            rows.append(f"| {one['images']}, {what} | {one['cpu']:.0f} | {one['seconds']:.0f} | {one['mb']:.0f} MB |")
            marked = one["axilla"]
    return rows, marked


def main() -> None:
    """Measure, print and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds the hospitals' folders")
    parser.add_argument("--part", default="report", choices=("tune", "report"), help="which images to compare on")
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("--wrong", action="store_true", help="name the images that are judged wrongly")
    parser.add_argument("--most", type=int, default=100_000, help="how many images to measure the cost on")
    given = parser.parse_args()

    labels = read_labels(given.part)
    found = look({key: given.data / key for key in labels})
    rows = compare(labels, found)
    print("\n".join(rows), flush=True)
    if given.wrong:
        for key, seen in labels.items():
            for name, (means, says) in COMPARED.items():
                if bool(seen & means) != bool(found[key] & says):
                    print(json.dumps([name, key, sorted(seen), sorted(found[key])]))
    if given.dry:
        return
    costs, marked = measure(given.data, given.most)
    write_section("findings", "\n".join([*_HEAD, *rows, *_COSTS, *costs, "", f"Marked as axilla: {', '.join(marked)}."]))


_HEAD = (
    "## Content findings",
    "",
    "`python -m benchmarks.findings`",
    "",
    "Against labels that a person assigned by eye to 160 images of three hospitals, before any answer of the program was seen.",
    "The thresholds were chosen on 80 other images. A text is two or more readable characters, the cut rest of a scanner's mark",
    "included. Shares with 95 % intervals (Wilson).",
    "",
    "| finding | sensitivity | specificity |",
    "|---|---|---|",
)
_COSTS = (
    "",
    "All image checks, these findings included:",
    "",
    "| images checked | CPU seconds | seconds | peak memory |",
    "|---|---|---|---|",
)


if __name__ == "__main__":
    main()
