"""What must be fast, each against its limit: a large run's report, parsing the DAGs, an evaluation.

No test measures time, since a test must pass on a busy machine too. Run this on an idle one:

    python -m benchmarks.speed
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bcc_ops.config import Settings
from bcc_ops.evaluation.metrics import Evaluation, Scores, cross_fit
from bcc_ops.report.progress import RunProgress
from bcc_ops.runs.documents import ModelEvaluation
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import serve
from tests.factories.runs import put_large_run
from tests.unit.report import samples

REPOSITORY = Path(__file__).resolve().parents[1]
CLASSES = ("benign", "malignant", "normal")

_PARSE = """
import sys, time
import airflow.sdk, airflow.providers.amazon.aws.hooks.s3, airflow.providers.standard.operators.hitl
sys.path.insert(0, sys.argv[1])
before = time.process_time()
import runpy
runpy.run_path(sys.argv[2])
print(time.process_time() - before)
"""


def report_seconds() -> float:
    """Return the report of a run with 10,000 held-out images, once its files are cached."""
    from bcc_ops.web.app import Pages

    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as server:
        store = ObjectStore(server.client(), "breast-images")
        store.client.create_bucket(Bucket=store.bucket)
        put_large_run(store)
        settings = Settings(bucket=store.bucket)
        pages = Pages(lambda: settings, lambda: store)
        progress = RunProgress.of("bcc_retraining", samples.RUN_ID, "success", [])
        return quickest(lambda: pages.report(progress, "", True))


def parse_seconds(dag_file: Path) -> float:
    """Processor time of parsing a DAG file, beyond importing Airflow: the scheduler's host does it again and again."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        command = [sys.executable, "-c", _PARSE, str(REPOSITORY / "plugins"), str(dag_file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def evaluation_seconds() -> float:
    """Evaluate ten thousand out-of-fold answers, each judged by what the other folds gave."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 10_000)
    probabilities = generator.dirichlet([1, 1, 1], 10_000)
    scores = Scores(labels, probabilities, generator.integers(0, 8000, 10_000))
    folds = generator.integers(1, 6, 10_000)

    def evaluate() -> ModelEvaluation:
        judged = cross_fit(scores, folds, CLASSES.index("malignant"), 0.9, "out-of-fold answers")
        return Evaluation(judged, CLASSES, "malignant").evaluation()

    return quickest(evaluate, times=1)


def quickest(work: Callable[[], object], times: int = 3) -> float:
    """Wall seconds of the fastest of some rounds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> int:
    """Measure everything; exit status 1 if something is slower than its limit."""
    measured = [("a large run's report", report_seconds(), 2.0), ("an evaluation", evaluation_seconds(), 2.0)]
    measured += [(f"parsing {file.name}", parse_seconds(file), 1.0) for file in sorted((REPOSITORY / "dags").glob("*.py"))]
    for what, seconds, limit in measured:
        print(f"{what}: {seconds:.2f} s of at most {limit:.0f} s{'' if seconds < limit else ': TOO SLOW'}")
    return int(any(seconds >= limit for _, seconds, limit in measured))


if __name__ == "__main__":
    sys.exit(main())
