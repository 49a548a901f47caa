"""From a run's documents to the model in use: real files, a real S3 server, a real Keras model in a process of its own."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped
from PIL import Image

from bcc_ops.config import Settings
from bcc_ops.dataset.snapshot import ImageRules, Listing, list_images, write_images
from bcc_ops.dataset.sync import ImageCache, sync_images
from bcc_ops.evaluation.comparison import ACROSS_FOLDS, NEAR_DUPLICATE
from bcc_ops.exceptions import ModelError, StorageUnavailable
from bcc_ops.models import classifier
from bcc_ops.models.classifier import load_classifier
from bcc_ops.models.keras_import import import_keras
from bcc_ops.models.registry import MODEL_FILES, ModelRegistry
from bcc_ops.operators.evaluate_model import EvaluateModelOperator
from bcc_ops.operators.gate_model import GateModelOperator
from bcc_ops.operators.upload_model import UploadModelOperator
from bcc_ops.promotion.promote import release_hold, set_champion
from bcc_ops.promotion.run_upload import smoke_test_version
from bcc_ops.promotion.smoke_test import TOLERANCE, Sample, answer, run_smoke_test
from bcc_ops.runs.documents import (
    FOLDS,
    ConfigDocument,
    Document,
    EvaluationDocument,
    FoldSummary,
    GateDocument,
    PromotionDocument,
    Reference,
)
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths, run_slug
from bcc_ops.runs.rows import AssignmentRow, ContentRow, SplitRow
from bcc_ops.runs.tables import write_answers, write_rows
from local.s3_server import S3Server
from tests.services.faulty_proxy import FAULTS, faulty
from tests.unit.report.samples import (
    checks_document,
    config_document,
    snapshot_document,
    split_document,
    training_document,
)

CLASSES = ("benign", "malignant", "normal")
SIDE = 32
FIRST = datetime(2026, 11, 1, 2, tzinfo=timezone.utc)
OPENING = {"min_balanced_accuracy": 0, "min_macro_auc": 0, "min_malignant_sensitivity": 0, "min_malignant_specificity": 0}
PARAMETERS = {
    "min_malignant_groups": 5,
    "balanced_accuracy_margin": 1,
    "sensitivity_margin": 1,
    **OPENING,
}

pytestmark = pytest.mark.slow


def picture(label: str, number: int, width: int = 48) -> bytes:
    """Noise 48 pixels high, darker or lighter by its class."""
    generator = np.random.default_rng([number, *label.encode()])
    level = {"benign": 60, "malignant": 130, "normal": 200}[label]
    pixels = np.clip(generator.normal(level, 25, (48, width)) + generator.normal(0, 12), 0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model that reads the brightness, one with a Lambda layer, and one for two classes."""
    keras = import_keras()
    folder = tmp_path_factory.mktemp("models")

    def save(name: str, *layers: Any) -> bytes:
        model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), *layers])
        if name == "good":
            # softmax of minus the squared distance to each class' level, up to what all classes share
            levels = np.array([60.0, 130.0, 200.0]) / 255
            model.layers[-1].set_weights([np.tile(2 * levels, (3, 1)) * 40 / 3, -(levels**2) * 40])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("absl.logging.warning", lambda *said: None)
            model.save(folder / f"{name}.h5")
        return (folder / f"{name}.h5").read_bytes()

    rescale, pool = (lambda: keras.layers.Rescaling(1 / 255)), keras.layers.GlobalAveragePooling2D
    return {
        "good": save("good", rescale(), pool(), keras.layers.Dense(3, activation="softmax")),
        "lambda": save("lambda", keras.layers.Lambda(lambda x: x / 255), pool(), keras.layers.Dense(3, activation="softmax")),
        "two classes": save("two", rescale(), pool(), keras.layers.Dense(2, activation="softmax")),
    }


@pytest.fixture(scope="module", autouse=True)
def networks() -> Iterator[None]:
    """Build the network of a file once: Keras takes half a second, and a run's folds, its model and the champion are alike."""
    load, built = classifier.load_model, {}

    def load_once(path: Path) -> Any:
        content = hashlib.sha256(path.read_bytes()).digest()
        if content not in built:  # what is refused is refused again
            built[content] = load(path)
        return built[content]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "load_model", load_once)
        yield


