"""A run's documents as one HTML page.

Nothing but rendering: documents in, text out; the same documents give the same page. Whatever comes from a document is
escaped, the page loads nothing from anywhere else, and its script and style are named by hash in the policy that it is
served with.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bcc_ops.config import FINDINGS
from bcc_ops.report.line_chart import LineChart, line_chart
from bcc_ops.report.metric_names import spelled, tone
from bcc_ops.report.progress import RunProgress, TaskProgress
from bcc_ops.runs.documents import (
    ApprovalDocument,
    ChampionDocument,
    ChecksDocument,
    Comparison,
    EpochRow,
    Estimate,
    EvaluationDocument,
    ExternalEvaluation,
    FollowedShortcut,
    ModelDocument,
    ModelEvaluation,
    ShortcutFinding,
    name_fold,
)
from bcc_ops.runs.epochs import describe_place
from bcc_ops.runs.history import RunSummary
from bcc_ops.runs.paths import PICTURES
from bcc_ops.runs.record import FILES, FOLD_FILES, RunRecord

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPT = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
_STYLE = (_TEMPLATES / "page.css").read_text(encoding="utf-8")

MOST_ROWS = 200
"""Rows of a list on a page; the document has them all."""

REFRESH_SECONDS = 10


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


LONGEST_CARD = 200_000
"""Characters of a model card that a page shows."""

_OWN_ONLY = f"default-src 'none'; img-src 'self' data:; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)}"
CONTENT_SECURITY_POLICY = f"{_OWN_ONLY}; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
"""What a page may load and run: this module's script and style, by hash, and pictures of its own origin."""

_IN_FILE_POLICY = f"{_OWN_ONLY}; base-uri 'none'; form-action 'none'"
"""The same for the stand-alone file; a policy in the page cannot say who may frame it."""


def decimals(value: float, signed: bool = False) -> str:
    """Return a share or a loss, with three decimals; `signed` gives a difference its sign, with a true minus."""
    return f"{value:+.3f}".replace("-", "−") if signed else f"{value:.3f}".replace("-", "−")


def plain_number(value: float, beside: float | None = None) -> str:
    """Return a share or a count, whichever it is: counts are whole and reach 2, or stand beside one that does."""
    reach = max(abs(value), abs(beside or 0))
    return thousands(value) if value == int(value) and reach >= 2 else decimals(value)


def thousands(value: float) -> str:
    """Return a count, its thousands apart by a narrow space."""
    return f"{value:,.0f}".replace(",", "\u202f")


def size_of(count: int) -> str:
    """Return the bytes as people read them."""
    power = min(int(math.log(count, 1000)), 3) if count else 0
    return f"{count / 1000**power:.{1 if power else 0}f} {('B', 'kB', 'MB', 'GB')[power]}"


def duration(seconds: float) -> str:
    """Return the seconds as `41 s`, `8 min 18 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(when: datetime | None) -> str:
    """Return a moment in UTC, to the minute."""
    return when.astimezone(timezone.utc).strftime("%-d %b %Y, %H:%M UTC") if when else "an unknown moment"


def kind_of_run(kind: str) -> str:
    """Return a run's kind in words."""
    return {"nightly": "nightly run", "event": "run upon an event", "manual": "manual run", "backfill": "backfill"}.get(
        kind, kind
    )


def place(value: float, start: float, end: float) -> float:
    """Return a value's position between two ends, from 0 to 100; values outside are moved to the nearest end."""
    return round(100 * min(1.0, max(0.0, (value - start) / (end - start))), 2)


_FILTERS = {
    "decimals": decimals,
    "plain_number": plain_number,
    "thousands": thousands,
    "bytes": size_of,
    "duration": duration,
    "moment": moment,
    "kind": kind_of_run,
    "place": place,
    "fold": name_fold,
}


