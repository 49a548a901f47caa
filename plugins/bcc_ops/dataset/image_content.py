"""Look for what an image holds besides a scan of the breast: text and marks.

A content is looked at once. What was found is remembered on the worker, and carried from run to run in `contents.parquet`, so
that another worker does not look again. Kept are the findings' names and nothing that was read: it may be a patient's name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bcc_ops.config import FINDINGS
from bcc_ops.dataset import marks, text_reader
from bcc_ops.dataset.burned_in_text import UNREAD, classify_text
from bcc_ops.dataset.content_findings import LOOKED_AT, WITH_TEXT
from bcc_ops.dataset.decoding import decode_image, memory_for, read_image_file
from bcc_ops.dataset.fingerprints import to_gray
from bcc_ops.dataset.resources import cores
from bcc_ops.dataset.text_reader import Line, Pixels
from bcc_ops.exceptions import OutOfResources
from bcc_ops.runs.rows import ContentRow

if TYPE_CHECKING:
    from bcc_ops.dataset.inspection_cache import InspectionCache

log = logging.getLogger(__name__)


def find_content(rgb: Pixels, *, read: bool) -> frozenset[str]:
    """Return the names (of `FINDINGS`) of what an image holds.

    Args:
        rgb: uint8 (height, width, 3).
        read: whether to read text; letters that are cut off are looked for in any case.
    """
    gray = to_gray(rgb)
    lines = text_reader.read_lines(rgb) if read else []
    crosses = marks.find_calipers(rgb, gray)
    # The strokes of large letters cross too, and the number beside a caliper's cross is not a text.
    calipers = [cross for cross in crosses if not any(_holds(line, cross) and _is_word(line) for line in lines)]
    lines = [line for line in lines if _is_word(line) or not any(_holds(line, cross) for cross in calipers)]
    found = {about for line in lines for about in classify_text(line.text)}
    if not found and marks.find_cut_letters(gray):
        found.add(UNREAD)
    seen = {
        "doppler": marks.shows_flow(rgb),
        "calipers": bool(calipers),
        "two_views": marks.shows_two_views(gray),
        "not_ultrasound": marks.is_not_ultrasound(rgb, gray),
        "nearly_blank": marks.is_nearly_blank(gray),
    }
    return frozenset(found | {name for name, is_seen in seen.items() if is_seen})


def find_in_contents(
    paths: Mapping[str, Path], previous: Iterable[ContentRow], memory: InspectionCache, workers: int | None = None
) -> dict[str, str]:
    """Return what each content holds: remembered here or by an earlier run, or found now, several at once.

    Args:
        paths: sha256 -> a file with that content, which can be decoded.
        previous: rows of an earlier run's contents.parquet.
        memory: asked first, told afterwards.
        workers: threads; each reads with one processor. None: one per core.

    Returns:
        sha256 -> how it was looked at, then the findings' names, separated by spaces: `ContentRow.findings`.
    """
    read = text_reader.can_read()
    if not read:
        log.warning("RapidOCR is not installed: text in the images is not looked for")
    known = findings_known(paths, previous, memory)
    missing = sorted(set(paths) - set(known))
    if missing:
        log.info("looking for text and marks in %d of %d contents, the others are known", len(missing), len(paths))
        with ThreadPoolExecutor(workers or cores()) as pool:
            known |= memory.remember_findings(zip(missing, pool.map(lambda sha256: _look(paths[sha256], read), missing)))
    return known


def findings_known(contents: Collection[str], previous: Iterable[ContentRow], memory: InspectionCache) -> dict[str, str]:
    """Return what is known already, as `find_in_contents` does: of contents that need not be looked at again on this worker."""
    read = text_reader.can_read()
    told = [(row.sha256, row.findings) for row in previous if row.sha256 in contents]
    # What a worker without RapidOCR saw does not overrule what another one read, wherever it was remembered.
    known: dict[str, str] = {}
    for sha256, found in (*told, *memory.recall_findings(contents).items()):
        if _is_current(found, read) and not known.get(sha256, "").startswith(WITH_TEXT):
            known[sha256] = found
    return known


def _is_current(found: str, read: bool) -> bool:
    method = found.partition(" ")[0]
    return method == WITH_TEXT or (method == LOOKED_AT and not read)


def _look(path: Path, read: bool) -> str:
    try:
        content = read_image_file(path)
        with memory_for(content, text_reader.memory_to_read if read else marks.memory_to_find):
            names = find_content(decode_image(content).rgb, read=read)
    except MemoryError as error:
        raise OutOfResources("the memory does not suffice to look at an image; run fewer tasks on this worker") from error
    return " ".join([WITH_TEXT if read else LOOKED_AT, *(name for name in FINDINGS if name in names)])


def _is_word(line: Line) -> bool:
    return sum(character.isalpha() and character.isascii() for character in line.text) >= 2 or len(line.text.strip()) > 3


def _holds(line: Line, cross: marks.Mark) -> bool:
    across, down = cross.left + cross.width // 2, cross.top + cross.height // 2
    return line.left <= across <= line.right and line.top <= down <= line.bottom
