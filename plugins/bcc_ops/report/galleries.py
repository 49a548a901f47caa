"""The plots that show images: wrong cases with where the network looked, content findings, and what augmentation does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bcc_ops.config import FINDINGS
from bcc_ops.dataset.content_findings import choose_examples
from bcc_ops.dataset.decoding import Box, box_in_square, decode_rgb, fit_square
from bcc_ops.report.misclassified import Misclassified, MisclassifiedImage
from bcc_ops.runs.documents import ContentFinding
from bcc_ops.runs.rows import ContentRow

MOST_CASES = 12
MOST_OF_A_FINDING = 6
AUGMENTED_VERSIONS = 6
THUMBNAIL_SIDE = 224

Pixels = npt.NDArray[np.uint8]

Explain = Callable[[Sequence[Path], Sequence[int]], npt.NDArray[np.float32]]
"""Image files and a class index each -> heat maps (n, h, w) in [0, 1]."""


def shown_cases(cases: Misclassified, hidden: Collection[str]) -> list[MisclassifiedImage]:
    """Return the cases that the galleries show: the worst of each kind, as many as there is room for.

    Args:
        cases: all of the run's.
        hidden: keys of images that no page may show, since their text may name a patient.
    """
    return [case for every in (cases.missed, cases.false_alarms) for case in _shown(every, hidden)]


def _shown(cases: Sequence[MisclassifiedImage], hidden: Collection[str]) -> list[MisclassifiedImage]:
    return [case for case in cases if case.key not in hidden][:MOST_CASES]


def draw_galleries(
    cases: Misclassified,
    paths: Mapping[str, Path],
    *,
    hidden: Collection[str],
    classes: Sequence[str],
    positive_class: str,
    explain: Explain | None,
    why_not: str,
    keep_aspect: bool,
    synthetic: bool,
) -> dict[str, bytes]:
    """Draw the wrong cases of each kind that there are.

    Args:
        cases: all of the run's.
        paths: key -> file, of those that `shown_cases` names; a case whose file is missing is left out.
        hidden: as for `shown_cases`; the heading counts them.
        classes: in the model's order.
        positive_class: whose probability is written under each image.
        explain: gives the heat maps; None if there are none.
        why_not: the reason then, a sentence.
        keep_aspect: the model's own: images are drawn as it saw them, so that the heat maps fit.
        synthetic: whether the images are.

    Returns:
        "missed_cancers" and "false_alarms", if there are any -> PNG.
    """
    from bcc_ops.report import figures

    decided = "by the highest probability" if cases.threshold is None else f"from a probability of {cases.threshold:.2f} on"
    note = "Right of each image: what speaks for the answer that was given (Grad-CAM), brighter is more." if explain else why_not
    plots = {}
    for name, title, every in (
        ("missed_cancers", f"Not called {positive_class}, but it is", cases.missed),
        ("false_alarms", f"Called {positive_class}, but it is not", cases.false_alarms),
    ):
        chosen = [case for case in _shown(every, hidden) if case.key in paths]
        if not chosen:
            continue
        originals = [decode_rgb(paths[case.key]) for case in chosen]
        thumbnails = np.stack([fit_square(rgb, THUMBNAIL_SIDE, keep_aspect=keep_aspect) for rgb in originals])
        answers = [classes.index(case.answer) for case in chosen]
        heats = explain([paths[case.key] for case in chosen], answers) if explain else [None] * len(chosen)
        entries = [figures.GalleryEntry(*entry) for entry in zip(chosen, thumbnails, heats)]
        unseen = sum(case.key in hidden for case in every)
        heading = f"{title}: {len(chosen)} of {len(every)}, {positive_class} {decided}"
        heading += f"; not shown, since their text may be a name: {unseen}" if unseen else ""
        plots[name] = figures.to_png(figures.gallery_figure(entries, heading, positive_class, note), synthetic=synthetic)
    return plots


def shown_findings(rows: Iterable[ContentRow], found: Iterable[ContentFinding]) -> dict[str, list[ContentRow]]:
    """Return the images that the gallery of content findings shows of each."""
    return choose_examples(rows, found, MOST_OF_A_FINDING)


def draw_findings(
    shown: Mapping[str, Sequence[ContentRow]],
    found: Sequence[ContentFinding],
    paths: Mapping[str, Path],
    *,
    synthetic: bool,
) -> bytes | None:
    """Draw some images of each content finding; None if every file is missing.

    Args:
        shown: as `shown_findings` returns it.
        found: how many there are of each.
        paths: key -> file, of those that are shown; an image whose file is missing is left out.
        synthetic: whether the images are.
    """
    from bcc_ops.report import figures

    lines = []
    for one in found:
        # One image at a time is held in full: a hundred large ones would not fit into a worker's memory.
        examples = [
            figures.Example(row.key, row.label, fit_square(decode_rgb(paths[row.key]), THUMBNAIL_SIDE, keep_aspect=True))
            for row in shown.get(one.finding, ())
            if row.key in paths
        ]
        if examples:
            lines.append((f"{FINDINGS.get(one.finding, one.finding)}: {len(examples)} of {one.images}", examples))
    return figures.to_png(figures.findings_figure(lines), synthetic=synthetic) if lines else None


def draw_augmentations(
    images: Sequence[tuple[str, Path]],
    augment: Callable[[Pixels, np.random.Generator, Box], Pixels],
    *,
    keep_aspect: bool,
    seed: int,
    synthetic: bool,
) -> bytes:
    """Draw a few training images as they are and as augmentation alters them.

    Args:
        images: class and file of each.
        augment: one random version of an image, uint8 (side, side, 3), that is in this part of its square.
        keep_aspect: the run's parameter.
        seed: of the versions.
        synthetic: whether the images are.
    """
    from bcc_ops.report import figures

    random = np.random.default_rng(seed)
    originals, variants = [], []
    for _, path in images:
        rgb = decode_rgb(path)
        box = box_in_square(rgb.shape, THUMBNAIL_SIDE, keep_aspect=keep_aspect)
        originals.append(fit_square(rgb, THUMBNAIL_SIDE, keep_aspect=keep_aspect))
        variants.append([augment(originals[-1], random, box) for _ in range(AUGMENTED_VERSIONS)])
    labels = [label for label, _ in images]
    return figures.to_png(figures.augmentations_figure(originals, variants, labels), synthetic=synthetic)