@dataclass
class Place:
    """A bucket with images, set up as the place that the pipeline runs in."""

    store: ObjectStore
    registry: ModelRegistry
    settings: Settings
    cache: ImageCache
    scratch: Path

    @property
    def fetch(self) -> Callable[..., Any]:
        return partial(sync_images, self.store, cache=self.cache)

    def run(
        self, model: bytes, days: int = 0, changes: dict[str, str] | None = None, keep_aspect: bool = False, **parameters: Any
    ) -> Run:
        """A run whose training has just ended with this model from every fold; `changes` moves keys to other groups."""
        config = config_document(**{**PARAMETERS, **parameters})
        as_of = FIRST + timedelta(days=days)
        paths = RunPaths.of("artifacts", as_of, f"manual-{days}")
        listing = list_images(self.store, ImageRules.of(self.settings, config.config))
        split, contents = self._tables(listing, changes or {})

        def save(name: str, document: Document) -> dict[str, str]:
            return self.store.save(paths.document(name), document).to_xcom()

        def put(name: str, content: bytes) -> Reference:
            return self.store.put_referenced(paths.document(name), content)

        images = put("images.parquet", write_images(listing.images))
        snapshot = snapshot_document(bucket=self.store.bucket, as_of=as_of, images=images)
        table = put("contents.parquet", write_rows(ContentRow, contents))
        validation = checks_document(contents=table, refused=(), conflicts=(), groups=())
        assigned = [AssignmentRow(row.key, row.sha256, "", row.label, row.group, row.fold, 1) for row in split]
        folds_of_run = FOLDS[: config.config.folds]
        answered = [row for row in split if row.fold in folds_of_run]
        answers = put("out_of_fold.parquet", write_answers(answered, CLASSES, self._answers(model, answered, keep_aspect)))
        split_json = split_document(
            table=put("split.parquet", write_rows(SplitRow, split)),
            assignments=put("assignments.parquet", write_rows(AssignmentRow, assigned)),
            previous_run=None,
            holdout_reuse=1,
        )
        folds = tuple(
            FoldSummary(
                fold=fold,
                images=len(split) - sum(row.fold == fold for row in split),
                held_out=sum(row.fold == fold for row in split),
                epochs=1,
                seconds=1,
                resumed_after_epochs=(),
                host="worker-1",
                model=put(f"fold-{fold}.h5", model),
            )
            for fold in folds_of_run
        )
        training = training_document(
            model=put("model.h5", model), image_size=SIDE, keep_aspect=keep_aspect, folds=folds, answers=answers
        )
        pinned = {"config": save("config.json", config)["sha256"], "snapshot": save("snapshot.json", snapshot)["sha256"]}
        references = {
            "run": {"folder": paths.folder_name, **pinned},
            "checks": save("checks.json", validation),
            "split": save("split.json", split_json),
            "training": save("training.json", training),
        }
        return Run(self.store, paths, references, [row.key for row in split])

    def _tables(self, listing: Listing, changes: dict[str, str]) -> tuple[list[SplitRow], list[ContentRow]]:
        """The split and what the checks saw: each image is good and like no other, and a fifth of them is in each fold."""
        split, contents = [], []
        for number, image in enumerate(self.fetch(listing.images)):
            group = changes.get(image.key, f"g{number}")
            fold = number % 5 + 1 if image.key not in changes else 1
            split.append(SplitRow(image.key, image.sha256, image.label, group, fold))
            contents.append(ContentRow(image.key, image.label, image.sha256, 48, 48, "L", 90.0, 20.0, False, group, ""))
        return split, contents

    def _answers(self, model: bytes, rows: list[SplitRow], keep_aspect: bool) -> np.ndarray:
        """What the model answers about these images."""
        file = self.scratch / f"{hashlib.sha256(model).hexdigest()}.h5"
        file.write_bytes(model)
        images = self.fetch(list_images(self.store, ImageRules.of(self.settings, config_document().config)).images)
        path_of = {image.key: image.path for image in images}
        return load_classifier(file, keep_aspect=keep_aspect).predict([path_of[row.key] for row in rows])


