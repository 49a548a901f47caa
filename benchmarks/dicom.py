"""Real images written as DICOM: do pixels, checks, folds and predictions stay those of the PNGs?

    python -m benchmarks.dicom IMAGES [--model FILE.h5] [--write]

IMAGES is a folder with one folder per class. Each image is written once, in one of six lossless transfer syntaxes and three
photometric interpretations in turn (colour images as RGB and YBR_FULL), with a patient's name planted in every tag that names
one. Both folders then go through the image checks and the split; the DICOM folder twice, alone and after the PNGs, as if an
archive had replaced them. MODEL is asked about both.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from bcc_ops.config import NO_FINDINGS, RetrainingConfig
from bcc_ops.dataset.decoding import decode_rgb
from bcc_ops.dataset.folder_check import check_labelled_folder
from bcc_ops.dataset.splits import split_images
from bcc_ops.runs.rows import AssignmentRow
from benchmarks.report import write_section
from tests.factories.dicom_files import MARKER, dicom_file

SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)
GRAY = ("MONOCHROME1", "MONOCHROME2", "RGB")
COLOUR = ("RGB", "YBR_FULL")


@dataclass(frozen=True)
class Rewritten:
    """An image in both forms."""

    png: Path
    dicom: Path
    syntax: UID
    photometric: str

    @property
    def difference(self) -> int:
        """Largest difference of a channel, 0 to 255."""
        return int(np.abs(decode_rgb(self.png).astype(int) - decode_rgb(self.dicom)).max())


def main() -> None:
    """Write the images, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", type=Path, help="a model file that this project made, trained on padded squares")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pairs = list(rewrite(given.images, Path(scratch)))
        lines = [*compare_pixels(pairs), *compare_runs(pairs, given.images, Path(scratch))]
        if given.model:
            lines.append(compare_answers(pairs, given.model))
        lines.append(find_marker(Path(scratch), [pair.dicom for pair in pairs]))
    report = "\n".join(
        ["## DICOM", "", "`python -m benchmarks.dicom IMAGES --model FILE.h5 --write`", "", "| | |", "|---|---|", *lines]
    )
    print(report)
    if given.write:
        write_section("dicom", report)


def rewrite(images: Path, folder: Path) -> Iterator[Rewritten]:
    """Write each image as DICOM, under its name with another suffix."""
    files = sorted(path for path in images.glob("*/*.png") if "_mask" not in path.name)
    for number, path in enumerate(files):
        rgb = decode_rgb(path)
        is_gray = bool((rgb == rgb[:, :, :1]).all())
        kinds = GRAY if is_gray else COLOUR
        syntax, photometric = SYNTAXES[number % len(SYNTAXES)], kinds[number // len(SYNTAXES) % len(kinds)]
        pixels = rgb[:, :, 0] if photometric.startswith("MONOCHROME") else rgb
        target = folder / path.parent.name / f"{path.stem}.dcm"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(dicom_file(np.ascontiguousarray(pixels), syntax, photometric, PatientID=f"{MARKER}{number}"))
        yield Rewritten(path, target, syntax, photometric)


def compare_pixels(pairs: Sequence[Rewritten]) -> Iterator[str]:
    """One row per photometric interpretation."""
    differences = {pair: pair.difference for pair in pairs}
    for photometric in sorted({pair.photometric for pair in pairs}):
        largest = Counter(differences[pair] for pair in pairs if pair.photometric == photometric)
        told = ", ".join(f"{count} with a largest difference of {most}" for most, count in sorted(largest.items()))
        syntaxes = len({pair.syntax for pair in pairs if pair.photometric == photometric})
        yield f"| pixels, {photometric}, {syntaxes} transfer syntaxes | {told} |"


def compare_runs(pairs: Sequence[Rewritten], images: Path, dicom: Path) -> Iterator[str]:
    """Check and split the PNGs, and then the DICOM files: alone, and with the folds that the PNGs were given."""
    # each file names a patient of its own, who would tie an image to itself alone
    config = RetrainingConfig(content_findings=NO_FINDINGS, max_refused_fraction=1.0)
    assigned: Sequence[AssignmentRow] = ()
    found: list[dict[str, Any]] = []
    for folder in (images, dicom):
        classes, _, _, checks = check_labelled_folder(folder, config)
        alone = split_images(checks.contents, (), config, classes)
        split = split_images(checks.contents, assigned, config, classes)
        assigned = split.assignments
        document = checks.document
        found.append(
            {
                "usable images": document.usable,
                "near-duplicate groups": {frozenset(map(_stem, group.keys)) for group in document.groups},
                "conflicts": {frozenset(map(_stem, group.keys)) for group in document.conflicts},
                "folds, drawn anew": {_stem(row.key): row.fold for row in alone.rows},
                "folds": {_stem(row.key): row.fold for row in split.rows},
            }
        )
    rounded = {_stem(str(pair.dicom.relative_to(dicom))) for pair in pairs if pair.photometric == "YBR_FULL"}
    for one in found:
        folds = one.pop("folds")
        one["folds in a replaced archive, same pixels"] = {key: fold for key, fold in folds.items() if key not in rounded}
        one["folds in a replaced archive, after YBR_FULL"] = {key: fold for key, fold in folds.items() if key in rounded}
    before, after = found
    for name in before:
        same = before[name] == after[name]
        size = sum(before[name].values()) if name == "usable images" else len(before[name])
        told = f"equal ({size:,})" if same else f"**different**: {_differences(before[name], after[name])}"
        yield f"| {name} | {told} |"


def _stem(key: str) -> str:
    return key.rpartition(".")[0]


def _differences(before: object, after: object) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        return f"{sum(before.get(key) != after.get(key) for key in before | after)} of {len(before | after)}"
    if isinstance(before, set) and isinstance(after, set):
        return f"{len(before ^ after)} are in only one of both, of {len(before | after)}"
    return f"{before} and {after}"


def compare_answers(pairs: Sequence[Rewritten], model: Path) -> str:
    """Ask a model about both forms."""
    from bcc_ops.models.classifier import load_classifier

    classifier = load_classifier(model, keep_aspect=True)
    png, dicom = (classifier.predict([getattr(pair, form) for pair in pairs]) for form in ("png", "dicom"))
    exact = np.array([pair.photometric != "YBR_FULL" for pair in pairs])
    moved = np.abs(png - dicom).max(axis=1)
    rounded = f", {moved[~exact].max():.4f} at most after YBR_FULL" if not exact.all() else ""
    changed = int((png.argmax(axis=1) != dicom.argmax(axis=1)).sum())
    return f"| probabilities | differ by {moved[exact].max():.1e} at most{rounded}; {changed} other classes |"


def find_marker(scratch: Path, files: Sequence[Path]) -> str:
    """Look for what was planted in what a worker keeps of the files."""
    from bcc_ops.dataset.dicom import keep_of_dicom

    marker = MARKER.encode()
    planted = sum(marker in path.read_bytes() for path in files)
    kept = sum(marker in keep_of_dicom(path.read_bytes()) for path in files)
    return (
        f"| files that name a patient (deflated ones do it unseen) | {planted} of {len(files)}; of what is kept of them, {kept} |"
    )


if __name__ == "__main__":
    main()