def _environment() -> Environment:
    # Templates are read once, as this module is: a half-updated server must not mix the two.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(_FILTERS)
    environment.globals.update(script=Markup(_SCRIPT), style=Markup(_STYLE), policy=_IN_FILE_POLICY)  # noqa: S704
    for template in environment.list_templates(extensions=["jinja"]):
        environment.get_template(template)
    return environment


_ENVIRONMENT = _environment()


def _render(template: str, *, stand_alone: bool = False, refresh: int | None = None, **context: Any) -> str:
    return _ENVIRONMENT.get_template(template).render(stand_alone=stand_alone, refresh=refresh, **context)


@dataclass(frozen=True)
class Verdict:
    """The first lines of a report."""

    tone: str
    mark: str
    title: str
    consequence: str


def verdict_of(run: RunRecord, progress: RunProgress | None = None) -> Verdict | None:
    """Return what became of the challenger, in two sentences; None before the gate has spoken."""
    gate, promotion = run.gate, run.promotion
    if gate is None:
        return None
    stays = f"Champion {gate.champion_version} stays in use." if gate.champion_version else "There is still no champion."
    if gate.verdict == "rejected":
        return Verdict("bad", "✗", "Rejected", f"The challenger was not uploaded. {stays}")
    if progress is not None and progress.awaits_answer:  # An answer or an upload that is there is of an earlier question.
        return Verdict("", "?", "Approved by the gate, waiting for a person", "Nothing is uploaded before somebody answers.")
    if run.approval is not None and run.approval.approved is False:
        return _turned_down(run.approval, stays)
    title = _APPROVED[gate.verdict]
    if promotion is None:
        return _not_uploaded(title, progress)
    if promotion.promoted:
        consequence = f"In use as version {promotion.version}, approved by {promotion.approved_by}."
    else:
        consequence = f"It did not come into use: {promotion.reason}."
    return Verdict("good", "✓", title, consequence)


_APPROVED = {
    "approved": "Approved",
    "approved_without_champion": "Approved, with no champion to compare with",
    "needs_person": "As good as the champion, which a person holds",
}


def _turned_down(approval: ApprovalDocument, stays: str) -> Verdict:
    if approval.timed_out:
        asked = f"A person's approval was asked for until {moment(approval.at)}"
        title = "Approved by the gate, but nobody answered in time"
        return Verdict("", "–", title, f"{asked}; without it the challenger was not uploaded. {stays}")
    title = f"Approved by the gate, turned down by {approval.by}"
    return Verdict("", "–", title, f"The answer came on {moment(approval.at)}: the challenger was not uploaded. {stays}")


def _not_uploaded(title: str, progress: RunProgress | None) -> Verdict:
    if progress is None:
        return Verdict("good", "✓", title, "If it was uploaded, promotion.json beside this file says what became of it.")
    states = {task.task_id: task.state for task in progress.tasks}
    if not progress.is_over:
        return Verdict("good", "✓", title, "It is not uploaded yet.")
    if states.get("upload_model") == "skipped":
        return Verdict("", "–", "Approved by the gate, turned down by a person", "The challenger was not uploaded.")
    return Verdict("", "?", title, "There is no promotion.json: the challenger was not uploaded, or not by this run.")


