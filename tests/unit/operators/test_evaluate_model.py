"""The task that evaluates: what it hands to the core, and what it writes of the answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from bcc_ops.dataset.inspection_cache import InspectionCache
from bcc_ops.operators.evaluate_model import EvaluateModelOperator
from bcc_ops.runs.bundle import BUNDLE
from bcc_ops.runs.documents import EvaluationDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.tables import read_digests
from tests.factories.tasks import context, in_bucket
from tests.unit.report.samples import (
    AS_OF,
    PATHS,
    checks_document,
    config_document,
    evaluation_document,
    promotion_document,
    run_handle,
    snapshot_document,
    split_document,
    training_document,
)

Evaluate = Callable[..., dict[str, str]]
asked: list[Any] = []


@pytest.fixture
def evaluate(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Do the task for a run without a champion, whose images are "good" and, refused, "damaged"."""
    asked.clear()

    def evaluate_run(store: ObjectStore, inputs: Any, champion: Any, anchor: Any, **more: Any) -> Any:
        asked.append((inputs, champion, anchor))
        for image in inputs.fetch([]) if inputs.config.external_sets else ():
            with InspectionCache(inputs.memory_path) as memory:
                memory.remember_findings([(image.sha256, "2"), ("e" * 64, "2")])
        return SimpleNamespace(predictions=b"table", document=evaluation_document())

    monkeypatch.setattr("bcc_ops.evaluation.run_evaluation.evaluate_run", evaluate_run)
    refused = ({"key": "damaged", "reason": "damaged", "detail": "truncated"},)
    documents = {"checks": checks_document(refused=refused), "split": split_document(), "training": training_document()}

    def do(**changes: Any) -> dict[str, str]:
        saved: dict[str, Any] = {
            name: store.save(PATHS.document(f"{name}.json"), document).to_xcom() for name, document in documents.items()
        }
        if "run" not in changes:
            saved["run"] = run_handle(store, config_document(), snapshot_document(bucket=store.bucket))
        with DAG("bcc_retraining", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
            task = in_bucket(EvaluateModelOperator(task_id="evaluate_model", **{**saved, **changes}), store, cache_dir=tmp_path)
        images = [SimpleNamespace(key=key, path=f"/{key}", sha256="a" * 64) for key in ("good", "damaged")]
        task.__dict__["fetch_images"] = lambda rows, unreadable: [SimpleNamespace(sha256="b" * 64)]
        task.__dict__["local_images"] = lambda snapshot, without: [image for image in images if image.key not in without]
        done: dict[str, str] = task.execute(context())
        return done

    return do


def test_the_core_gets_the_runs_documents_and_the_images_that_were_not_refused(evaluate: Evaluate, store: ObjectStore) -> None:
    reference = evaluate()
    ((inputs, champion, anchor),) = asked
    assert (inputs.training, inputs.split) == (training_document(), split_document())
    assert (inputs.images, champion, anchor) == ({"good": "/good"}, None, None)
    document = store.load(EvaluationDocument, reference)
    assert document.model == training_document().model
    assert document.predictions is not None and store.get_referenced(document.predictions) == b"table"
    assert store.head(PATHS.document(BUNDLE)) is not None


def test_a_run_whose_model_came_into_use_keeps_its_evaluation(evaluate: Evaluate, store: ObjectStore) -> None:
    first = evaluate()
    store.save(PATHS.document("promotion.json"), promotion_document(promoted=True))
    asked.clear()
    assert evaluate() == first
    assert asked == []


def test_what_was_learned_of_external_images_and_of_no_others_is_in_the_bucket(evaluate: Evaluate, store: ObjectStore) -> None:
    evaluate()
    assert list(store.list_objects("artifacts/inspections/")) == []
    config = config_document(external_prefixes="elsewhere/")
    evaluate(run=run_handle(store, config, snapshot_document(bucket=store.bucket)))
    (shard,) = store.list_objects("artifacts/inspections/")
    assert read_digests(store.get(shard["Key"])) == {"b" * 64}


@pytest.mark.parametrize("name", ["checks", "split", "training"])
def test_a_document_of_another_run_is_not_evaluated(evaluate: Evaluate, store: ObjectStore, name: str) -> None:
    other = RunPaths.of("artifacts", AS_OF, "manual__other").document(f"{name}.json")
    foreign = store.put_referenced(other, b"{}").to_xcom()
    with pytest.raises(AirflowFailException, match=f"which is not the run's own {name}.json"):
        evaluate(**{name: foreign})
    assert asked == []
