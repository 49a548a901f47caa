"""Share the inspection of many new images out among workers, in slices of the snapshot.

What is new is known once the images are on one worker. If it is more than a slice, a task of its own inspects each slice and
leaves what it learned in the bucket (`dataset.shared_inspections`). The image checks find it there, and inspect what is left.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import pairwise
from typing import TYPE_CHECKING

from bcc_ops.dataset.image_content import findings_known
from bcc_ops.dataset.inspection_shards import FACTS, ROWS_PER_SHARD

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig
    from bcc_ops.dataset.inspection_cache import InspectionCache
    from bcc_ops.runs.rows import ContentRow

PER_SLICE = ROWS_PER_SHARD[FACTS]
"""New contents. So many make one full shard; a task's start, some seconds, is little beside the minutes that they take."""

MOST_SLICES = 64
"""With more than 64,000 new contents, the slices are larger instead."""


def not_inspected(
    contents: Set[str], previous: Sequence[ContentRow], memory: InspectionCache, config: RetrainingConfig
) -> Set[str]:
    """Return the contents in which nobody has looked for findings, as far as it is known here. That is what takes long.

    What an earlier run refused is not among them, nor a DICOM file whose findings are known: what else is learned of these is not
    shared, so another worker would learn it for nothing.

    Args:
        contents: sha256 of the run's images.
        previous: rows of an earlier run's contents.parquet.
        memory: what is known on this worker.
        config: section "Checks".
    """
    refused = {row.sha256 for row in previous if row.refused and not row.findings}
    left = contents - refused
    if config.ignores_findings:
        left -= {row.sha256 for row in previous}
        return left - memory.recall(left, config.min_side, config.max_pixels).keys()
    left -= findings_known(left, previous, memory).keys()
    facts = memory.recall(left, config.min_side, config.max_pixels)
    return left - {sha256 for sha256, known in facts.items() if known.reason}


def cut_slices(contents: Sequence[str | None], new: Set[str]) -> list[tuple[int, int]]:
    """Cut a snapshot into slices with equally many new contents each, up to one more or less.

    Args:
        contents: sha256 of each image, in the snapshot's order; None of one that the store does not give.
        new: which contents nobody has inspected.

    Returns:
        For each slice, the position of its first new image and the one after its last. Nothing if one slice would do: the image
        checks inspect it without another task.
    """
    first = {sha256: position for position, sha256 in reversed(tuple(enumerate(contents))) if sha256 in new}
    positions = sorted(first.values())
    count = min(-(-len(positions) // PER_SLICE), MOST_SLICES)
    if count < 2:
        return []
    ends = [len(positions) * number // count for number in range(count + 1)]
    return [(positions[begin], positions[end - 1] + 1) for begin, end in pairwise(ends)]
