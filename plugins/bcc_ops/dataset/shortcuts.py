"""Do simple properties of the files predict the class?

If they do, a network may learn them instead of the lesion, and every metric on images of the same source looks better than
it is elsewhere. For each set of properties (`PROPERTY_SETS`), small forests are cross-validated with groups kept together, and
the area under the ROC curve of each class against the rest is estimated over groups. A finding warns and never blocks.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bcc_ops.dataset.near_duplicates import group_contents
from bcc_ops.dataset.splits import patient_reader, patient_ties
from bcc_ops.runs.documents import Estimate, ShortcutFinding
from bcc_ops.runs.rows import ContentRow

Floats = npt.NDArray[np.float64]

WARNS_FROM = 0.6
"""A finding warns if the lower end of its interval is above this area: 0.5 is chance."""

LEAST_GROUPS = 10
"""Classes with fewer groups are not reported: the interval would be too wide to mean anything."""

MOST_IMAGES = 2000
"""If there are more, a fixed random sample of whole groups is audited: the interval is narrow by then, and the time is bounded
(a few CPU seconds)."""

_FOLDS = 5
_OVERLAP = 1 + _FOLDS / (_FOLDS - 1)
_TREES = 50
_IMAGES_PER_LEAF = 5
_ONE_SEQUENCE = 0.05


def _size(row: ContentRow) -> tuple[float, ...]:
    return row.width, row.height, row.width / row.height


def _border(row: ContentRow) -> tuple[float, ...]:
    margins = row.border_left, row.border_right, row.border_top, row.border_bottom
    rims = row.rim_left, row.rim_right, row.rim_top, row.rim_bottom
    return *margins, *rims, row.corners_top, row.corners_bottom


def _colour(row: ContentRow) -> tuple[float, ...]:
    return row.coloured, row.saturation


def _file_type(row: ContentRow) -> tuple[float, ...]:
    return tuple(float(row.file_format == name) for name in ("PNG", "JPEG")) + tuple(
        float(row.mode.startswith(mode)) for mode in ("RGB", "RGBA", "L", "P")
    )


def _compression(row: ContentRow) -> tuple[float, ...]:
    return row.file_bytes / (row.width * row.height), row.quantization


def _strokes(row: ContentRow) -> tuple[float, ...]:
    return (row.strokes,)


PIXEL_SETS: Mapping[str, Callable[[ContentRow], tuple[float, ...]]] = {
    "size and aspect": _size,
    "border": _border,
    "colour": _colour,
    "file type": _file_type,
    "compression": _compression,
    "burned-in text": _strokes,
}
"""What leaves a trace in the pixels, so that a network can learn it."""

TOGETHER, NAME = "all of these", "file name"
PROPERTY_SETS = (*PIXEL_SETS, TOGETHER, NAME)
"""The sets of a report, in its order. A network does not see the name: it tells of classes that were collected apart."""


@dataclass(frozen=True)
class ShortcutAudit:
    """The outcome.

    Attributes:
        findings: one per set and class, sets in the order of `PROPERTY_SETS`; empty if nothing is known.
        unavailable: why nothing is known; None if there are findings.
        scores: set -> class -> key -> the held-out probability of the class by these properties alone. Sets whose
            properties do not differ are absent.
        images, audited: how many usable images there are, and how many of them were looked at.
    """

    findings: tuple[ShortcutFinding, ...]
    unavailable: str | None = None
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    images: int = 0
    audited: int = 0

    def warnings(self) -> list[str]:
        """Return one sentence per set that predicts a class. That of all sets together is reported only if it stands alone."""
        by_set: defaultdict[str, list[ShortcutFinding]] = defaultdict(list)
        for finding in self.findings:
            if finding.warning:
                by_set[finding.properties].append(finding)
        if len(by_set) > 1:
            by_set.pop(TOGETHER, None)
        return [_sentence(name, found) for name, found in by_set.items()]


def audit_shortcuts(contents: Sequence[ContentRow], classes: Sequence[str], patient_pattern: str = "") -> ShortcutAudit:
    """Estimate how well simple properties alone predict each class.

    Args:
        contents: rows of contents.parquet; refused and conflicting images are left out.
        classes: in the order of the findings.
        patient_pattern: the run's parameter; images of one patient are one group.
    """
    usable = [row for row in contents if not row.refused]
    if not usable:
        return ShortcutAudit((), "no image is usable")
    if not all(row.file_format and row.width and row.height for row in usable):
        return ShortcutAudit((), "the properties were not measured: an older release checked these images")
    group_of = _groups(usable, patient_pattern)
    rows = _sample(usable, group_of)
    of_class = {name: {group_of[row.key] for row in rows if row.label == name} for name in classes}
    enough = [name for name in classes if len(of_class[name]) >= LEAST_GROUPS]
    if len(enough) < 2:
        counts = ", ".join(f"{len(groups)} {name}" for name, groups in of_class.items())
        return ShortcutAudit((), f"too few independent images: two classes with {LEAST_GROUPS} groups are needed ({counts})")

    labels = np.array([row.label for row in rows])
    groups = np.unique([group_of[row.key] for row in rows], return_inverse=True)[1]
    folds = _folds(labels, groups)
    findings: list[ShortcutFinding] = []
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name, values in _values(rows).items():
        if (values == values[0]).all():
            reason = "it does not differ between the images"
            findings += [_finding(name, label, Estimate.missing(reason)) for label in classes]
            continue
        predicted = _cross_validate(values, labels, folds)
        scores[name] = {label: dict(zip((row.key for row in rows), column.tolist())) for label, column in predicted.items()}
        for label in classes:
            if label in enough:
                estimate = _area(labels == label, predicted[label], folds, groups)
            else:
                estimate = Estimate.missing(f"{len(of_class[label])} independent images; {LEAST_GROUPS} are needed")
            findings.append(_finding(name, label, estimate))
    return ShortcutAudit(tuple(findings), None, scores, len(usable), len(rows))


def _sentence(name: str, findings: Sequence[ShortcutFinding]) -> str:
    found = "; ".join(f"{finding.label} with an AUC of {finding.auc:.2f}" for finding in findings)
    if name == NAME:
        return f"the file name predicts the class ({found}): the classes were collected apart"
    return f"{name} alone {'predict' if ' and ' in name or name == TOGETHER else 'predicts'} the class ({found}): a model may \
learn that instead of the lesion"


def _finding(properties: str, label: str, auc: Estimate) -> ShortcutFinding:
    return ShortcutFinding(properties=properties, label=label, auc=auc, warning=auc.low is not None and auc.low > WARNS_FROM)


def _groups(rows: Sequence[ContentRow], patient_pattern: str) -> dict[str, str]:
    """Return key -> group: near-duplicates, joined if they are of one patient."""
    first: dict[tuple[str, str], str] = {}
    links: dict[tuple[str, str], str] = {}
    patient = patient_reader(patient_pattern)
    for row in rows:
        for tie in [("near-duplicates", row.group), *patient_ties(row, patient)]:
            links[(first.setdefault(tie, row.key), row.key)] = tie[0]
    return group_contents(sorted(row.key for row in rows), links)[0]


def _sample(rows: Sequence[ContentRow], group_of: Mapping[str, str]) -> list[ContentRow]:
    """Return whole groups, drawn by the digest of their name, until `MOST_IMAGES` are reached: the same ones every night."""
    if len(rows) <= MOST_IMAGES:
        return list(rows)
    drawn = sorted(rows, key=lambda row: (hashlib.sha256(group_of[row.key].encode()).digest(), row.key))
    last = group_of[drawn[MOST_IMAGES - 1].key]
    end = next((place for place in range(MOST_IMAGES, len(drawn)) if group_of[drawn[place].key] != last), len(drawn))
    return sorted(drawn[:end], key=lambda row: row.key)


def _values(rows: Sequence[ContentRow]) -> dict[str, Floats]:
    """Return set -> (n, properties)."""
    sets = {name: np.array([read(row) for row in rows], float) for name, read in PIXEL_SETS.items()}
    return {**sets, TOGETHER: np.hstack(list(sets.values())), NAME: _names(rows)}


def _names(rows: Sequence[ContentRow]) -> Floats:
    """Return (n, 5): length and kinds of characters of the names, and the number in them if the classes share one sequence.

    The class's own name is taken out. Numbers that begin again in each class tell only how many images it has.
    """
    labels = {row.label for row in rows}
    label = re.compile("|".join(re.escape(name) for name in sorted(labels, key=len, reverse=True)), re.IGNORECASE)
    stems = [label.sub("", row.key.rpartition("/")[2].rpartition(".")[0]) for row in rows]
    numbers = [int(found[-1][-15:]) if (found := re.findall(r"\d+", stem)) else -1 for stem in stems]
    used_by: defaultdict[int, set[str]] = defaultdict(set)
    for row, number in zip(rows, numbers):
        used_by[number].add(row.label)
    shared = sum(len(users) > 1 for users in used_by.values()) <= _ONE_SEQUENCE * len(used_by)
    shapes = [re.sub(r"\d+", "0", stem) for stem in stems]
    return np.array(
        [
            (
                len(shape),
                sum(character.isalpha() for character in shape),
                sum(character.isupper() for character in shape),
                shape.count("0"),
                number if shared else 0,
            )
            for shape, number in zip(shapes, numbers)
        ],
        float,
    )


def _folds(labels: npt.NDArray[Any], groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return (n,) the fold of each image. Groups stay together; each class is dealt out evenly, the largest groups first."""
    rng = np.random.default_rng(0)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(groups.tolist()):
        members[group].append(place)
    names = np.unique(labels).tolist()
    counts = np.array([[int((labels[places] == name).sum()) for name in names] for _, places in sorted(members.items())])
    size = np.array([(labels == name).sum() for name in names])
    dealt = np.zeros((_FOLDS, len(names)))
    fold_of = np.zeros(len(counts), np.int64)
    for group in sorted(rng.permutation(len(counts)).tolist(), key=lambda group: -int(counts[group].max())):
        cost = [float((((dealt[fold] + counts[group]) / size) ** 2 - (dealt[fold] / size) ** 2).sum()) for fold in range(_FOLDS)]
        fold_of[group] = int(np.argmin(cost))
        dealt[fold_of[group]] += counts[group]
    return fold_of[groups]


