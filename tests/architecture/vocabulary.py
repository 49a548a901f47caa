"""Keep the vocabulary: words that the project replaced by better ones appear nowhere.

    python tests/architecture/vocabulary.py [FILE ...]

Without arguments, every file that git tracks is checked. One line per finding: file, line, what to say instead.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

SAY: dict[str, str] = {
    r"(?<![a-z])knobs?(?![a-z])": "parameter",
    r"near[-_ ]?cop(y|ies)": "near-duplicate",
    r"likeness": "similarity",
    r"made[-_ ]up": "synthetic",
    r"emphasi[sz]": "operating point, or the odds factor",
    r"(?<![a-z])worn(?![a-z])|max_looks|count_looks": "holdout reuse",
    r"runs? by hand|by hand, a run": "manual run",
    r"split_unit|bootstrap_unit|(?<!/)\bunits?\b(?! tests?)(?!/)": "group",
    r"validation\.json|validate_images|ValidationDocument": "image checks, checks.json",
    r"class_weights\.json|ClassWeightsDocument": "split.json",
    r"(?<![\w.-])figures?(?![\w.(-])": "metric or estimate (a figure is matplotlib's)",
    # sentences that read as if translated
    r"\bis no (image|file|document|number|regular|reason|test|failure|longer one)\b": "is not a …",
    r"\bare no (images?|files?|documents?)\b": "are not …",
    r"\ba (row|line|folder|file|pod|column|sentence|task) an? [a-z]+": "one … per …",
    r"\blies? (in|on|under|beside|there|outside)\b|\blay (in|on|under|beside|there)\b": "is stored in, is in",
    r"\bwhere there (is|are|was|were) (none|no)\b": "if there is none",
}
"""Pattern (without regard to case) -> what to say instead. Sections 3 and 4 of the design have the whole list."""

FIGURES_MAY_BE_MATPLOTLIBS = re.compile(r"report/(figures|plots|line_chart|galleries|curves)|contact_sheets|test_(figures|plots|galleries)|CONTRIBUTING|architecture\.md")
SKIPPED = re.compile(
    r"(^|/)(requirements[^/]*|LICENSE|vocabulary\.py|uv\.lock)$|^docs/images/|\.(png|h5|parquet)$|^deploy/requirements"
)
OLD_NAMES_ALLOWED = re.compile(r"runs/upgrade\.py|test_upgrade|CHANGELOG\.md")
"""What reads older buckets, and the history, must name what they held."""


def findings(name: str, text: str) -> Iterator[str]:
    """Lines of one file that use a replaced word: `file:line: "word": say ...`."""
    if SKIPPED.search(name) or OLD_NAMES_ALLOWED.search(name):
        return
    for pattern, instead in SAY.items():
        if "figure" in pattern and FIGURES_MAY_BE_MATPLOTLIBS.search(name):
            continue
        for match in re.finditer(pattern, text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{name}:{line}: {match.group()!r}: say {instead}"


def tracked() -> list[str]:
    """Every file that git tracks, relative to the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def check(names: Iterable[str]) -> list[str]:
    """All findings in these files."""
    found: list[str] = []
    for name in names:
        path = REPOSITORY / name
        if path.is_file():
            try:
                found.extend(findings(name, path.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue
    return found


def main(arguments: list[str]) -> int:
    """Print the findings; the exit status is 1 if there are any."""
    found = check(arguments or tracked())
    print("\n".join(found) if found else "vocabulary: good")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
