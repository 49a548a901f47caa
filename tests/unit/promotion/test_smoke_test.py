"""What the smoke test asks of a file. That it does so in a process of its own is tested on a whole run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bcc_ops.exceptions import ModelError
from bcc_ops.promotion.smoke_test import MODULE, Sample, answer, main, run_smoke_test

RIGHT = (0.7, 0.2, 0.1)
NAN = float("nan")


def request(expected: Any = RIGHT, **changes: Any) -> dict[str, Any]:
    asked = {"model": "m.h5", "names": ["a.png"], "images": ["/a.png"], "expected": [expected]}
    return {**asked, "classes_count": 3, "keep_aspect": True, "tolerance": 0.02, **changes}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the model answer so: loading one is tested by test_classifier.py."""

    def give(*probabilities: float) -> None:
        loaded = SimpleNamespace(predict=lambda paths: np.array([probabilities]))
        module = SimpleNamespace(load_classifier=lambda path, keep_aspect: loaded)
        monkeypatch.setitem(sys.modules, "bcc_ops.models.classifier", module)

    return give


@pytest.mark.parametrize("expected", [RIGHT, (0.685, 0.215, 0.1), None], ids=["the same", "within the tolerance", "unknown"])
def test_a_model_that_answers_as_it_was_trained_to_passes(answers: Any, expected: tuple[float, ...] | None) -> None:
    answers(*RIGHT)
    answer(request(expected))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0.6, 0.3, 0.1), r"answer about a\.png differs by 0\.100 from the trained model's \(at most 0\.02 is allowed\)"),
        ((0.5, 0.5), r"answers \(2,\) for an image, not 3 probabilities"),
        ((0.9, 0.9, 0.9), "are not probabilities"),
        ((1.1, -0.1, 0.0), "are not probabilities"),
        ((NAN, NAN, NAN), "are not probabilities"),
    ],
    ids=["other answers", "other classes", "no sum of 1", "negative", "not a number"],
)
def test_a_model_that_answers_otherwise_is_refused(answers: Any, given: tuple[float, ...], said: str) -> None:
    answers(*given)
    with pytest.raises(ModelError, match=said):
        answer(request())


def test_the_process_ends_with_the_reason_as_its_last_line(
    answers: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, status in ((RIGHT, 0), ((0.6, 0.3, 0.1), 1)):
        answers(*given)
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request())))
        assert main() == status
    assert "differs by 0.100" in capsys.readouterr().err.splitlines()[-1]


def run(monkeypatch: pytest.MonkeyPatch, done: Any) -> dict[str, Any]:
    """Ask a process that ends like this, and return how it was started."""
    started: dict[str, Any] = {}

    def start(command: list[str], **how: Any) -> Any:
        started.update(how, command=command)
        if isinstance(done, Exception):
            raise done
        return done

    monkeypatch.setattr("bcc_ops.promotion.smoke_test.subprocess.run", start)
    run_smoke_test(Path("m.h5"), [Sample("a.png", Path("/a.png"), RIGHT)], 3, keep_aspect=True, timeout=5)
    return started


def test_the_model_is_asked_on_the_processor_by_a_process_that_finds_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    started = run(monkeypatch, SimpleNamespace(returncode=0, stderr=""))
    assert started["command"] == [sys.executable, "-m", MODULE]
    assert json.loads(started["input"]) == json.loads(json.dumps(request()))
    assert started["env"]["CUDA_VISIBLE_DEVICES"] == "-1"
    assert Path(started["env"]["PYTHONPATH"].split(":")[0], "bcc_ops", "__init__.py").exists()


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (
            SimpleNamespace(returncode=1, stderr="a warning\n\nhas a layer of the class Lambda\n\n"),
            "smoke test: has a layer of the",
        ),
        (SimpleNamespace(returncode=-9, stderr="\n"), "smoke test: the process ended with status -9"),
        (subprocess.TimeoutExpired("python", 5), "smoke test: the model did not answer within 5 s"),
    ],
    ids=["refused", "killed", "hangs"],
)
def test_a_process_that_does_not_pass_is_one_line(monkeypatch: pytest.MonkeyPatch, done: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said) as told:
        run(monkeypatch, done)
    assert "\n" not in str(told.value)


def test_without_an_image_there_is_no_test() -> None:
    with pytest.raises(ModelError, match="at least one image"):
        run_smoke_test(Path("m.h5"), [], 3, keep_aspect=True)
