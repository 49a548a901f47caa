"""The first run on the real stack: images in, a judged model out, every document where it belongs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bcc_ops.models.registry import MODEL_FILES
from bcc_ops.runs.documents import (
    FOLDS,
    ChampionDocument,
    ChecksDocument,
    ConfigDocument,
    Document,
    EpochRow,
    EvaluationDocument,
    GateDocument,
    ModelDocument,
    PromotionDocument,
    Reference,
    SnapshotDocument,
    SplitDocument,
    TrainingDocument,
)
from bcc_ops.runs.paths import PLOTS, champion_pointer, fold_file, model_file
from bcc_ops.runs.rows import ImageRow, SplitRow
from bcc_ops.runs.tables import read_predictions, read_rows
from local.stack import DAG_ID, LocalStack
from tests.conftest import REAL_IMAGES
from tests.e2e.conftest import CLASSES, PER_CLASS, TINY, FinishedRun
from tests.factories.hostile_images import hostile_files

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

DOCUMENTS: dict[str, type[Document]] = {
    "config.json": ConfigDocument,
    "snapshot.json": SnapshotDocument,
    "checks.json": ChecksDocument,
    "split.json": SplitDocument,
    "training.json": TrainingDocument,
    "evaluation.json": EvaluationDocument,
    "gate.json": GateDocument,
    "promotion.json": PromotionDocument,
}
RETURNS = {
    "check_images": "checks.json",
    "combine_folds": "training.json",
    "evaluate_model": "evaluation.json",
    "gate_model": "gate.json",
    "upload_model": "promotion.json",
    "publish_plots": "report.html",
}
"""Task -> the document whose reference it returns."""

_PREDICT = """
import json, sys
import keras, numpy as np
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from bcc_ops.dataset.decoding import decode_rgb, fit_square
model = keras.models.load_model(sys.argv[1], compile=False, safe_mode=True)
side = model.input_shape[1]
images = np.stack([fit_square(decode_rgb(Path(path)), side, keep_aspect=True) for path in json.loads(sys.argv[2])])
print(json.dumps(np.asarray(model.predict(images.astype("float32"), verbose=0), dtype=float).tolist()))
"""


def test_every_task_that_had_to_run_succeeded(first_run: FinishedRun) -> None:
    states = {name: task["state"] for name, task in first_run.tasks.items()}
    assert first_run.run["state"] == "success", states
    assert (states.pop("inspect_images"), states.pop("approve_model")) == ("skipped", "skipped")
    assert set(states.values()) == {"success"}, states


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_lie_in_the_bucket_whole(stack: LocalStack, first_run: FinishedRun, name: str) -> None:
    stack.store.load_key(DOCUMENTS[name], first_run.paths.document(name))


def test_the_first_task_returns_the_handle_that_pins_the_run(stack: LocalStack, first_run: FinishedRun) -> None:
    handle = stack.api.xcom(DAG_ID, first_run.run_id, "snapshot_dataset")
    documents = {name: stack.store.get(first_run.paths.document(f"{name}.json")) for name in ("config", "snapshot")}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in documents.items()}
    assert handle == {"folder": first_run.paths.folder_name, **digests}


def test_hostile_files_are_named_with_their_reasons_and_stop_nothing(stack: LocalStack, first_run: FinishedRun) -> None:
    checks = stack.store.load_key(ChecksDocument, first_run.paths.document("checks.json"))
    prefix = f"{stack.settings.images_prefix}/normal/"
    # the local S3 server takes a backslash for a slash
    expected = {f"{prefix}{name}".replace("\\", "/"): why for name, _, why in hostile_files()}
    assert {image.key: image.reason for image in checks.refused} == expected
    report = stack.store.get(first_run.paths.document("report.html")).decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.png" in report and "<script>alert(1)" not in report


@pytest.mark.parametrize("task", RETURNS)
def test_each_task_returns_the_reference_to_its_document(stack: LocalStack, first_run: FinishedRun, task: str) -> None:
    returned = stack.api.xcom(DAG_ID, first_run.run_id, task)
    assert set(returned) == {"key", "sha256"}
    assert returned["key"] == first_run.paths.document(RETURNS[task])
    stack.store.get_referenced(Reference.model_validate(returned))


def test_the_runs_folder_holds_what_the_design_lists(stack: LocalStack, first_run: FinishedRun) -> None:
    folder = first_run.paths.folder
    names = {entry["Key"][len(folder) + 1 :] for entry in stack.store.list_objects(f"{folder}/")}
    tables = {"images.parquet", "split.parquet", "out_of_fold.parquet", "predictions.parquet", "model.h5", "report.html"}
    of_folds = {fold_file(fold, ending) for fold in (1, 2) for ending in ("json", "csv", "h5", "parquet")}
    assert {*DOCUMENTS, *tables, *of_folds} <= names
    plots = {name for name in names if name.startswith("plots/")}
    assert {f"plots/{name}.png" for name in ("history", "class_counts", "confusion_matrix")} <= plots
    assert plots <= {f"plots/{name}.png" for name in PLOTS}
    for name in plots:
        with Image.open(io.BytesIO(stack.store.get(f"{folder}/{name}"))) as plot:
            assert min(plot.size) >= 200
            plot.verify()


def test_no_mask_is_among_the_trained_images(stack: LocalStack, first_run: FinishedRun, images: Path) -> None:
    masks = list(images.glob("*/*_mask*"))
    keys = {row.key for row in read_rows(ImageRow, stack.store.get(first_run.paths.document("images.parquet")))}
    split = read_rows(SplitRow, stack.store.get(first_run.paths.document("split.parquet")))
    snapshot = stack.store.load_key(SnapshotDocument, first_run.paths.document("snapshot.json"))
    hostile = len(list(hostile_files()))
    assert snapshot.counts == {**dict.fromkeys(CLASSES, PER_CLASS), "normal": PER_CLASS + hostile}
    assert len(keys) == len(CLASSES) * PER_CLASS + hostile and not [key for key in keys if "_mask" in key]
    assert {row.key for row in split} <= keys
    assert {row.fold for row in split} == set(FOLDS)
    ignored_masks = [ignored.count for ignored in snapshot.ignored if "mask" in "".join(ignored.examples)]
    assert sum(ignored_masks) == len(masks)
    assert masks or not REAL_IMAGES.is_dir()


def test_training_was_mapped_over_the_folds(stack: LocalStack, first_run: FinishedRun) -> None:
    assert stack.api.xcom(DAG_ID, first_run.run_id, "split_dataset") == [1, 2]
    split = stack.api.xcom(DAG_ID, first_run.run_id, "split_dataset", key="split")
    assert split["key"] == first_run.paths.document("split.json")
    for index, fold in enumerate((1, 2)):
        assert first_run.tasks[f"train_model[{index}]"]["state"] == "success"
        returned = stack.api.xcom(DAG_ID, first_run.run_id, "train_model", map_index=index)
        assert returned["key"] == first_run.paths.document(fold_file(fold, "json"))
    training = stack.store.load_key(TrainingDocument, first_run.paths.document("training.json"))
    assert [fold.fold for fold in training.folds] == [1, 2]


@pytest.mark.parametrize("fold", [1, 2])
def test_history_of_a_fold_has_a_row_per_epoch(stack: LocalStack, first_run: FinishedRun, fold: int) -> None:
    rows = csv.DictReader(io.StringIO(stack.store.get(first_run.paths.document(fold_file(fold, "csv"))).decode()))
    epochs = [EpochRow.model_validate(row) for row in rows]
    assert [(epoch.fold, epoch.epoch) for epoch in epochs] == [(fold, 1), (fold, 2)]


def test_the_model_loads_elsewhere_and_answers_as_it_was_evaluated(
    stack: LocalStack, first_run: FinishedRun, images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.h5"
    file.write_bytes(stack.store.get(first_run.paths.document("model.h5")))
    predictions = read_predictions(stack.store.get(first_run.paths.document("predictions.parquet")))
    asked = [row for row, answer in enumerate(predictions["file_benign"]) if answer is not None][:5]
    keys = [predictions["key"][row] for row in asked]
    paths = [str(images / Path(key).relative_to(stack.settings.images_prefix)) for key in keys]
    plugins = str(Path(__file__).resolve().parents[2] / "plugins")
    done = subprocess.run(
        [sys.executable, "-c", _PREDICT, str(file), json.dumps(paths), plugins], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout.splitlines()[-1])
    for row, probabilities in zip(asked, answered):
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        evaluated = [predictions[f"file_{label}"][row] for label in CLASSES]
        assert probabilities == pytest.approx(evaluated, abs=1e-4)


def test_the_verdict_is_reached_and_acted_upon(stack: LocalStack, first_run: FinishedRun) -> None:
    gate = stack.store.load_key(GateDocument, first_run.paths.document("gate.json"))
    assert gate.verdict == "approved_without_champion"
    assert gate.reasons and all(rule.sentence for rule in gate.rules)
    promotion = stack.store.load_key(PromotionDocument, first_run.paths.document("promotion.json"))
    champion = stack.store.load_key(ChampionDocument, champion_pointer(stack.settings.models_prefix))
    assert promotion.promoted and champion.version == promotion.version
    assert champion.sha256 == promotion.model.sha256
    for name in MODEL_FILES:
        assert stack.store.head(model_file(stack.settings.models_prefix, champion.version, name)), name
    model = stack.store.load_key(ModelDocument, model_file(stack.settings.models_prefix, champion.version, "model.json"))
    assert model.classes == CLASSES


def test_synthetic_images_are_said_to_be_synthetic(stack: LocalStack, first_run: FinishedRun) -> None:
    gate = stack.store.load_key(GateDocument, first_run.paths.document("gate.json"))
    assert gate.synthetic is not REAL_IMAGES.is_dir()


def test_parameters_reach_the_run(stack: LocalStack, first_run: FinishedRun) -> None:
    config = stack.store.load_key(ConfigDocument, first_run.paths.document("config.json"))
    given = {**TINY, "folds": 2}
    assert {name: getattr(config.config, name) for name in given} == given
    assert {config.origins[name] for name in given} == {"given"}


def test_only_tasks_load_tensorflow(first_run: FinishedRun) -> None:
    assert first_run.tasks_mapped_tensorflow, "no task was seen with TensorFlow: the look at the processes sees nothing"
    assert first_run.mapped_tensorflow == {}


def test_nothing_listens_beyond_loopback(stack: LocalStack, first_run: FinishedRun) -> None:
    assert sorted(_listening(stack)) and {address for address, _ in _listening(stack)} <= {"127.0.0.1", "::1"}


def _listening(stack: LocalStack) -> Iterator[tuple[str, int]]:
    for name in stack.supervisor.names():
        for process in stack.supervisor.processes(name):
            for connection in process.net_connections(kind="inet"):
                if connection.status == "LISTEN":
                    yield connection.laddr.ip, connection.laddr.port