def render_report(
    run: RunRecord,
    *,
    run_id: str,
    folder: str | None = None,
    plots: Mapping[str, str],
    files: Mapping[str, tuple[str, int | None]],
    progress: RunProgress | None = None,
    model_card: str | None = None,
    ui: str = "",
    stand_alone: bool = False,
    withheld: bool = False,
) -> str:
    """Return the page of one run.

    Args:
        run: its documents; a part whose document is missing says so instead.
        run_id: Airflow's.
        folder: where the documents are stored, for people.
        plots: name in `run_paths.PLOTS` -> address of the picture, of this origin or `data:`. Others are left out.
        files: name in `FILES` -> (address, size in bytes if known). Others are left out.
        progress: of the run, if Airflow can be asked; None in the stand-alone file.
        model_card: Markdown, of the version that the run was uploaded as.
        ui: path of Airflow's UI, without a slash at its end: "" if it is at the root.
        stand_alone: put the policy into the page, for a file that no server adds headers to.
        withheld: say that pictures of patients and downloads are left out for this reader.
    """
    going_on = progress is not None and not progress.is_over
    descriptions = describe_plots(run)
    two_models = bool(run.evaluation and run.evaluation.comparison and run.evaluation.comparison.champion)

    def plots_there(*names: str) -> bool:
        return any(name in plots for name in names)

    def plots_of(*names: str) -> Markup:
        drawn = [_Plot(name, plots[name], *descriptions[name], two_models) for name in names if name in plots]
        return Markup(_ENVIRONMENT.get_template("plots.html.jinja").render(plots=drawn)) if drawn else Markup()  # noqa: S704

    when = run.snapshot.as_of if run.snapshot else run.gate.as_of if run.gate else None
    return _render(
        "report.html.jinja",
        stand_alone=stand_alone,
        withheld=withheld,
        refresh=REFRESH_SECONDS if going_on else None,
        run=run,
        run_id=run_id,
        folder=folder,
        when=when,
        progress=progress,
        culprits=[_Link(task.name, f"{ui}{_task_path(progress, task)}") for task in progress.to_look_at] if progress else (),
        positive_class=run.snapshot.positive_class if run.snapshot else "malignant",
        approval_href=f"{ui}{_task_path(progress, TaskProgress('approve_model', None))}" if progress else None,
        live=live_charts(run.epochs) if going_on and run.epochs and not run.training else None,
        places=_places(run),
        last_epochs=last_epochs(run.epochs),
        verdict=verdict_of(run, progress),
        tiles=_tiles(run.evaluation) if run.evaluation else (),
        compared=_compared(run.evaluation) if run.evaluation else (),
        external=[_external(one, run.evaluation.positive_class) for one in run.evaluation.external] if run.evaluation else [],
        tells_of_file=_tells_of_file(run.evaluation),
        shortcuts=_shortcuts(run),
        finding_names=FINDINGS,
        plots_there=plots_there,
        plots_of=plots_of,
        files=[_File(name, *files[name], FILES[name][0]) for name in FILES if name in files and name not in FOLD_FILES],
        fold_files=[_File(name, *files[name], FILES[name][0]) for name in FOLD_FILES if name in files],
        model_card=_markdown(model_card) if model_card else None,
        most=MOST_ROWS,
        contents=_contents(run, plots_there, files, model_card),
    )


def render_message(heading: str, sentences: Sequence[str], refresh: int | None = None) -> str:
    """Return a page that only says something: an unknown run, a store that does not answer."""
    return _render("message.html.jinja", refresh=refresh, heading=heading, sentences=sentences)


@dataclass(frozen=True)
class RunRow:
    """A run in the list, and the address of its report if it has one."""

    summary: RunSummary
    href: str | None


@dataclass(frozen=True)
class VersionRow:
    """A version in the list: its document, or why there is none."""

    name: str
    document: ModelDocument | None
    problem: str | None


def render_models(
    *,
    champion: ChampionDocument | None,
    champion_uri: str | None,
    runs: Sequence[RunRow],
    versions: Sequence[VersionRow],
    versions_more: int,
    positive_class: str,
    older: str | None,
    paged: bool,
    set_champion_href: str,
    title: str,
    problems: Sequence[str] = (),
) -> str:
    """Return the page about all runs and versions.

    Args:
        champion: the pointer, None if there is none yet.
        champion_uri: address of its `.h5`.
        runs: newest first.
        versions: newest first.
        versions_more: how many versions are not listed.
        positive_class: whose sensitivity is shown.
        older: address of the page with older runs.
        paged: whether this is such a page itself.
        set_champion_href: the UI's page of the DAG that moves the champion, whose id is its last part.
        title: what people call the model.
        problems: what could not be read, a sentence each.
    """
    assessed = [row.summary for row in reversed(runs) if row.summary.verdict]
    return _render(
        "models.html.jinja",
        champion=champion,
        champion_uri=champion_uri,
        runs=runs,
        trend=_trend(assessed, positive_class) if len(assessed) > 1 else None,
        versions=versions,
        versions_more=versions_more,
        positive_class=positive_class,
        older=older,
        paged=paged,
        set_champion_href=set_champion_href,
        set_champion_dag=set_champion_href.rsplit("/", 1)[-1],
        title=title,
        problems=problems,
    )


