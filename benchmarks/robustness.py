"""Ask the fold models of `benchmarks.training` about their own held-out images, changed as another machine would change them.

    python -m benchmarks.robustness IMAGES --results DIR [--seeds 1 2 3] [--write]

DIR is what `benchmarks.training` left: of each seed the five folds' models and answers. Each image is changed at its own size,
before it becomes the square that the network sees, and the model that held its fold out is asked about it. The answers of all
folds are pooled. Blur and grain are measured on an image whose longer side is 256 pixels. `--write` puts the table into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from bcc_ops.dataset.decoding import decode_rgb, fit_square
from bcc_ops.dataset.resources import cores
from bcc_ops.evaluation.metrics import Evaluation
from bcc_ops.runs.documents import FOLDS, FoldDocument, parse_document
from bcc_ops.runs.paths import fold_file
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import read_answers
from benchmarks.report import write_section
from benchmarks.training import CLASSES, evaluated, list_images

METRICS = {"balanced accuracy": "balanced_accuracy", "macro AUC": "macro_auc", "malignant AUC": "malignant.auc"}
UNCHANGED = "as they are"
SIDE = 256
"""Pixels of the longer side, on which blur and grain are measured."""
GRAIN = 0.25
"""Standard deviation of the grain, as a part of the brightness."""
BATCH = 32

Pixels = npt.NDArray[np.uint8]
"""RGB, (height, width, 3)."""


def with_gamma(exponent: float, rgb: Pixels) -> Pixels:
    """Return the image with another gamma: above 1 it is darker."""
    return _by_value(rgb, np.linspace(0, 1, 256) ** exponent)


def with_contrast(factor: float, rgb: Pixels) -> Pixels:
    """Return the image with more or less contrast, about middle gray."""
    return _by_value(rgb, (np.linspace(0, 1, 256) - 0.5) * factor + 0.5)


def blurred(sigma: float, rgb: Pixels) -> Pixels:
    """Return the image softened."""
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigmaX=sigma * max(rgb.shape[:2]) / SIDE), np.uint8)


def with_grain(strength: float, rgb: Pixels) -> Pixels:
    """Return the image with multiplicative grain, the same in all channels and the same again for the same size."""
    height, width = rgb.shape[:2]
    scale = SIDE / max(height, width)
    small = max(1, round(height * scale)), max(1, round(width * scale))
    grain = np.random.default_rng(1).standard_normal(small).astype(np.float32)
    grain = np.asarray(cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC))
    factor = 1 + strength * grain / grain.std()
    grained: Pixels = np.clip(np.rint(rgb * factor[..., None]), 0, 255).astype(np.uint8)
    return grained


def middle(part: float, rgb: Pixels) -> Pixels:
    """Return the middle of the image: `part` of its height and of its width."""
    height, width = rgb.shape[:2]
    inner = max(1, round(height * part)), max(1, round(width * part))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    kept: Pixels = rgb[top : top + inner[0], left : left + inner[1]]
    return kept


def squeezed(part: float, rgb: Pixels) -> Pixels:
    """Return the image with `part` of its width, as high as before."""
    height, width = rgb.shape[:2]
    return np.asarray(cv2.resize(rgb, (max(1, round(width * part)), height), interpolation=cv2.INTER_AREA), np.uint8)


CHANGES: Mapping[str, Callable[[Pixels], Pixels]] = {
    "darker (gamma 1.8)": lambda rgb: with_gamma(1.8, rgb),
    "brighter (gamma 0.55)": lambda rgb: with_gamma(0.55, rgb),
    "contrast 0.55": lambda rgb: with_contrast(0.55, rgb),
    "blurred (sigma 2.2)": lambda rgb: blurred(2.2, rgb),
    f"grain ({GRAIN})": lambda rgb: with_grain(GRAIN, rgb),
    "the middle 76 %": lambda rgb: middle(0.76, rgb),
    "squeezed by a third": lambda rgb: squeezed(2 / 3, rgb),
}


def main() -> None:
    """Ask every fold's model, and print the table."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="the folder that was trained on, with one folder per class")
    parser.add_argument("--results", type=Path, default=Path(".local/benchmarks/training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    paths = {image.sha256: image.path for image in list_images(given.images)}
    report = markdown([evaluate_seed(given.results, seed, paths) for seed in given.seeds])
    print(report)
    if given.write:
        write_section("robustness", report)


def evaluate_seed(folder: Path, seed: int, paths: Mapping[str, Path]) -> dict[str, Evaluation]:
    """Return what changed the images -> the evaluation of the five folds' pooled answers.

    Args:
        folder: the results of `benchmarks.training`.
        seed: of the training.
        paths: sha256 -> file, of the images that were trained on.
    """
    rows: list[SplitRow] = []
    answers: dict[str, list[npt.NDArray[np.float64]]] = {}
    for fold in FOLDS:
        of_fold, recorded = read_answers(_read(folder, seed, fold, "parquet"), CLASSES)
        rows += of_fold
        answers.setdefault(UNCHANGED, []).append(recorded)
        for name, answer in _ask(folder, seed, fold, [_path(row, paths) for row in of_fold]).items():
            answers.setdefault(name, []).append(answer)
        print(f"seed {seed}, fold {fold}: asked about {len(of_fold)} images, changed in {len(CHANGES)} ways", flush=True)
    labels, groups, folds = ([CLASSES.index(row.label) for row in rows], [row.group for row in rows], [row.fold for row in rows])
    return {name: evaluated(labels, np.concatenate(parts), groups, folds) for name, parts in answers.items()}


def _ask(folder: Path, seed: int, fold: int, images: Sequence[Path]) -> dict[str, npt.NDArray[np.float64]]:
    """Return what changed the images -> the answers of a fold's model, (n, classes)."""
    from bcc_ops.models.classifier import load_classifier

    document = parse_document(FoldDocument, _read(folder, seed, fold, "json"), f"fold {fold}")
    model = load_classifier(folder / f"seed-{seed}-{fold_file(fold, 'h5')}", keep_aspect=document.keep_aspect)

    def squares(path: Path) -> list[Pixels]:
        rgb = decode_rgb(path)
        return [fit_square(change(rgb), model.image_size, keep_aspect=model.keep_aspect) for change in CHANGES.values()]

    answers: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in CHANGES}
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(images), BATCH):
            changed = zip(*pool.map(squares, images[start : start + BATCH]))
            for of_change, pixels in zip(answers.values(), changed):
                of_change.append(model.predict_pixels(np.stack(pixels)))
    return {name: np.concatenate(batches).astype(np.float64) for name, batches in answers.items()}


