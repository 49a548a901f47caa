"""The uploaded file, in a process of its own: does it load safely, and answer as the trained model did?

`run_smoke_test` starts `python -m bcc_ops.promotion.smoke_test`, which alone imports TensorFlow: what is tested is what
a user of the file will do, with nothing in memory that training or evaluation left there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcc_ops.exceptions import BccError, ModelError

TOLERANCE = 0.02
"""Largest difference of a probability. A GPU's 16-bit products and a CPU's 32-bit ones differ by up to about 0.01."""

TIMEOUT = 600.0
"""Seconds, most of which a busy machine spends on importing TensorFlow."""

MODULE = "bcc_ops.promotion.smoke_test"
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Sample:
    """An image and what the trained model answered about it: one probability per class; None if that is unknown.

    `name` is for messages.
    """

    name: str
    path: Path
    expected: tuple[float, ...] | None


def run_smoke_test(
    model: Path,
    samples: Sequence[Sample],
    classes_count: int,
    *,
    keep_aspect: bool,
    tolerance: float = TOLERANCE,
    timeout: float = TIMEOUT,
) -> None:
    """Load `model` in a process of its own and ask it about `samples`.

    Args:
        model: the uploaded file, downloaded again.
        samples: at least one.
        classes_count: how many probabilities an answer must have.
        keep_aspect: what the model's document says.
        tolerance: largest difference of a probability to the expected one.
        timeout: seconds.

    Raises:
        ModelError: it does not load, is unsafe to load, answers differently, or does not answer in time.
    """
    if not samples:
        raise ModelError("the smoke test needs at least one image to ask the model about")
    request = {
        "model": str(model),
        "names": [sample.name for sample in samples],
        "images": [str(sample.path) for sample in samples],
        "expected": [sample.expected for sample in samples],
        "classes_count": classes_count,
        "keep_aspect": keep_aspect,
        "tolerance": tolerance,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", MODULE],
            input=json.dumps(request),
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"smoke test: the model did not answer within {timeout:.0f} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise ModelError(f"smoke test: {said[-1] if said else f'the process ended with status {done.returncode}'}")


def _environment() -> dict[str, str]:
    """On the CPU, so that a GPU that another task fills up fails no upload; the package importable from anywhere."""
    path = os.pathsep.join(part for part in (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def answer(request: Mapping[str, Any]) -> None:
    """Do the child's part: load, predict, compare.

    Raises:
        ModelError: as `run_smoke_test` says.
    """
    import numpy as np

    from bcc_ops.models.classifier import load_classifier

    classifier = load_classifier(Path(request["model"]), keep_aspect=request["keep_aspect"])
    answers = classifier.predict([Path(path) for path in request["images"]])
    if answers.shape != (len(request["images"]), request["classes_count"]):
        raise ModelError(f"the model answers {answers.shape[1:]} for an image, not {request['classes_count']} probabilities")
    if not np.isfinite(answers).all() or not np.allclose(answers.sum(axis=1), 1, atol=0.01) or (answers < 0).any():
        raise ModelError("the model's answers are not probabilities")
    for name, found, expected in zip(request["names"], answers, request["expected"]):
        difference = 0.0 if expected is None else float(np.abs(found - np.asarray(expected)).max())
        if difference > request["tolerance"]:
            raise ModelError(
                f"the uploaded model's answer about {name} differs by {difference:.3f} from the trained model's "
                f"(at most {request['tolerance']} is allowed)"
            )


def main() -> int:
    """Read a request from standard input; exit status 0 passed, 1 failed with the reason as standard error's last line."""
    try:
        answer(json.loads(sys.stdin.read()))
    except BccError as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