@dataclass(frozen=True)
class InstanceRow:
    """One of several models in the list, and the address of its page; `problem` says why no run of it starts."""

    name: str
    title: str
    classes: Sequence[str]
    href: str
    dag_href: str
    problem: str | None


def render_instances(rows: Sequence[InstanceRow]) -> str:
    """Return the page that lists the models of a deployment with several."""
    return _render("instances.html.jinja", rows=rows)


@dataclass(frozen=True)
class _Link:
    name: str
    href: str


@dataclass(frozen=True)
class _File:
    name: str
    href: str
    size: int | None
    what: str


@dataclass(frozen=True)
class _Plot:
    name: str
    source: str
    alt: str
    caption: str
    two_models: bool

    @property
    def look(self) -> str:
        """Photos keep their colours in the dark; wide ones take the whole row, middle ones most of it."""
        kind = "photo" if self.name in PICTURES else "chart"
        wide = " wide" if kind == "photo" or self.name in {"history", "trend"} else ""
        middle = self.name == "difference" or (self.name == "confusion_matrix" and self.two_models)
        return kind + (" wide middle" if middle else wide)


def _task_path(progress: RunProgress, task: TaskProgress) -> str:
    dag_id, run_id = quote(progress.dag_id, safe=""), quote(progress.run_id, safe="")
    instance = "" if task.map_index is None else f"/mapped/{task.map_index}"
    return f"/dags/{dag_id}/runs/{run_id}/tasks/{quote(task.task_id, safe='')}{instance}"


def _contents(run: RunRecord, plots_there: Any, files: Mapping[str, Any], model_card: str | None) -> list[tuple[str, str]]:
    wanted = [
        (run.gate is not None, "verdict", "Verdict"),
        (run.evaluation is not None, "comparison", "Champion"),
        (run.evaluation is not None and run.evaluation.anchor is not None, "anchor", "Anchor"),
        (run.gate is not None, "gate", "Rules"),
        (run.evaluation is not None, "classes", "Classes"),
        (run.evaluation is not None and plots_there("missed_cancers", "false_alarms"), "mistakes", "Mistakes"),
        (_tells_of_file(run.evaluation), "file", "Model file"),
        (run.training is not None or plots_there("history", "trend", "augmentations"), "training", "Training"),
        (not run.is_empty, "data", "Images"),
        (bool(model_card), "card", "Model card"),
        (run.config is not None, "parameters", "Parameters"),
        (bool(set(files) & set(FILES)), "files", "Downloads"),
    ]
    return [(anchor, name) for there, anchor, name in wanted if there]


def _tells_of_file(document: EvaluationDocument | None) -> bool:
    return document is not None and bool(document.external or document.file_check)


def _tiles(document: EvaluationDocument) -> list[tuple[str, Estimate, Estimate | None]]:
    model, positive = document.challenger, document.positive_class
    differences = document.comparison.differences if document.comparison else {}
    return [
        ("Balanced accuracy", model.balanced_accuracy, differences.get("balanced_accuracy")),
        ("Macro AUC", model.macro_auc, differences.get("macro_auc")),
        *((spelled(name), estimate, differences.get(name)) for name, estimate in _at_operating_point(model, positive).items()),
    ]


def _at_operating_point(model: ModelEvaluation, positive_class: str) -> dict[str, Estimate]:
    """By the names that their differences to the champion have."""
    return {
        f"{positive_class}_sensitivity_at_operating_point": model.operating_point.sensitivity,
        f"{positive_class}_specificity_at_operating_point": model.operating_point.specificity,
    }


