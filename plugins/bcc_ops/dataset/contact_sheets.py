"""Contact sheets: the images behind a finding side by side, for a person to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from bcc_ops.config import FINDINGS
from bcc_ops.dataset.content_findings import choose_examples
from bcc_ops.dataset.decoding import decode_rgb

if TYPE_CHECKING:
    from bcc_ops.dataset.image_checks import ImageChecks

PAIRS_NEAREST = 30
PAIRS_A_SHEET = 5
SHOWN_A_FINDING = 12
_CELL = (420, 340)
_CAPTION = 18


def draw_contact_sheets(checks: ImageChecks, paths: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw a sheet for every conflict and content finding, and sheets of the pairs that were accepted or rejected most narrowly.

    An image with text of unknown meaning is on no finding's sheet: it may be a name.

    Args:
        checks: what was found.
        paths: key -> file.
        folder: where the PNG files go; made if it is not there.

    Returns:
        The files written: `conflict-01.png`, …, `finding-axilla.png`, …, `nearest-01.png`, …
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for number, group in enumerate(checks.document.conflicts, start=1):
        rows = [[(key, paths[key]) for key in group.keys[start : start + 3]] for start in range(0, len(group.keys), 3)]
        written.append(draw_sheet([(f"{' / '.join(group.labels)}", row) for row in rows], folder / f"conflict-{number:02}.png"))
    images = {found.finding: found.images for found in checks.document.findings}
    for name, rows_of in choose_examples(checks.contents, checks.document.findings, SHOWN_A_FINDING).items():
        shown = [(row.key, paths[row.key]) for row in rows_of]
        title = f"{FINDINGS[name]}: {len(shown)} of {images[name]}"
        lines_of = [(title, shown[start : start + 3]) for start in range(0, len(shown), 3)]
        written.append(draw_sheet(lines_of, folder / f"finding-{name}.png"))
    key_of: dict[str, str] = {}
    for row in checks.contents:
        key_of.setdefault(row.sha256, row.key)
    lines = []
    for pair in checks.near_duplicates.nearest(PAIRS_NEAREST):
        verdict = "accepted" if pair.accepted else "rejected"
        said = f"{verdict}: similarity {pair.similarity.similarity:.2f} (needed {pair.needed:.2f}), hash distance {pair.bits}"
        lines.append((said, [(key_of[sha256], paths[key_of[sha256]]) for sha256 in pair.pair]))
    for start in range(0, len(lines), PAIRS_A_SHEET):
        path = folder / f"nearest-{start // PAIRS_A_SHEET + 1:02}.png"
        written.append(draw_sheet(lines[start : start + PAIRS_A_SHEET], path))
    return written


def draw_sheet(rows: Sequence[tuple[str, Sequence[tuple[str, Path]]]], path: Path) -> Path:
    """Draw rows of images under captions.

    Args:
        rows: a caption, and the images below it as (name, file).
        path: the PNG to write.
    """
    width, height = _CELL
    columns = max(len(images) for _, images in rows)
    sheet = Image.new("RGB", (columns * width, len(rows) * (height + 2 * _CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for line, (caption, images) in enumerate(rows):
        top = line * (height + 2 * _CAPTION)
        draw.text((4, top + 2), caption, "black", font)
        for column, (name, file) in enumerate(images):
            picture = Image.fromarray(decode_rgb(file))
            draw.text((column * width + 4, top + _CAPTION), f"{name} ({picture.width} x {picture.height})", "black", font)
            picture.thumbnail((width - 6, height - 4))
            sheet.paste(picture, (column * width + 3, top + 2 * _CAPTION))
    sheet.save(path)
    return path
