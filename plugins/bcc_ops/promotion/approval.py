"""The question that a person is asked before an upload, and what counts as an answer."""

from __future__ import annotations

from functools import partial

from bcc_ops.config import with_positive_class
from bcc_ops.exceptions import ApprovalMissing
from bcc_ops.runs.documents import ApprovalDocument, GateDocument, SnapshotDocument
from bcc_ops.runs.paths import RunPaths


def approval_text(gate: GateDocument, snapshot: SnapshotDocument, paths: RunPaths, report_url: str) -> tuple[str, str]:
    """Subject and body (Markdown) of the question.

    Args:
        gate: the gate's decision.
        snapshot: says what kind of model it is.
        paths: of the run, to name it.
        report_url: address of the run's report page.
    """
    over = f"replace champion {gate.champion_version}" if gate.champion_version else "become the first champion"
    subject = f"{snapshot.title}: may the model of {gate.as_of:%Y-%m-%d %H:%M} UTC {over}?"
    spelled = partial(with_positive_class, positive_class=snapshot.positive_class)
    synthetic = ["**The images are synthetic: these metrics say nothing about any patient.**", ""] if gate.synthetic else []
    lines = [
        *synthetic,
        f"The gate says *{gate.verdict.replace('_', ' ')}*. {' '.join(gate.reasons)}",
        "",
        f"[Report of the run]({report_url}) · run `{paths.folder_name}`",
        "",
        "| rule | holds | why |",
        "|---|---|---|",
        *(f"| {spelled(rule.rule)} | {_holds(rule.applies, rule.passed)} | {_cell(rule.sentence)} |" for rule in gate.rules),
        "",
        "No answer in time is a rejection: the champion stays.",
    ]
    return subject, "\n".join(lines)


def require_approval(approval: ApprovalDocument | None, gate_sha256: str) -> str:
    """Return who approved, for promotion.json.

    Args:
        approval: the run's approval.json; None if there is none.
        gate_sha256: of the gate.json that the upload acts on. An answer counts only for the verdict that was shown.

    Raises:
        ApprovalMissing: nobody approved this verdict, as when `approve_model` was marked successful by hand.
    """
    what_to_do = "clear approve_model, and answer it under Required Actions"
    if approval is None or approval.approved is None:
        raise ApprovalMissing(f"this run needs an approval and nobody has given one: {what_to_do}")
    if approval.gate != gate_sha256:
        raise ApprovalMissing(f"the approval by {approval.by} is for another verdict of this run: {what_to_do}")
    if not approval.approved:
        raise ApprovalMissing(f"{approval.by} rejected this model on {approval.at:%Y-%m-%d %H:%M} UTC: it is not uploaded")
    return f"{approval.by} (asked in the UI)"


def _holds(applies: bool, passed: bool) -> str:
    return "–" if not applies else "yes" if passed else "no"


def _cell(sentence: str) -> str:
    return sentence.replace("|", "\\|").replace("\n", " ")
