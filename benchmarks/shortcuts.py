"""How well simple properties of the files predict the class, and how often the audit warns if there is nothing to find.

    IMAGES=folder python -m benchmarks.shortcuts [--shuffles 20] [--write]

The folder has one folder of images per class; without `IMAGES` it is the one that the other benchmarks use. The audit is done
once with the true labels, and then with labels shuffled among near-duplicate groups of the same size: then every warning
is a false alarm. `--write` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.folder_check import check_labelled_folder
from bcc_ops.dataset.shortcuts import PROPERTY_SETS, WARNS_FROM, ShortcutAudit, audit_shortcuts
from bcc_ops.runs.rows import ContentRow
from benchmarks.near_duplicates import BUSI
from benchmarks.report import write_section


def shuffled(rows: Sequence[ContentRow], seed: int) -> list[ContentRow]:
    """Return the rows with their labels shuffled among groups of the same size, so that a group keeps one label."""
    rng = np.random.default_rng(seed)
    of_group: dict[str, str] = {}
    sizes: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        of_group[row.group] = row.label
        sizes[row.group] += 1
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for group, size in sizes.items():
        by_size[size].append(group)
    label: dict[str, str] = {}
    for groups in by_size.values():
        label.update(zip(groups, rng.permutation([of_group[group] for group in groups]).tolist()))
    return [row._replace(label=label[row.group]) for row in rows]


def table_of(audit: ShortcutAudit, classes: Sequence[str]) -> list[str]:
    """Return the findings as a Markdown table, warnings in bold."""
    lines = [f"| properties | {' | '.join(classes)} |", f"|---|{'---|' * len(classes)}"]
    for name in PROPERTY_SETS:
        found = {one.label: one for one in audit.findings if one.properties == name}
        cells = []
        for label in classes:
            one = found[label]
            told = f"{one.auc:.2f}" if one.auc.value is not None else "–"
            cells.append(f"**{told}**" if one.warning else told)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure, print and, if asked to, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path(os.environ.get("IMAGES") or BUSI), help="one folder per class")
    parser.add_argument("--shuffles", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    config = RetrainingConfig.resolve({})
    classes, _, _, checks = check_labelled_folder(given.images, config)
    rows = [row for row in checks.contents if not row.refused]
    worked = time.process_time()
    audit = audit_shortcuts(rows, classes)
    seconds = time.process_time() - worked
    if audit.unavailable:
        raise SystemExit(f"not measured: {audit.unavailable}")
    null = [audit_shortcuts(shuffled(rows, seed), classes) for seed in range(given.shuffles)]
    areas = np.array([one.auc.value for found in null for one in found.findings if one.auc.value is not None])
    held = [one.auc for found in null for one in found.findings if one.auc.low is not None and one.auc.high is not None]
    holding = sum((one.low or 0) <= 0.5 <= (one.high or 1) for one in held)
    alarms = sum(one.warning for found in null for one in found.findings)
    lines = [
        "## Shortcuts",
        "",
        "`IMAGES=folder python -m benchmarks.shortcuts --write`",
        "",
        f"AUC of each class against the rest by properties of the files alone, with 95 % intervals over near-duplicate groups; "
        f"{audit.audited} images of {given.images.name}. Bold: warns, since the lower end is above {WARNS_FROM}. The audit took "
        f"{seconds:.1f} CPU seconds.",
        "",
        *table_of(audit, classes),
        "",
        f"Labels shuffled {given.shuffles} times: {alarms} warnings in {len(areas)} findings. The areas are "
        f"{areas.mean():.3f} on average, {areas.std():.3f} their standard deviation, {areas.max():.3f} the largest; "
        f"{holding / len(held):.1%} of the intervals hold 0.5.",
    ]
    print("\n".join(lines))
    if given.write:
        write_section("shortcuts", "\n".join(lines))


if __name__ == "__main__":
    main()
