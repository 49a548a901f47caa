"""Write a benchmark's table into its section of docs/benchmarks.md, with the machine it was measured on."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
_INTRODUCTION = """# Benchmarks

Each section is written by the script that it names, between its markers: run it again and its section is replaced.
"""
_NAME = re.compile(r"[a-z0-9-]+")


def machine() -> str:
    """Describe this machine in one line: cores, processor, memory, Python."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        processor = named.group(1) if named else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {processor}, {memory:.0f} GiB RAM, Python {platform.python_version()}, {platform.system()}"


def write_section(name: str, markdown: str, page: Path = PAGE) -> None:
    """Replace one section of the page, or add it at the end.

    Args:
        name: the section's marker: small letters, digits and dashes (`download`).
        markdown: its content, beginning with a `##` heading. Machine and date are added below it.
        page: the file; it is made if there is none.

    Raises:
        ValueError: there is no such marker.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: a section's name is made of small letters, digits and dashes")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    measured = f"Measured on {datetime.now(timezone.utc):%Y-%m-%d} with {machine()}."
    section = f"{begin}\n{markdown.strip()}\n\n{measured}\n{end}"
    text = page.read_text(encoding="utf-8") if page.exists() else _INTRODUCTION
    present = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text = present.sub(lambda _: section, text, count=1) if present.search(text) else f"{text.rstrip()}\n\n{section}\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
