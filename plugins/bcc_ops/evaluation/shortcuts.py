"""Do a model's answers follow the simple properties of the files, beyond what both have to do with the label?

`dataset.shortcuts` tells which properties predict the class. A model need not use them. If its probability of the positive class
rises with the properties' own within each true class too, it probably does, or both follow something else in the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bcc_ops.dataset.shortcuts import PROPERTY_SETS, audit_shortcuts
from bcc_ops.evaluation.evaluate import Evaluated
from bcc_ops.evaluation.intervals import student
from bcc_ops.runs.documents import Estimate, FollowedShortcut
from bcc_ops.runs.rows import ContentRow
from bcc_ops.runs.tables import read_predictions

WARNS_FROM = 0.1
"""A correlation warns if the lower end of its interval is above this: that of chance alone exceeds 0 once in forty times."""

LEAST_GROUPS = 20


def with_shortcuts(evaluated: Evaluated, contents: Sequence[ContentRow], patient_pattern: str) -> Evaluated:
    """Return the evaluation with how much the challenger's answers follow each set of properties.

    Args:
        evaluated: the outcome of `evaluate`.
        contents: the run's contents.parquet.
        patient_pattern: the run's parameter.
    """
    document = evaluated.document
    audit = audit_shortcuts(contents, document.classes, patient_pattern)
    predictions = read_predictions(evaluated.predictions)
    asked = zip(*(predictions[name] for name in ("key", "label", "group", f"challenger_{document.positive_class}")))
    answers = [row for row in asked if row[3] is not None]
    followed = []
    for name in PROPERTY_SETS:
        scores = audit.scores.get(name, {}).get(document.positive_class, {})
        rows = [(label, group, answer, scores[key]) for key, label, group, answer in answers if key in scores]
        if rows:
            labels, groups, probabilities, properties = (np.array(column) for column in zip(*rows))
            correlation = correlation_within_labels(labels, groups, probabilities, properties)
            warning = correlation.low is not None and correlation.low > WARNS_FROM
            followed.append(FollowedShortcut(properties=name, correlation=correlation, warning=warning))
    return replace(evaluated, document=document.model_copy(update={"shortcuts": tuple(followed)}))


def correlation_within_labels(
    labels: NDArray[np.str_], groups: NDArray[np.str_], answers: NDArray[np.float64], scores: NDArray[np.float64]
) -> Estimate:
    """Return Spearman's correlation of two scores within the true classes, with its 95 % interval over groups.

    Both are ranked within each class, so that what they have in common because both predict the class does not count. The
    interval is symmetric on Fisher's scale, by Student's quantile, with the influences of a group summed.

    Args:
        labels: (n,) true classes.
        groups: (n,) images with the same value are one piece of evidence.
        answers: (n,) the model's probability of a class.
        scores: (n,) the properties' probability of the same class.
    """
    from scipy.stats import rankdata

    codes = np.unique(groups, return_inverse=True)[1]
    count = len(np.unique(codes))
    if count < LEAST_GROUPS:
        return Estimate.missing(f"{count} independent images; {LEAST_GROUPS} are needed")
    ranks = np.zeros((2, len(labels)))
    for name in np.unique(labels):
        of_class = labels == name
        for row, values in zip(ranks, (answers, scores)):
            ranked = rankdata(values[of_class])
            row[of_class] = (ranked - ranked.mean()) / len(ranked)
    lengths = np.sqrt((ranks**2).sum(axis=1))
    if not lengths.all():
        return Estimate.missing("the answers or the properties do not differ within any class")
    answer, score = ranks / lengths[:, None]
    value = float(np.clip((answer * score).sum(), -1, 1))
    inside = min(max(value, -1 + 1 / count), 1 - 1 / count)
    influence = np.bincount(codes, answer * score - value / 2 * (answer**2 + score**2))
    error = max(math.sqrt(float((influence**2).sum())) / (1 - inside**2), 1 / math.sqrt(count))
    half = student(count) * error
    low, high = math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half)
    return Estimate(value=value, low=min(low, value), high=max(high, value))