@dataclass(frozen=True)
class _ComparedRow:
    name: str
    challenger: Estimate
    other: Estimate | None
    difference: Estimate | None
    tone: str


@dataclass(frozen=True)
class _Compared:
    """A table of the challenger's metrics beside another version's, on the same images."""

    anchor: str
    title: str
    other: str
    comparison: Comparison
    rows: Sequence[_ComparedRow]
    reach: float


def _compared(document: EvaluationDocument) -> list[_Compared]:
    """Return the comparisons that there are: with the champion, and with the anchor if that is another version."""
    found = (("comparison", "champion", document.comparison), ("anchor", "anchor", document.anchor))
    return [
        _Compared(
            anchor=anchor,
            title=f"Against the {other}",
            other=other.capitalize(),
            comparison=comparison,
            rows=_rows(comparison.challenger, comparison.champion, comparison.differences, document.positive_class),
            reach=_reach(comparison.differences),
        )
        for anchor, other, comparison in found
        if comparison
    ]


@dataclass(frozen=True)
class _BesideExternal:
    """What the model file, and another version's, answer about an external test set; `other` is how that one is called."""

    other: str | None
    rows: Sequence[_ComparedRow]
    reach: float


@dataclass(frozen=True)
class _External:
    """An external test set: its tables, or why there are none."""

    name: str
    note: str | None
    images: int
    groups: int
    tables: Sequence[_BesideExternal]
    problems: Sequence[tuple[str, str]]


def _external(external: ExternalEvaluation, positive: str) -> _External:
    ours = external.challenger
    versions = (
        ("champion", external.champion, external.differences, external.problem),
        ("anchor", external.anchor, external.anchor_differences, external.anchor_problem),
    )
    tables = [
        _BesideExternal(other, _rows(ours, theirs, differences, positive), _reach(differences))
        for other, theirs, differences, _ in versions
        if ours and theirs
    ]
    if ours and not tables:
        tables = [_BesideExternal(None, _rows(ours, None, {}, positive, alone=True), _reach({}))]
    return _External(
        name=external.name,
        note=external.note,
        images=ours.images if ours else 0,
        groups=ours.groups if ours else 0,
        tables=tables,
        problems=[(other, problem) for other, _, _, problem in versions if problem],
    )


def _rows(
    ours: ModelEvaluation | None,
    theirs: ModelEvaluation | None,
    differences: Mapping[str, Estimate],
    positive: str,
    *,
    alone: bool = False,
) -> list[_ComparedRow]:
    """Return one row per metric; none if one of the models is missing, unless the challenger may stand `alone`."""
    if ours is None or (theirs is None and not alone):
        return []

    def metrics(model: ModelEvaluation) -> dict[str, Estimate]:
        return {
            "balanced_accuracy": model.balanced_accuracy,
            "macro_auc": model.macro_auc,
            f"{positive}_auc": model.per_class[positive].auc,
            f"{positive}_sensitivity": model.per_class[positive].sensitivity,
            f"{positive}_specificity": model.per_class[positive].specificity,
            **_at_operating_point(model, positive),
            "accuracy": model.accuracy,
            "macro_f1": model.macro_f1,
            "loss": model.loss,
        }

    other = metrics(theirs) if theirs else {}
    return [
        _ComparedRow(spelled(name), estimate, other.get(name), difference := differences.get(name), tone(name, difference))
        for name, estimate in metrics(ours).items()
    ]


@dataclass(frozen=True)
class _ShortcutRow:
    properties: str
    by_class: dict[str, ShortcutFinding]
    followed: FollowedShortcut | None


def _shortcuts(run: RunRecord) -> list[_ShortcutRow]:
    """Return one row per set of properties that differ between the images."""
    rows: dict[str, _ShortcutRow] = {}
    followed = {one.properties: one for one in run.evaluation.shortcuts} if run.evaluation else {}
    for finding in run.checks.shortcuts if run.checks else ():
        name = finding.properties
        rows.setdefault(name, _ShortcutRow(name, {}, followed.get(name))).by_class[finding.label] = finding
    return [row for row in rows.values() if any(finding.auc.value is not None for finding in row.by_class.values())]


