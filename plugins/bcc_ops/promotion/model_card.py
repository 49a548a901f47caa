"""What a version is, for people: the model card, rendered from the run's documents.

What no document knows (intended use, reference standard) only people can write. It comes from a template file with a
`## Heading` for each of `WRITTEN_BY_PEOPLE`, and is marked as missing if it is: a card must not look complete when it is
not. The same documents and template give the same bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bcc_ops.config import with_positive_class
from bcc_ops.exceptions import ConfigError
from bcc_ops.runs.documents import (
    ChecksDocument,
    Comparison,
    EvaluationDocument,
    ExternalEvaluation,
    GateDocument,
    ModelDocument,
    ModelEvaluation,
    SnapshotDocument,
    SplitDocument,
    TrainingDocument,
    name_fold,
)

LONGEST_TEMPLATE = 100_000
"""Bytes of the template. The card is part of every version and of every report page."""

WRITTEN_BY_PEOPLE = ("Intended use", "Out of scope", "Reference standard", "Patients and devices", "Contact")

MISSING = "**Missing.** Nobody has written this yet; see `BCC_MODEL_CARD_TEMPLATE`."


@dataclass(frozen=True)
class RunDocuments:
    """The documents of one run that a version and its card are made from."""

    snapshot: SnapshotDocument
    checks: ChecksDocument
    split: SplitDocument
    training: TrainingDocument
    evaluation: EvaluationDocument
    gate: GateDocument


def read_template(path: str) -> str:
    """Return the text of the template file; "" if none is configured.

    Raises:
        ConfigError: a file is configured and cannot be read.
    """
    if not path:
        return ""
    try:
        if Path(path).stat().st_size > LONGEST_TEMPLATE:
            raise ConfigError(f"BCC_MODEL_CARD_TEMPLATE: {path} is larger than {LONGEST_TEMPLATE:,} bytes: shorten it")
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"BCC_MODEL_CARD_TEMPLATE: {path} cannot be read as text: {error}") from None


def template_sections(template: str) -> dict[str, str]:
    """Return what people wrote: heading of `WRITTEN_BY_PEOPLE` -> text. Other headings are left alone."""
    parts = re.split(r"^##\s+(.+?)\s*$", template, flags=re.MULTILINE)
    written = {heading.lower(): text.strip() for heading, text in zip(parts[1::2], parts[2::2])}
    return {heading: written[heading.lower()] for heading in WRITTEN_BY_PEOPLE if written.get(heading.lower())}


def render_model_card(model: ModelDocument, run: RunDocuments, template: str) -> str:
    """Return the model card as Markdown.

    Args:
        model: the version's `model.json`.
        run: what it was made from.
        template: the text of the template file, "" for none.
    """
    written = template_sections(template)
    synthetic = "> **The images are synthetic: no metric below says anything about any patient.**\n\n" if model.synthetic else ""
    blocks = [
        f"# {run.snapshot.title} classifier {model.version}",
        f"{synthetic}Classifies an image ({run.snapshot.title}) as {_enumerate(model.classes)}. "
        "Research software, not a medical device.",
        *(f"## {heading}\n\n{written.get(heading, MISSING)}" for heading in WRITTEN_BY_PEOPLE),
        f"## Use of the file\n\n{_usage(model)}",
        f"## Images\n\n{_flow(run)}",
        f"## Split\n\n{_split(run.split)}",
        f"## Training\n\n{_training(run.training)}",
        f"## Metrics on held-out images\n\n{_metrics(run.evaluation)}",
        f"## Calibration and operating point\n\n{_calibration(run.evaluation)}",
        f"## Against the champion before it\n\n{_comparison(run.evaluation.comparison, run.evaluation.positive_class)}",
        f"## Against the anchor\n\n{_against_anchor(run)}",
        f"## Images from elsewhere\n\n{_external(run.evaluation)}",
        f"## The gate's decision\n\n{_gate(run.gate, run.snapshot.positive_class)}",
        f"## Known limits\n\n{_limits(run)}",
    ]
    return "\n\n".join(blocks) + "\n"


def _enumerate(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _usage(model: ModelDocument) -> str:
    side = model.image_size
    threshold = model.operating_point.threshold
    return _table(
        ("", ""),
        [
            ("input", f"RGB, {side} x {side} pixels, raw values 0 to 255, as a batch of shape (n, {side}, {side}, 3)"),
            ("preprocessing", model.preprocessing),
            ("output", f"probabilities of {', '.join(model.classes)}, in this order"),
            (f"{model.positive_class} from", "not available" if threshold is None else f"{threshold:.4f}"),
            ("temperature", "not available" if model.temperature is None else f"{model.temperature:.3f}"),
            ("sha256", f"`{model.model.sha256}`"),
            ("run", f"`{model.run}`"),
        ],
    )


def _flow(run: RunDocuments) -> str:
    snapshot, checks, weights = run.snapshot, run.checks, run.split
    refused = Counter(image.reason for image in checks.refused)
    left_out = Counter(image.reason for image in weights.left_out)
    conflicts = sum(len(group.keys) for group in checks.conflicts)
    rows: list[tuple[object, object]] = [
        (
            f"images under `{snapshot.prefix}` as of {snapshot.as_of:%Y-%m-%d %H:%M:%S} UTC ({snapshot.as_of_source})",
            snapshot.total,
        ),
        *((f"– refused: {reason}", count) for reason, count in sorted(refused.items())),
        ("– one lesion under two labels", conflicts),
        *((("– content findings", excluded),) if (excluded := checks.excluded.get("exclude", 0)) else ()),
        ("= usable", sum(checks.usable.values())),
        *((f"– left out: {reason}", count) for reason, count in sorted(left_out.items())),
        *((f"= {name_fold(fold)}", sum(counts.values())) for fold, counts in weights.counts.items()),
    ]
    flow = _table(("images", "count"), rows)
    per_class = _table(
        ("class", *map(name_fold, weights.counts), "weight"),
        [
            (name, *(counts.get(name, 0) for counts in weights.counts.values()), f"{weights.weights[name]:.3f}")
            for name in weights.classes
        ],
    )
    return f"{flow}\n\n{per_class}\n\n{len(checks.groups)} groups of near-duplicates; snapshot digest `{snapshot.digest[:16]}`."


def _split(weights: SplitDocument) -> str:
    kept = f"{weights.carried_forward} images keep the fold that they had in `{weights.previous_run}`."
    salt = f"salt `{weights.salt}`" if weights.salt else "no salt"
    return (
        f"By {weights.grouping}: images of one are never in two folds; {salt}. "
        f"{kept if weights.previous_run else 'No earlier run drew a split: each image got its fold in this one.'} "
        f"Held-out images `{weights.held_out_digest[:16]}`."
    )


def _training(training: TrainingDocument) -> str:
    determinism = "on" if training.deterministic else "off"
    held_out = ", ".join(str(fold.fold) for fold in training.folds)
    return _table(
        ("", ""),
        [
            ("architecture", f"{training.architecture}, {training.parameters:,} parameters, preset {training.preset}"),
            ("initial weights", training.warm_started_from or training.weights),
            ("model file", f"{training.combined}; it has learned from {training.images} images"),
            *([("held out in turn", f"fold {held_out}")] if held_out else []),
            ("epochs", training.epochs),
            ("seed", f"{training.seed}; determinism {determinism}; {training.determinism_note or 'no reservation'}"),
            ("precision", "mixed, 16 bit" if training.mixed_precision else "32 bit"),
            ("versions", ", ".join(f"{name} {version}" for name, version in sorted(training.versions.items()))),
            ("devices", ", ".join(training.devices)),
            ("time", f"{training.seconds:.0f} s"),
        ],
    )


def _summary(model: ModelEvaluation) -> list[tuple[str, str]]:
    return [
        ("balanced accuracy", format(model.balanced_accuracy)),
        ("accuracy", format(model.accuracy)),
        ("macro AUC", format(model.macro_auc)),
        ("macro F1", format(model.macro_f1)),
        ("loss", format(model.loss)),
    ]


def _metrics(evaluation: EvaluationDocument) -> str:
    model = evaluation.challenger
    metrics = ("sensitivity", "specificity", "precision", "f1", "auc")
    per_class = [
        (name, figures_of.support, *(format(getattr(figures_of, metric)) for metric in metrics))
        for name, figures_of in model.per_class.items()
    ]
    confusion = [(name, *row) for name, row in zip(evaluation.classes, model.confusion_matrix)]
    blocks = [
        f"{model.images} images in {model.groups} groups, each answered by a model that was not trained on it. In brackets 95 % "
        f"intervals, by {evaluation.grouping}.",
        *([evaluation.warm_start_note] if evaluation.warm_start_note else []),
        _table(("metric", "value"), _summary(model)),
        _table(("class", "images", *metrics), per_class),
        _table(("true \\ predicted", *evaluation.classes), confusion),
    ]
    if evaluation.slices:
        slices = [
            (part.by, part.value, part.images, format(part.positive_sensitivity), format(part.positive_specificity))
            for part in evaluation.slices
        ]
        blocks.append(
            _table(
                ("by", "subgroup", "images", f"{evaluation.positive_class} sensitivity at operating point", "specificity there"),
                slices,
            )
        )
    else:
        blocks.append(f"Subgroups: {evaluation.slices_unavailable}.")
    return "\n\n".join(blocks)


def _calibration(evaluation: EvaluationDocument) -> str:
    point, calibration = evaluation.challenger.operating_point, evaluation.challenger.calibration
    return _table(
        ("", ""),
        [
            ("threshold chosen on", f"{point.chosen_on}; wanted sensitivity {point.wanted_sensitivity:.2f}"),
            (f"{evaluation.positive_class} sensitivity there", format(point.sensitivity)),
            (f"{evaluation.positive_class} specificity there", format(point.specificity)),
            ("calibration slope (1 is calibrated, below 1 overconfident)", format(calibration.slope)),
            ("after temperature scaling", format(calibration.slope_scaled)),
            ("calibration error, less what chance adds", format(calibration.error)),
            ("after temperature scaling", format(calibration.error_scaled)),
            ("Brier score", format(calibration.brier)),
        ],
    )


def _comparison(comparison: Comparison | None, positive_class: str, name: str = "Champion") -> str:
    if comparison is None:
        return "There was no champion."
    if comparison.problem or comparison.challenger is None or comparison.champion is None:
        return f"{name} {comparison.champion_version} could not be compared: {comparison.problem}."
    left_out = "; ".join(f"{count} left out: {reason}" for reason, count in comparison.left_out.items()) or "none left out"
    pairs = zip(_summary(comparison.challenger), _summary(comparison.champion))
    rows = [(name, own, other) for (name, own), (_, other) in pairs]
    points = [model.operating_point.sensitivity for model in (comparison.challenger, comparison.champion)]
    rows.append((f"{positive_class} sensitivity at operating point", format(points[0]), format(points[1])))
    differences = [(name.replace("_", " "), format(difference)) for name, difference in comparison.differences.items()]
    return "\n\n".join(
        [
            f"Both on the same {comparison.champion.images} images ({left_out}).",
            *([comparison.caution] if comparison.caution else []),
            _table(("metric", "this version", comparison.champion_version), rows),
            _table(("difference, paired", f"this version minus {comparison.champion_version}"), differences),
        ]
    )


def _against_anchor(run: RunDocuments) -> str:
    becomes = "This version becomes the anchor: later ones are measured against it."
    if run.evaluation.anchor is None:
        anchor = "The champion was the anchor." if run.gate.champion_version else "There was none."
        return f"{anchor} {becomes}" if run.gate.becomes_anchor else anchor
    compared = _comparison(run.evaluation.anchor, run.evaluation.positive_class, "Anchor")
    return f"{compared}\n\n{becomes}" if run.gate.becomes_anchor else compared


def _external(evaluation: EvaluationDocument) -> str:
    blocks = [_external_set(external) for external in evaluation.external] or ["None were configured."]
    if evaluation.file_check is not None:
        check, images = evaluation.file_check, "images from elsewhere" if evaluation.file_check.external else "images"
        blocks.append(
            f"The model file's log loss is {check.file_loss:.3f} on {check.images} {images}, "
            f"its folds' models' {check.folds_loss:.3f}. On own images, both agree in "
            f"{check.agreement:.0%} (the likeliest class) and {check.calls_agreement:.0%} (at the operating point)."
        )
    return "\n\n".join(blocks)


def _external_set(external: ExternalEvaluation) -> str:
    """Return the heading of a set, a sentence about its images, and the metrics of the versions that were asked, side by side."""
    problems = (("champion", external.problem), ("anchor", external.anchor_problem))
    blocks = [
        f"### {external.name}",
        *([external.note] if external.note else []),
        *(f"The {name} could not be asked: {problem}." for name, problem in problems if problem),
    ]
    if external.challenger is None:
        return "\n\n".join(blocks)
    others = {name: model for name, model in (("champion", external.champion), ("anchor", external.anchor)) if model}
    columns = [_summary(model) for model in (external.challenger, *others.values())]
    metrics = [(row[0][0], *(value for _, value in row)) for row in zip(*columns)]
    blocks.append(_table(("metric", "this version" if others else "value", *others), metrics))
    for name, differences in (("champion", external.differences), ("anchor", external.anchor_differences)):
        if differences:
            rows = [(metric.replace("_", " "), format(difference)) for metric, difference in differences.items()]
            blocks.append(_table(("difference, paired", f"this version minus the {name}"), rows))
    return "\n\n".join(blocks)


def _gate(gate: GateDocument, positive_class: str) -> str:
    holds = {True: "yes", False: "no"}
    rows = [
        (with_positive_class(rule.rule, positive_class), holds[rule.passed] if rule.applies else "–", rule.sentence)
        for rule in gate.rules
    ]
    return f"{gate.verdict.replace('_', ' ')}. {' '.join(gate.reasons)}\n\n{_table(('rule', 'holds', 'why'), rows)}"


def _limits(run: RunDocuments) -> str:
    evaluation, weights, snapshot = run.evaluation, run.split, run.snapshot
    limits = []
    if weights.grouping != "patient":
        limits.append(
            "Patients are not known: images of one patient that are not near-duplicates may be in several folds, "
            "which flatters the metrics."
        )
    if weights.patients_unknown:
        limits.append(f"The patients of {weights.patients_unknown} images are not known: they may be in several folds.")
    if not any(external.challenger for external in evaluation.external):
        limits.append("Not evaluated on images from another site or device.")
    if snapshot.as_of_source != "versions":
        limits.append("The bucket keeps no versions: the snapshot is what could still be seen of that moment.")
    if run.gate.holdout_reuse > 1:
        limits.append(
            f"Each held-out image had served {run.gate.holdout_reuse - 1:.1f} gate decisions on average before this one."
        )
    wide = evaluation.challenger.operating_point.sensitivity
    if wide.low is not None and wide.high is not None and wide.high - wide.low > 0.1:
        support = evaluation.challenger.per_class[evaluation.positive_class].support
        limits.append(
            f"The interval of the {evaluation.positive_class} sensitivity at the operating point is "
            f"{wide.high - wide.low:.2f} wide: {support} such images are few."
        )
    limits += [f"{warning}" for warning in run.checks.warnings]
    limits.append("An image of anything else gets an answer too; nothing here recognises it.")
    return "\n".join(f"- {limit}" for limit in limits)
