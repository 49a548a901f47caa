"""What was found in the images besides a scan of the breast, and what a run does about it.

`dataset.image_content` looks, once per content. What it found is in `ContentRow.findings`, and everything here follows from that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bcc_ops.config import FINDING_ACTIONS, FINDINGS
from bcc_ops.runs.documents import ContentFinding
from bcc_ops.runs.rows import ContentRow

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig

FINDING = "content finding"
"""What `ContentRow.refused` says of an image that a finding excludes from training and evidence."""

LOOKED_AT = "2"
"""How an image was looked at; goes up if the same image may now yield other findings, so that all are looked at
again."""
WITH_TEXT = f"{LOOKED_AT}t"
"""The same, and its text was read."""

UNKNOWN_TEXT = "unknown_text"

MOST_LISTED = 2000
"""Keys per finding in checks.json. All of them are in contents.parquet."""


def names_of(findings: str) -> tuple[str, ...]:
    """Return the findings' names in `ContentRow.findings`."""
    return tuple(findings.split()[1:])


def may_name_a_patient(findings: str) -> bool:
    """Return whether an image with these findings (`ContentRow.findings`) holds text of unknown meaning: no page shows it."""
    return UNKNOWN_TEXT in names_of(findings)


def text_was_read(rows: Iterable[ContentRow]) -> bool:
    """Return whether text was looked for in every image that can be used."""
    return all(row.findings.partition(" ")[0] == WITH_TEXT for row in rows if row.findings)


def action_on(findings: str, config: RetrainingConfig) -> str:
    """Return the strictest action (of `FINDING_ACTIONS`) that the parameters ask for on an image with these findings."""
    wanted = config.finding_actions
    return max((wanted[name] for name in names_of(findings) if name in wanted), key=FINDING_ACTIONS.index, default="ignore")


def list_findings(rows: Sequence[ContentRow], config: RetrainingConfig) -> tuple[ContentFinding, ...]:
    """Return what was found in the images, in the order of `FINDINGS`; what is ignored or found nowhere is left out."""
    listed = []
    for name in FINDINGS:
        holding = [row for row in rows if name in names_of(row.findings)]
        if holding and config.finding_actions[name] != "ignore":
            listed.append(
                ContentFinding(
                    finding=name,
                    action=config.finding_actions[name],
                    images=len(holding),
                    labels=dict(sorted(Counter(row.label for row in holding).items())),
                    keys=tuple(row.key for row in holding[:MOST_LISTED]),
                )
            )
    return tuple(listed)


def choose_examples(rows: Iterable[ContentRow], found: Iterable[ContentFinding], most: int) -> dict[str, list[ContentRow]]:
    """Return images to show of each finding: one of each class in turn, no content twice, the same ones for the same images.

    An image whose text may name a patient is never one of them.

    Args:
        rows: of contents.parquet.
        found: as `list_findings` returns it.
        most: images per finding.

    Returns:
        Finding -> its images, in the order of `found`; without the findings of which no image may be shown.
    """
    by_content = {row.sha256: (row, names_of(row.findings)) for row in rows if not may_name_a_patient(row.findings)}
    ordered = [by_content[sha256] for sha256 in sorted(by_content)]
    chosen = {}
    for one in found:
        turns: Counter[str] = Counter()
        holding = []
        for row, names in ordered:
            if one.finding in names:
                holding.append((turns[row.label], row.label, row))
                turns[row.label] += 1
        if holding:
            chosen[one.finding] = [row for *_, row in sorted(holding)[:most]]
    return chosen


def warnings_about(findings: Iterable[ContentFinding]) -> list[str]:
    """Return a sentence for each finding that a person must look at."""
    said = []
    for found in findings:
        if found.finding == UNKNOWN_TEXT:
            said.append(
                f"{_counted(found.images, 'holds', 'hold')} text of unknown meaning, which may be a patient's name: look at them "
                "in the bucket. No picture in the report shows them"
            )
        elif found.action.startswith("exclude"):
            said.append(
                f"{_counted(found.images, 'is', 'are')} left out of {_left_out_of(found.action)}: {FINDINGS[found.finding]}"
            )
    return said


def _counted(images: int, one: str, several: str) -> str:
    return f"1 image {one}" if images == 1 else f"{images} images {several}"


def _left_out_of(action: str) -> str:
    return "training" if action == "exclude_from_training" else "training and evidence"