def _reach(differences: Mapping[str, Estimate]) -> float:
    """Half the width of the axis that the differences are drawn on."""
    ends = [abs(end) for estimate in differences.values() for end in (estimate.low, estimate.high) if end is not None]
    return max(ends, default=0.05) * 1.1 or 0.05


def last_epochs(epochs: Iterable[EpochRow]) -> dict[int, EpochRow]:
    """Return the last epoch so far of each fold's model."""
    return {row.fold: row for row in epochs}


def _places(run: RunRecord) -> list[str]:
    """Return how far each fold's model is, one line per fold that has begun."""
    planned = run.config.config if run.config else None
    return [
        describe_place(fold, row.epoch, folds=planned.folds if planned else None, epochs=planned.epochs if planned else None)
        for fold, row in last_epochs(run.epochs).items()
    ]


def live_charts(epochs: Sequence[EpochRow]) -> tuple[LineChart, LineChart]:
    """Return accuracy and loss by epoch so far: a line per fold for the images held out, a faint one for those trained on."""
    folds = sorted({row.fold for row in epochs})
    by_place = {(row.fold, row.epoch): row for row in epochs}
    last = max(row.epoch for row in epochs)

    def lines(metric: str) -> list[tuple[str, list[float | None]]]:
        rows = [(fold, [by_place.get((fold, epoch)) for epoch in range(1, last + 1)]) for fold in folds]
        return [(name_fold(fold), [getattr(row, metric) if row else None for row in of_fold]) for fold, of_fold in rows]

    labels = [str(epoch) for epoch in range(1, last + 1)]
    return (
        line_chart("Accuracy by epoch", labels, lines("held_out_accuracy"), lines("accuracy")),
        line_chart("Loss by epoch", labels, lines("held_out_loss"), lines("loss")),
    )


def _trend(runs: Sequence[RunSummary], positive_class: str) -> LineChart:
    def values(estimates: Iterable[Estimate | None]) -> list[tuple[float, float | None, float | None] | None]:
        return [None if e is None or e.value is None else (e.value, e.low, e.high) for e in estimates]

    return line_chart(
        f"Balanced accuracy, macro AUC and {positive_class} sensitivity at operating point of {len(runs)} runs",
        [run.as_of.strftime("%-d %b") for run in runs],
        [
            ("balanced accuracy", values(run.balanced_accuracy for run in runs)),
            (f"{positive_class} sensitivity at operating point", values(run.positive_sensitivity for run in runs)),
            ("macro AUC", values(run.macro_auc for run in runs)),
        ],
    )


def _markdown(text: str) -> Markup:
    """Markdown as HTML, its headings below the page's own.

    HTML in it is shown as text, and addresses with a scheme that runs script are dropped.
    """
    from markdown_it import MarkdownIt

    if len(text) > LONGEST_CARD:
        text = f"{text[:LONGEST_CARD]}\n\n*The rest is left out: the whole card is in the version's model_card.md.*"
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704