def markdown(seeds: Sequence[Mapping[str, Evaluation]]) -> str:
    """Return the table: means of the seeds, with an interval if there is one seed."""
    lines = [
        "## Robustness: the same images, changed",
        "",
        f"`python -m benchmarks.robustness IMAGES --results DIR --write`; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, "
        f"{len(seeds[0][UNCHANGED].scored.scores.labels)} images, each asked of the model that held it out.",
        "",
        f"| held-out images | {' | '.join(METRICS)} |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    for change in seeds[0]:
        cells = []
        for metric in METRICS.values():
            found = [seed[change].estimate(metric) for seed in seeds]
            values = [one.value for one in found if one.value is not None]
            cells.append(f"{found[0]:.3f}" if len(found) == 1 else f"{np.mean(values):.3f}" if values else "")
        lines.append(f"| {change} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_value(rgb: Pixels, values: npt.NDArray[np.float64]) -> Pixels:
    """Replace each of the 256 pixel values by another one, from 0 to 1."""
    table = np.clip(np.rint(255 * values), 0, 255).astype(np.uint8)
    return table[rgb]


def _read(folder: Path, seed: int, fold: int, ending: str) -> bytes:
    path = folder / f"seed-{seed}-{fold_file(fold, ending)}"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run python -m benchmarks.training IMAGES --results {folder} --seeds {seed} first")
    return path.read_bytes()


def _path(row: SplitRow, paths: Mapping[str, Path]) -> Path:
    if row.sha256 not in paths:
        raise SystemExit(f"{row.key} was trained on but is not in the folder: name the folder that benchmarks.training used")
    return paths[row.sha256]


if __name__ == "__main__":
    main()