@dataclass
class Run:
    """A run and its tasks from the evaluation on.

    Args:
        store: the bucket, as the tasks reach it.
        paths: of the run's documents.
        references: to those that the tasks are handed.
        keys: of its images.
    """

    store: ObjectStore
    paths: RunPaths
    references: dict[str, dict[str, str]]
    keys: list[str]

    def evaluate(self) -> EvaluationDocument:
        self._run(EvaluateModelOperator(task_id="evaluate_model", **self.references))
        return self.store.load_key(EvaluationDocument, self.paths.document("evaluation.json"))

    def gate(self) -> GateDocument:
        """What the gate decides about the evaluation that is there."""
        with DAG("tests", schedule=None, start_date=FIRST):
            gate = GateModelOperator(
                task_id="gate_model",
                run=self.references["run"],
                split=self.references["split"],
                evaluation=self._reference("evaluation.json"),
                approve_task_id="approve_model",
                upload_task_id="upload_model",
            )
            gate >> [EmptyOperator(task_id="approve_model"), EmptyOperator(task_id="upload_model")]
        with suppress(DownstreamTasksSkipped):
            self._run(gate)
        return self.store.load_key(GateDocument, self.paths.document("gate.json"))

    def upload(self) -> PromotionDocument:
        task = UploadModelOperator(
            task_id="upload_model",
            **self.references,
            evaluation=self._reference("evaluation.json"),
            gate=self._reference("gate.json"),
        )
        self._run(task)
        return self.store.load_key(PromotionDocument, self.paths.document("promotion.json"))

    def promoted(self) -> PromotionDocument:
        """Evaluate, decide and upload."""
        self.evaluate()
        self.gate()
        return self.upload()

    def _run(self, task: Any) -> None:
        task.__dict__["store"] = self.store
        events: dict[Any, Any] = defaultdict(lambda: SimpleNamespace(extra={}))
        ti = SimpleNamespace(task=task, map_index=-1, xcom_push=lambda key, value: None)
        run_id = self.store.load_key(ConfigDocument, self.paths.document("config.json")).run_id
        task.execute({"ti": ti, "run_id": run_id, "dag_run": SimpleNamespace(run_type="manual"), "outlet_events": events})

    def _reference(self, name: str) -> dict[str, str]:
        key = self.paths.document(name)
        return Reference.of(key, self.store.get(key)).to_xcom()


