"""The challenger, and the champion beside it, on parts of the images: by site, device, year, age, by what a key tells, …

A column of the metadata, the first group of `slice_pattern`, the size of the image and its novelty are all the same here: a name,
and one value per image.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bcc_ops.config import FINDINGS
from bcc_ops.dataset.content_findings import names_of
from bcc_ops.dataset.metadata import ACQUIRED, PATIENT, Metadata, periods
from bcc_ops.dataset.metadata_table import printable
from bcc_ops.evaluation.comparison import AnswersOfVersion, EvaluationPlan
from bcc_ops.evaluation.metrics import Evaluation, Mask, ScoredModel, paired_difference
from bcc_ops.runs.documents import Estimate, EvaluationWithout, SliceEvaluation
from bcc_ops.runs.rows import ContentRow, SplitRow

KEY_PATTERN = "key pattern"
NO_SLICES = "not available: nothing tells one part of the images from another"
MOST_VALUES = 20
"""Values of a column or of the key pattern that become subgroups: the most frequent ones."""


def slice_values(
    rows: Sequence[SplitRow] | Sequence[ContentRow],
    contents: Sequence[ContentRow],
    earlier: frozenset[str] | None,
    pattern: str,
    metadata: Metadata | None = None,
) -> dict[str, list[str]]:
    """Return what the images can be told apart by.

    Args:
        rows: of the images.
        contents: widths, heights and content findings of this snapshot's images.
        earlier: sha256 of the images that were held out before; None in the first run, and outside a run.
        pattern: regular expression whose first group names the slice that a key belongs to; "" for none.
        metadata: what else is known of the images.

    Returns:
        What is sliced by -> one value per row, "" for a row in no slice. Nothing if all rows have the same value.
    """
    pixels = {row.key: row.width * row.height for row in contents}
    sizes = [pixels.get(row.key, 0) for row in rows]
    middle = float(np.median([size for size in sizes if size] or [0]))
    small, large = f"up to {middle / 1e6:.2f} megapixels", f"more than {middle / 1e6:.2f} megapixels"
    by = {"image size": [(small if size <= middle else large) if size else "" for size in sizes]}
    if earlier is not None:
        by["new images"] = ["held out before" if row.sha256 in earlier else "new" for row in rows]
    armpit = {row.key for row in contents if "axilla" in names_of(row.findings)}
    by["armpit"] = ["marked as axilla" if row.key in armpit else "without axilla images" for row in rows]
    if pattern:
        matches = [re.search(pattern, row.key) for row in rows]
        by[KEY_PATTERN] = _common([printable(match.group(1) or "") if match else "" for match in matches])
    if metadata is not None:
        for column in metadata.columns:
            if column.name != PATIENT:
                values = [metadata.value(row.key, column.name) for row in rows]
                name = f"{column.name} (metadata)" if column.name in by else column.name
                by[name] = _common(periods(values) if column.name == ACQUIRED else values)
    return {name: values for name, values in by.items() if len(set(values) - {""}) > 1}


def _common(values: Sequence[str]) -> list[str]:
    """Return the values, "" in place of all but the most frequent ones: a page of thousands of subgroups tells nothing."""
    kept = {value for value, _ in Counter(value for value in values if value).most_common(MOST_VALUES)}
    return [value if value in kept else "" for value in values]


def evaluate_slices(
    by: Mapping[str, Sequence[str]], challenger: ScoredModel, champion: AnswersOfVersion | None, plan: EvaluationPlan
) -> tuple[SliceEvaluation, ...]:
    """Return the metrics of each slice.

    Args:
        by: as `slice_values` returns it.
        challenger: its answers, in the order of the values.
        champion: its honest answers about some of these images; None if it is not compared.
        plan: classes, and how many images a slice needs.
    """
    return tuple(
        _slice(name, value, challenger, champion, chosen=np.array([own == value for own in values]), plan=plan)
        for name, values in by.items()
        for value in sorted(set(values) - {""})
    )


def evaluate_without_findings(
    rows: Sequence[SplitRow], contents: Sequence[ContentRow], challenger: ScoredModel, plan: EvaluationPlan
) -> tuple[EvaluationWithout, ...]:
    """Return the metrics without the images of each content finding, so that a reader sees what these images weigh.

    Args:
        rows: of the images.
        contents: of this snapshot's images, with their findings.
        challenger: its answers, in the order of the rows.
        plan: classes, and how many images a part needs: those with the finding as well as the others.
    """
    findings = {row.key: frozenset(names_of(row.findings)) for row in contents}
    found = []
    for name in FINDINGS:
        holding = np.array([name in findings.get(row.key, ()) for row in rows])
        if min(holding.sum(), (~holding).sum()) >= plan.smallest_slice:
            others = _part(challenger, ~holding, plan)
            found.append(
                EvaluationWithout(
                    finding=name,
                    images=int(holding.sum()),
                    balanced_accuracy=others.estimate("balanced_accuracy"),
                    macro_auc=others.estimate("macro_auc"),
                    positive_auc=others.estimate(f"{plan.positive_class}.auc"),
                )
            )
    return tuple(found)


def _slice(
    by: str, value: str, challenger: ScoredModel, champion: AnswersOfVersion | None, *, chosen: Mask, plan: EvaluationPlan
) -> SliceEvaluation:
    part = _part(challenger, chosen, plan)
    groups, positive_groups = _groups(part, plan)
    if (count := int(chosen.sum())) < plan.smallest_slice:
        missing = Estimate.missing(f"{count} images are too few")
        metrics = dict.fromkeys(("balanced_accuracy", "positive_sensitivity", "positive_specificity"), missing)
    else:
        metrics = {
            "balanced_accuracy": part.estimate("balanced_accuracy"),
            "positive_sensitivity": part.estimate("operating.sensitivity"),
            "positive_specificity": part.estimate("operating.specificity"),
        }
    told = SliceEvaluation(by=by, value=value, images=count, groups=groups, positive_groups=positive_groups, **metrics)
    both = chosen & champion.chosen if champion is not None else chosen
    if champion is None or int(both.sum()) < plan.smallest_slice:
        return told
    ours = _part(challenger, both, plan)
    theirs = _part(champion.scored, both[champion.chosen], plan)
    return told.model_copy(
        update={
            "compared": int(both.sum()),
            "compared_positive_groups": _groups(ours, plan)[1],
            "champion_sensitivity": theirs.estimate("operating.sensitivity"),
            "champion_specificity": theirs.estimate("operating.specificity"),
            "differences": {
                f"{plan.positive_class}_{name}": paired_difference(ours, theirs, metric)
                for name, metric in (
                    ("sensitivity", f"{plan.positive_class}.sensitivity"),
                    ("sensitivity_at_operating_point", "operating.sensitivity"),
                    ("specificity_at_operating_point", "operating.specificity"),
                )
            },
        }
    )


def _part(scored: ScoredModel, chosen: Mask, plan: EvaluationPlan) -> Evaluation:
    return Evaluation(replace(scored.subset(chosen), temperature=None, temperatures=None), plan.classes, plan.positive_class)


def _groups(part: Evaluation, plan: EvaluationPlan) -> tuple[int, int]:
    scores = part.scored.scores
    return len(np.unique(scores.groups)), len(np.unique(scores.groups[scores.labels == plan.positive]))
