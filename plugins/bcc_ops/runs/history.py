"""The runs before this one, one line each: what the trend and the list of runs are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import (
    ApprovalDocument,
    ConfigDocument,
    D,
    Estimate,
    EvaluationDocument,
    GateDocument,
    Verdict,
    parse_document,
)
from bcc_ops.runs.paths import RunPaths


@dataclass(frozen=True)
class RunSummary:
    """One run in a line. What a run does not have (yet) is None."""

    folder: str
    as_of: datetime
    run_id: str | None = None
    run_kind: str | None = None
    verdict: Verdict | None = None
    approval: ApprovalDocument | None = None
    """A person's answer about an approved challenger, if one was asked."""
    synthetic: bool = False
    images: int | None = None
    balanced_accuracy: Estimate | None = None
    macro_auc: Estimate | None = None
    positive_sensitivity: Estimate | None = None
    problem: str | None = None


def summarise_run(paths: RunPaths, read: Callable[[str], bytes | None]) -> RunSummary:
    """Sum a run up.

    Args:
        paths: of the run.
        read: content of the object at a key, or None if there is none.
    """
    try:
        config = _find(ConfigDocument, paths.document("config.json"), read)
        gate = _find(GateDocument, paths.document("gate.json"), read)
        approval = _find(ApprovalDocument, paths.document("approval.json"), read)
        evaluation = _find(EvaluationDocument, paths.document("evaluation.json"), read)
    except ArtifactError as error:
        return RunSummary(paths.folder_name, paths.as_of, problem=str(error))
    model = evaluation.challenger if evaluation else None
    return RunSummary(
        folder=paths.folder_name,
        as_of=paths.as_of,
        run_id=config.run_id if config else None,
        run_kind=config.run_kind if config else None,
        verdict=gate.verdict if gate else None,
        approval=approval,
        synthetic=bool((gate and gate.synthetic) or (evaluation and evaluation.synthetic)),
        images=model.images if model else None,
        balanced_accuracy=model.balanced_accuracy if model else None,
        macro_auc=model.macro_auc if model else None,
        positive_sensitivity=model.operating_point.sensitivity if model else None,
    )


def _find(kind: type[D], key: str, read: Callable[[str], bytes | None]) -> D | None:
    content = read(key)
    return None if content is None else parse_document(kind, content, key)