def describe_plots(run: RunRecord) -> dict[str, tuple[str, str]]:
    """For each plot, what it shows in this run (for those who cannot see it) and its caption."""
    evaluation, split, checks = run.evaluation, run.split, run.checks
    positive = evaluation.positive_class if evaluation else "positive class"
    last = last_epochs(run.epochs).values()
    ended = "".join(
        f" {name_fold(row.fold).capitalize()} ended at a held-out accuracy of {row.held_out_accuracy:.3f} "
        f"and a held-out loss of {row.held_out_loss:.3f}."
        for row in last
    )
    counts = (
        "; ".join(f"{name_fold(fold)}: {', '.join(f'{name} {n}' for name, n in by.items())}" for fold, by in split.counts.items())
        if split
        else ""
    )
    findings = checks.drift if checks else ()
    warned, tested = sum(finding.warning for finding in findings), len(findings)
    slope = _spoken(evaluation.challenger.calibration.slope) if evaluation else "unknown"
    areas = ", ".join(f"{name} {_spoken(one.auc)}" for name, one in evaluation.challenger.per_class.items()) if evaluation else ""
    return {
        "history": (
            f"Accuracy and loss by epoch, one line per fold: on the images held out, and on those trained on.{ended}",
            "One colour per fold: solid on the images that its model holds out, dashed on those that it is trained on.",
        ),
        "class_counts": (
            f"Bars of the images by class and fold. {counts}.",
            "Images by class and fold, and each class' weight in training.",
        ),
        "confusion_matrix": (
            f"Confusion matrices, rows true and columns predicted. {_confusions(evaluation)}",
            "Rows are the truth, columns the answer: counts, and shares of each row.",
        ),
        "roc": (
            f"ROC curves. AUC by class: {areas}.",
            f"Each class against the rest, with 95 % bands. The star is the operating point of {positive}; "
            "what it achieves is cross-fitted, so that it may stand beside the curve.",
        ),
        "precision_recall": (
            "Precision-recall curves, each class against the rest.",
            "Each class against the rest, with 95 % bands. The short bar at the right edge is what guessing would reach.",
        ),
        "reliability": (
            f"Reliability diagram. Calibration slope: {slope}.",
            "How often the answer is right, by how sure the model is. On the diagonal it is as sure as it is right.",
        ),
        "difference": (
            _differences(evaluation),
            "Challenger minus champion, paired on the same images. If the whole interval is on one side, that side is named.",
        ),
        "trend": (
            "Balanced accuracy, macro AUC and sensitivity over the assessed runs, with their verdicts.",
            "The key metrics of this and earlier runs, each on its own held-out images.",
        ),
        "augmentations": (
            "A few training images and randomly altered versions of each.",
            "What training sees: each row an image as it is, then as augmentation alters it.",
        ),
        "drift": (
            f"Distances between new and earlier images; {warned} of {tested} comparisons warn of drift.",
            "Two-sample tests of the new images against the earlier ones, one per class and quantity.",
        ),
        "missed_cancers": (
            f"Thumbnails of {positive} images that the challenger did not call {positive}, with their probabilities.",
            f"Images that are {positive} and were not called so, the most confident mistakes first.",
        ),
        "false_alarms": (
            f"Thumbnails of images that the challenger wrongly called {positive}, with their probabilities.",
            f"Images that were called {positive} and are not, the most confident mistakes first.",
        ),
        "content_findings": (
            f"Thumbnails of some images with each content finding, with name and class. {_found(checks)}",
            "Some images with each finding, of each class in turn; the lists name the others. "
            "Images with text of unknown meaning are not shown: it may be a name.",
        ),
    }


def _found(checks: ChecksDocument | None) -> str:
    found = [f"{FINDINGS.get(one.finding, one.finding)}: {one.images} images" for one in (checks.findings if checks else ())]
    return f"{'; '.join(found) or 'Nothing was found'}."


def _spoken(estimate: Estimate) -> str:
    return "not available" if estimate.value is None else f"{estimate.value:.3f}"


def _confusions(document: EvaluationDocument | None) -> str:
    if document is None:
        return ""
    rows = zip(document.classes, document.challenger.confusion_matrix)
    right = [f"{row[index]} of {sum(row)} {name}" for index, (name, row) in enumerate(rows)]
    return f"The challenger is right on {', '.join(right)} images."


def _differences(document: EvaluationDocument | None) -> str:
    found = document.comparison.differences if document and document.comparison else {}
    spoken = [f"{name.replace('_', ' ')} {estimate.value:+.3f}" for name, estimate in found.items() if estimate.value is not None]
    return f"Differences from the champion: {', '.join(spoken) or 'none available'}."