def _cross_validate(values: Floats, labels: npt.NDArray[Any], folds: npt.NDArray[np.int64]) -> dict[str, Floats]:
    """Return class -> (n,) the probability of the class, by a forest that was trained on the other folds."""
    from sklearn.ensemble import ExtraTreesClassifier

    predicted = {str(name): np.zeros(len(labels)) for name in np.unique(labels)}
    for fold in range(_FOLDS):
        held_out = folds == fold
        if not held_out.any() or held_out.all():
            continue
        forest = ExtraTreesClassifier(_TREES, min_samples_leaf=_IMAGES_PER_LEAF, max_features=None, random_state=fold)
        forest.fit(values[~held_out], labels[~held_out])
        for name, column in zip(forest.classes_, forest.predict_proba(values[held_out]).T):
            predicted[str(name)][held_out] = column
    return predicted


def _area(
    positive: npt.NDArray[np.bool_], score: Floats, folds: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]
) -> Estimate:
    """Return the mean area under the ROC curve over folds, weighted by their pairs, with its 95 % interval over groups.

    Scores of different folds come from different forests and are not compared. The variance is DeLong's with the influences of
    a group summed (Obuchowski, Biometrics 53, 1997), times Nadeau and Bengio's factor for forests that share training images
    (Machine Learning 52, 2003): without it, a fifth of the intervals miss 0.5 if labels are shuffled. It is not below Hanley and
    McNeil's near an area of 1, where few images show too little of it. The interval is symmetric on the logit, by Student's
    quantile for the groups of the rarer side.
    """
    from scipy.stats import rankdata, t

    area, pairs, influence = 0.0, 0, np.zeros(len(score))
    for fold in np.unique(folds):
        ours, others = np.flatnonzero(positive & (folds == fold)), np.flatnonzero(~positive & (folds == fold))
        weight = len(ours) * len(others)
        if not weight:
            continue
        ranks = rankdata(score[np.concatenate([ours, others])])
        above = (ranks[: len(ours)] - rankdata(score[ours])) / len(others)
        below = 1 - (ranks[len(ours) :] - rankdata(score[others])) / len(ours)
        value = float(above.mean())
        area += weight * value
        pairs += weight
        influence[ours] = weight * (above - value) / len(ours)
        influence[others] = weight * (below - value) / len(others)
    if not pairs:
        return Estimate.missing("no part of the cross-validation has images of the class and of another")
    area /= pairs
    least = min(len(np.unique(groups[positive])), len(np.unique(groups[~positive])))
    variance = _OVERLAP * float((np.bincount(groups, influence / pairs) ** 2).sum())
    inside = min(max(area, 0.5 / (least + 1)), 1 - 0.5 / (least + 1))
    error = math.sqrt(max(variance, inside * (1 - inside) / (2 * least))) / (inside * (1 - inside))
    centre, half = math.log(inside / (1 - inside)), float(t.ppf(0.975, least - 1)) * error
    low, high = (1 / (1 + math.exp(-end)) for end in (centre - half, centre + half))
    return Estimate(value=area, low=min(low, area), high=max(high, area))