@pytest.fixture
def place(store: ObjectStore, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("BCC_BUCKET", store.bucket)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    for label in CLASSES:
        for number in range(16):
            store.put(f"images/{label}/{number:02d}.png", picture(label, number))
    return Place(
        store, ModelRegistry(store, "models"), Settings.from_environment(), ImageCache(tmp_path / "cache", 10**9), tmp_path
    )


@pytest.fixture
def smoke_tests(monkeypatch: pytest.MonkeyPatch) -> list[list[Sample]]:
    """Stands for the smoke test's process where that is not what is tested: it costs an import of TensorFlow."""
    asked: list[list[Sample]] = []
    monkeypatch.setattr(
        "bcc_ops.promotion.run_upload.run_smoke_test", lambda path, samples, classes, keep_aspect: asked.append(samples)
    )
    return asked


def test_a_first_model_is_evaluated_approved_tested_and_promoted(place: Place, models: dict[str, bytes]) -> None:
    run = place.run(models["good"])
    evaluation = run.evaluate()
    assert evaluation.challenger.images == 48
    assert evaluation.file_check is not None and evaluation.file_check.passed
    assert (evaluation.challenger.balanced_accuracy.value or 0) > 0.9
    gate = run.gate()
    assert (gate.verdict, gate.holdout_reuse) == ("approved_without_champion", 1)
    done = run.upload()
    assert (done.promoted, done.previous_champion, done.approved_by) == (True, None, "the gate")
    document = place.registry.model(done.version)
    assert document.operating_point == evaluation.challenger.operating_point
    assert document.run == run.paths.folder_name
    assert place.store.load(EvaluationDocument, document.evaluation) == evaluation
    card = place.store.get(place.registry.key(done.version, "model_card.md")).decode()
    assert card.startswith(f"# Breast ultrasound classifier {done.version}")
    assert all(place.store.head(place.registry.key(done.version, name)) for name in MODEL_FILES)
    assert run.upload() == done


@pytest.mark.usefixtures("smoke_tests")
def test_a_second_model_is_compared_on_the_answers_that_the_champion_stored(place: Place, models: dict[str, bytes]) -> None:
    first = place.run(models["good"])
    first.promoted()
    for label in CLASSES:
        place.store.put(f"images/{label}/new.png", picture(label, 50))
    together = dict.fromkeys(first.keys[:2], "one lesion")  # by now; the champion had them in two folds
    comparison = place.run(models["good"], days=1, changes=together).evaluate().comparison
    assert comparison is not None and comparison.champion is not None and comparison.challenger is not None
    assert (comparison.recorded, comparison.asked) == (46, 3)
    assert comparison.left_out == {ACROSS_FOLDS: 2}
    assert comparison.champion.images == 49
    assert comparison.differences["balanced_accuracy"].value == 0
    assert NEAR_DUPLICATE not in comparison.left_out


@pytest.mark.parametrize("champion_keeps", [False, True])
@pytest.mark.usefixtures("smoke_tests")
def test_champion_and_challenger_see_images_each_as_it_was_trained(
    place: Place, models: dict[str, bytes], champion_keeps: bool
) -> None:
    """The network reads the mean brightness. Of an image twice as wide as high, padding leaves half of it: a wrong answer."""
    place.run(models["good"], keep_aspect=champion_keeps).promoted()
    for number in range(50, 66):
        for label in CLASSES:
            place.store.put(f"images/{label}/{number}.png", picture(label, number, width=96))
            place.store.put(f"elsewhere/{label}/{number}.png", picture(label, number + 50, width=96))
    later = (datetime.now(timezone.utc) - FIRST).days + 2
    run = place.run(
        models["good"], days=later, keep_aspect=not champion_keeps, external_prefixes="elsewhere", min_side=SIDE, folds=5
    )
    evaluation = run.evaluate()
    (external,), comparison = evaluation.external, evaluation.comparison
    assert external.champion is not None
    assert comparison is not None and comparison.champion is not None and comparison.challenger is not None
    assert comparison.asked == 48  # the wide ones
    padded, squeezed = ("champion", "challenger") if champion_keeps else ("challenger", "champion")
    assert getattr(external, squeezed).balanced_accuracy.value > 0.9
    assert getattr(external, padded).balanced_accuracy.value < 0.6
    assert getattr(comparison, squeezed).balanced_accuracy.value > 0.9
    assert getattr(comparison, padded).balanced_accuracy.value < 0.8
    assert evaluation.file_check is not None and evaluation.file_check.agreement == 1  # the folds' models and the file alike


@pytest.mark.parametrize(("before", "now"), [(1, 5), (5, 1), (1, 1)])
@pytest.mark.usefixtures("smoke_tests")
def test_another_number_of_folds_is_compared_on_what_both_answer_honestly(
    place: Place, models: dict[str, bytes], before: int, now: int
) -> None:
    place.run(models["good"], folds=before).promoted()
    comparison = place.run(models["good"], days=1, folds=now).evaluate().comparison
    assert comparison is not None and comparison.champion is not None
    assert (comparison.recorded, comparison.asked) == (10, 0)  # of the first fold
    assert sum(comparison.left_out.values()) == (38 if now == 5 else 0)


@pytest.mark.usefixtures("smoke_tests")
def test_a_worse_model_is_rejected_with_reasons_and_nothing_is_uploaded(place: Place, models: dict[str, bytes]) -> None:
    place.run(models["good"]).promoted()
    strict = place.run(models["good"], days=1, min_balanced_accuracy=1.0, min_macro_auc=1.0, min_malignant_groups=500)
    strict.evaluate()
    gate = strict.gate()
    assert gate.verdict == "rejected" and len(gate.reasons) >= 1
    with pytest.raises(AirflowFailException, match=r"ArtifactError: .*rejected"):
        strict.upload()
    assert len(place.registry.versions()) == 1


@pytest.mark.usefixtures("smoke_tests")
def test_a_lost_race_is_kept_in_promotion_json(place: Place, models: dict[str, bytes]) -> None:
    place.run(models["good"]).promoted()
    run = place.run(models["good"], days=1)
    run.evaluate()
    run.gate()
    place.run(models["good"], days=2).promoted()
    with pytest.raises(AirflowFailException, match=r"PromotionLost: .*Clear evaluate_model"):
        run.upload()
    kept = place.store.load_key(PromotionDocument, run.paths.document("promotion.json"))
    assert not kept.promoted and "was not uploaded, since" in kept.reason


@pytest.mark.parametrize("damage", ["gone", "truncated", "lambda", "two classes", "no split", "no answers", "no model.json"])
@pytest.mark.usefixtures("smoke_tests")
def test_a_champion_that_cannot_be_had_is_said_and_never_loaded(place: Place, models: dict[str, bytes], damage: str) -> None:
    done = place.run(models["good"]).promoted()
    key = place.registry.key(done.version, "model.h5")
    remove = partial(place.store.client.delete_object, Bucket=place.store.bucket)
    expected = {
        "gone": "is gone",
        "truncated": "is not the promised file",
        "no split": "no such object",
        "no answers": "no such object",
        "no model.json": "not whole",
    }
    files = {"gone": "model.h5", "no split": "split.parquet", "no answers": "out_of_fold.parquet", "no model.json": "model.json"}
    if damage in files:
        remove(Key=place.registry.key(done.version, files[damage]))
    elif damage == "truncated":
        place.store.put(key, models["good"][:1000])
    else:  # whoever may write the pointer may name another file, which the recorded answers are not of
        content = models[damage]
        place.store.put(key, content)
        pointer = place.registry.champion()
        assert pointer is not None and pointer.champion is not None
        named = pointer.champion.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
        place.store.save("models/champion.json", named)
    run = place.run(models["good"], days=1)
    comparison = run.evaluate().comparison
    assert comparison is not None and comparison.champion is None
    said = expected.get(damage, "names another file than the model.json")
    assert said in (comparison.problem or "")
    gate = run.gate()
    assert gate.verdict == "rejected" and said in gate.reasons[0]


def test_a_damaged_pointer_stops_the_evaluation_with_the_way_out(place: Place, models: dict[str, bytes]) -> None:
    place.store.put("models/champion.json", b"<html>")
    with pytest.raises(AirflowFailException, match=r"ArtifactError: .*bcc_set_champion"):
        place.run(models["good"]).evaluate()


def test_external_images_are_reported_as_of_the_run_and_never_the_runs_own(place: Place, models: dict[str, bytes]) -> None:
    for number in range(100, 106):
        for label in CLASSES:
            place.store.put(f"elsewhere/{label}/{number}.png", picture(label, number))
    place.store.put("elsewhere/benign/known.png", picture("benign", 3))
    place.store.put("elsewhere/normal/broken.png", b"no image")
    place.store.put("elsewhere/normal/100_mask.png", picture("normal", 7))
    later = (datetime.now(timezone.utc) - FIRST).days + 2
    run = place.run(models["good"], days=later, external_prefixes="elsewhere/", min_side=SIDE)
    evaluation = run.evaluate()
    (external,) = evaluation.external
    assert external.challenger is not None and external.challenger.images == 18
    assert (external.note or "").startswith(
        "18 images in 18 near-duplicate groups under elsewhere/ (6 benign, 6 malignant, 6 normal); "
        "left out: 1 also in this run, 1 not an image."
    )
    (rule,) = (row for row in run.gate().rules if "external" in row.rule)
    assert not rule.applies  # there is no champion
    (before,) = place.run(models["good"], external_prefixes="elsewhere").evaluate().external
    assert before.challenger is None and (before.note or "").startswith("0 images in 0 near-duplicate groups under elsewhere/")


def test_a_roll_back_is_tested_with_its_own_runs_images_and_without_them_where_they_are_gone(
    place: Place, models: dict[str, bytes], smoke_tests: list[list[Sample]], tmp_path: Path
) -> None:
    first = place.run(models["good"]).promoted()
    place.run(models["good"], days=1).promoted()
    told: list[str] = []

    def smoke_test(document: Any, path: Path) -> None:
        smoke_test_version(document, path, place.fetch, told.append)

    def choose(version: str) -> str:
        return set_champion(place.registry, version, smoke_test, by="ana", reason="worse here", now=FIRST).version

    assert choose(first.version) == first.version
    assert [sample.name for sample in smoke_tests[2]] == [sample.name for sample in smoke_tests[0]]
    assert all(sample.expected is not None and sample.path.is_file() for sample in smoke_tests[2])
    assert told == []
    newest = place.registry.versions()[-1]
    (gone, *_) = place.registry.model(newest).smoke_test
    place.store.client.delete_object(Bucket=place.store.bucket, Key=gone.key)
    place.cache = ImageCache(tmp_path / "another worker's cache", 10**9)
    assert choose(newest) == newest
    assert [(sample.name, sample.expected) for sample in smoke_tests[3]] == [("a gray image", None)]
    assert len(told) == 1 and "only has to load and to answer" in told[0]


# A version needs nothing of its run -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("smoke_tests")
@pytest.mark.parametrize("what", ["is deleted", "is written anew by another release of pyarrow"])
def test_a_champion_is_compared_whatever_becomes_of_the_run_that_made_it(
    place: Place, models: dict[str, bytes], what: str
) -> None:
    first = place.run(models["good"])
    first.promoted()
    if what == "is deleted":
        place.store.delete_folder(first.paths.folder)
    else:
        place.store.put(first.paths.document("split.parquet"), b"other bytes")
    comparison = place.run(models["good"], days=1).evaluate().comparison
    assert comparison is not None and comparison.problem is None and comparison.champion is not None


def test_a_bucket_that_is_restored_under_another_name_works(
    place: Place,
    models: dict[str, bytes],
    make_store: Callable[..., ObjectStore],
    smoke_tests: list[list[Sample]],
    monkeypatch: Any,
) -> None:
    first = place.run(models["good"]).promoted()
    restored = make_store()
    for entry in place.store.list_objects(""):
        restored.put(entry["Key"], place.store.get(entry["Key"]))
    monkeypatch.setenv("BCC_BUCKET", restored.bucket)
    there = Place(restored, ModelRegistry(restored, "models"), Settings.from_environment(), place.cache, place.scratch)
    second = there.run(models["good"], days=1)
    comparison = second.evaluate().comparison
    assert comparison is not None and comparison.problem is None
    second.gate()
    assert second.upload().previous_champion == first.version

    def smoke_test(document: Any, path: Path) -> None:
        smoke_test_version(document, path, there.fetch, lambda sentence: None)

    rolled_back = set_champion(there.registry, first.version, smoke_test, by="ana", reason="worse here", now=FIRST)
    assert rolled_back.version == first.version
    assert place.registry.champion() is not None and len(smoke_tests) == 3


@pytest.mark.usefixtures("smoke_tests")
def test_clearing_a_run_whose_model_came_into_use_changes_no_document_that_says_so(
    place: Place, models: dict[str, bytes]
) -> None:
    """Its verdict would be about today's champion: gate.json flipped to rejected, and promotion.json said "lost"."""
    first = place.run(models["good"])
    first.promoted()
    place.run(models["good"], days=1).promoted()
    names = ("evaluation.json", "gate.json", "promotion.json")
    before = {name: place.store.get(first.paths.document(name)) for name in names}
    pointer = place.store.get("models/champion.json")
    first.promoted()
    assert {name: place.store.get(first.paths.document(name)) for name in names} == before
    assert place.store.get("models/champion.json") == pointer


# What a person decided ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("smoke_tests")
def test_a_rollback_sticks_until_a_person_says_otherwise(place: Place, models: dict[str, bytes]) -> None:
    """V1, V2, back to V1; the next night promoted a V3 with the very weights of V2."""
    better = models["good"] + b"\0"  # another file, the same weights: HDF5 ends before it
    first = place.run(models["good"]).promoted()
    second = place.run(better, days=1).promoted()
    set_champion(place.registry, first.version, lambda *given: None, by="ana", reason="misses lesions", now=FIRST)

    again = place.run(better, days=2)
    again.evaluate()
    verdict = again.gate()
    assert verdict.verdict == "rejected" and "withdrew this very model" in verdict.reasons[0]

    other = place.run(models["good"] + b"\0\0", days=3)
    other.evaluate()
    verdict = other.gate()
    assert verdict.verdict == "needs_person"
    assert "ana holds champion" in " ".join(verdict.reasons)
    with pytest.raises(AirflowFailException, match="ApprovalMissing"):
        other.upload()
    pointer = place.registry.champion()
    assert pointer is not None and pointer.champion is not None and pointer.champion.version == first.version

    release_hold(place.registry, by="ana", reason="labels are corrected", now=FIRST)
    other.evaluate()
    assert other.gate().verdict == "approved"
    assert other.upload().previous_champion == first.version
    assert second.version != other.upload().version


# S3 errors -----------------------------------------------------------------------------------------------------------

READS = {
    "the split": f"__{run_slug('manual-1')}/split.parquet",
    "what the checks saw": f"__{run_slug('manual-1')}/contents.parquet",
    "its answers": f"__{run_slug('manual-1')}/out_of_fold.parquet",
    "a fold's model": f"__{run_slug('manual-1')}/fold-2.h5",
    "the challenger": f"__{run_slug('manual-1')}/model.h5",
    "the pointer": "/models/champion.json",
    "the champion's document": "/models/*/model.json",
    "the champion's split": "/models/*/split.parquet",
    "the champion's answers": "/models/*/out_of_fold.parquet",
    "the champion": "/models/*/model.h5",
}
"""What an evaluation reads -> the end of its path."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("smoke_tests")
def test_an_s3_error_at_any_read_of_an_evaluation_is_one_clear_line_that_a_retry_mends(
    place: Place, models: dict[str, bytes], s3_server: S3Server, fault: str
) -> None:
    place.run(models["good"]).promoted()
    run = place.run(models["good"], days=1)
    broken: list[str] = []
    with faulty(s3_server, lambda path, number: fault if fnmatch(path, f"*{broken[0]}") else None) as proxy:
        store = ObjectStore(proxy.client(fault), place.store.bucket)
        shaky = replace(run, store=store)
        for read in READS.values():
            broken[:] = [read]
            with pytest.raises(StorageUnavailable) as told:
                shaky.evaluate()
            assert "\n" not in str(told.value)
            assert fnmatch(str(told.value), f"reading s3://{store.bucket}/*{read.lstrip('/')}: *")
            assert place.store.head(run.paths.document("predictions.parquet")) is None
        broken[:] = ["nothing"]
        assert shaky.evaluate() == run.evaluate()


# The smoke test's own process -----------------------------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.png"
    path.write_bytes(picture("malignant", 1))
    return path


def test_the_smoke_test_shows_the_model_what_it_was_trained_on_and_tells_what_is_wrong_with_another(
    models: dict[str, bytes], sample: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.h5").write_bytes(models["good"])
    (tmp_path / "wide.png").write_bytes(picture("malignant", 1, width=96))
    (expected,) = load_classifier(tmp_path / "model.h5", keep_aspect=True).predict([tmp_path / "wide.png"]).tolist()
    samples = [Sample("sample.png", sample, None), Sample("wide.png", tmp_path / "wide.png", tuple(expected))]
    run_smoke_test(tmp_path / "model.h5", samples, 3, keep_aspect=True)
    with pytest.raises(ModelError, match=r"answer about wide\.png differs by 0\.\d+ from the trained model's"):
        run_smoke_test(tmp_path / "model.h5", samples, 3, keep_aspect=False)


def test_the_smoke_test_counts_probabilities_and_compares_them(models: dict[str, bytes], sample: Path, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(models["good"])
    images: dict[str, Any] = {"images": [str(sample)], "names": ["sample.png"], "expected": [None]}
    request = {"model": str(tmp_path / "model.h5"), **images, "keep_aspect": False, "tolerance": TOLERANCE}
    with pytest.raises(ModelError, match="2 probabilities"):  # what the process itself does, without another import of TensorFlow
        answer({**request, "classes_count": 2})
    with pytest.raises(ModelError, match=r"answer about sample\.png differs by 0\.\d+ from the trained model's"):
        answer({**request, "classes_count": 3, "expected": [(0.98, 0.01, 0.01)]})


@pytest.mark.parametrize(
    ("kind", "said"), [("lambda", "the class 'Lambda' is not on the list"), ("truncated", "is not a Keras .h5 model")]
)
def test_the_smoke_test_refuses_what_must_not_be_loaded(
    models: dict[str, bytes], sample: Path, tmp_path: Path, kind: str, said: str
) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(models["good"][:500] if kind == "truncated" else models[kind])
    with pytest.raises(ModelError, match=f"smoke test: .*{said}"):
        run_smoke_test(path, [Sample("sample.png", sample, None)], 3, keep_aspect=False)


def test_a_smoke_test_that_never_answers_is_ended(models: dict[str, bytes], sample: Path, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(models["good"])
    with pytest.raises(ModelError, match="did not answer within 0 s"):
        run_smoke_test(tmp_path / "model.h5", [Sample("sample.png", sample, None)], 3, keep_aspect=False, timeout=0.2)


def test_a_smoke_test_needs_an_image() -> None:
    with pytest.raises(ModelError, match="at least one image"):
        run_smoke_test(Path("model.h5"), [], 3, keep_aspect=False)
