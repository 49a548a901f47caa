"""What a version has seen and answered, and the versions that a challenger is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcc_ops.exceptions import ArtifactError, ModelError, ObjectNotFound
from bcc_ops.models.champion import answers_of, images_seen, load_anchor, load_champion
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.runs.documents import FOLDS, OLDER_TRAINING, Anchor, ChampionDocument, ModelDocument, Reference
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import write_answers, write_rows
from tests.unit.report.samples import CLASSES, model_document

AS_OF = datetime(2026, 11, 15, 2, tzinfo=timezone.utc)
PROBABILITIES = (0.5, 0.25, 0.25)


def rows(name: str, folds: Sequence[int] = FOLDS) -> list[SplitRow]:
    """One image of the version's own per fold."""
    return [SplitRow(f"{name}-{fold}.png", f"{name}-{fold}", "benign", "g", fold) for fold in folds]


def version(store: ObjectStore, name: str, **changes: Any) -> ModelDocument:
    """A version that was trained on one image of its own per fold."""
    split = store.put_referenced(f"models/{name}/split.parquet", write_rows(SplitRow, rows(name)))
    document = model_document(name, **{"split": split, "answers": None, **changes})
    store.save(f"models/{name}/model.json", document)
    return document


def older_version(store: ObjectStore, name: str, started_from: str | None = None) -> ModelDocument:
    """A version of an older release: it had one model, which held out what is fold 1 now."""
    table = write_rows(SplitRow, rows(name, (OLDER_TRAINING, 1)))
    split = store.put_referenced(f"artifacts/runs/{name}/split.parquet", table)
    return version(store, name, split=split, folds=(1,), warm_started_from=started_from)


# images_seen ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [(1, 2), FOLDS])
def test_a_version_of_several_models_has_seen_the_images_of_every_fold(store: ObjectStore, folds: tuple[int, ...]) -> None:
    """Each of its models held a fold out, and the file that is made of them held out none."""
    made = version(store, "v1", folds=folds)
    assert images_seen(ModelRegistry(store, "models"), made) == {f"v1-{fold}" for fold in FOLDS}


@pytest.mark.parametrize("fold", [1, 3])
def test_a_version_of_one_model_has_not_seen_the_fold_that_it_held_out(store: ObjectStore, fold: int) -> None:
    made = version(store, "v1", folds=(fold,))
    assert images_seen(ModelRegistry(store, "models"), made) == {f"v1-{other}" for other in FOLDS if other != fold}


def test_a_version_of_an_older_release_has_seen_all_but_what_it_held_out(store: ObjectStore) -> None:
    alone = older_version(store, "v1")
    assert images_seen(ModelRegistry(store, "models"), alone) == {f"v1-{OLDER_TRAINING}"}


def test_a_version_has_seen_bytes_and_pixels(store: ObjectStore) -> None:
    row = SplitRow("a.png", "bytes", "benign", "g", 2, "pixels")
    split = store.put_referenced("models/v1/split.parquet", write_rows(SplitRow, [row]))
    assert images_seen(ModelRegistry(store, "models"), model_document("v1", split=split)) == {"bytes", "pixels"}


def test_a_version_has_seen_what_those_have_that_its_weights_come_from(store: ObjectStore) -> None:
    older_version(store, "v1")
    older_version(store, "v2", started_from="v1")
    third = older_version(store, "v3", started_from="v2")
    assert images_seen(ModelRegistry(store, "models"), third) == {f"v{n}-{OLDER_TRAINING}" for n in (1, 2, 3)}


def test_where_an_ancestor_or_its_split_is_gone_nobody_knows(store: ObjectStore) -> None:
    registry = ModelRegistry(store, "models")
    first, second = older_version(store, "v1", started_from="v0"), older_version(store, "v2", started_from="v1")
    with pytest.raises(ModelError, match="there is no version v0"):
        images_seen(registry, second)
    store.client.delete_object(Bucket=store.bucket, Key=first.split.key)
    with pytest.raises(ObjectNotFound):
        images_seen(registry, second)


# answers_of -----------------------------------------------------------------------------------------------------------


def answered(store: ObjectStore, name: str, **changes: Any) -> ModelDocument:
    """A version with its out-of-fold answers."""
    table = write_answers(rows(name), CLASSES, np.array([PROBABILITIES] * len(FOLDS)))
    return version(store, name, **{"answers": store.put_referenced(f"models/{name}/out_of_fold.parquet", table), **changes})


def test_a_versions_out_of_fold_answers_are_read_with_their_images(store: ObjectStore) -> None:
    found, probabilities = answers_of(ModelRegistry(store, "models"), answered(store, "v1"))
    assert found == rows("v1")
    np.testing.assert_array_equal(probabilities, [PROBABILITIES] * len(FOLDS))


def test_a_version_of_an_older_release_has_no_answers(store: ObjectStore) -> None:
    found, probabilities = answers_of(ModelRegistry(store, "models"), older_version(store, "v1"))
    assert (found, probabilities.shape) == ([], (0, len(CLASSES)))


def recorded(store: ObjectStore, name: str, answers: Sequence[float], label: str = "benign", **changes: Any) -> ModelDocument:
    """A version with one out-of-fold answer."""
    row = SplitRow("a.png", "a", label, "g", 1)
    table = write_answers([row], CLASSES, np.array([answers]))
    return version(store, name, answers=store.put_referenced(f"models/{name}/out_of_fold.parquet", table), **changes)


@pytest.mark.parametrize(
    "answers",
    [
        (float("nan"), 0.5, 0.5),
        (float("inf"), 0.0, 0.0),
        (1.2, -0.2, 0.0),
        (0.5, 0.5, 0.02),
        (0.0, 0.0, 0.0),
    ],
    ids=["not a number", "infinite", "negative", "more than one", "nothing"],
)
def test_recorded_answers_that_are_no_probabilities_are_not_compared_with(store: ObjectStore, answers: Sequence[float]) -> None:
    with pytest.raises(ArtifactError, match=r"models/v1/out_of_fold\.parquet has answers that are not probabilities"):
        answers_of(ModelRegistry(store, "models"), recorded(store, "v1", answers))


def test_recorded_answers_that_are_rounded_are_compared_with(store: ObjectStore) -> None:
    _, probabilities = answers_of(ModelRegistry(store, "models"), recorded(store, "v1", (0.333, 0.333, 0.333)))
    np.testing.assert_array_equal(probabilities, [(0.333, 0.333, 0.333)])


def test_recorded_answers_about_a_class_that_the_version_does_not_know_are_not_compared_with(store: ObjectStore) -> None:
    with pytest.raises(ArtifactError, match="has labels that v1 does not know: cyst"):
        answers_of(ModelRegistry(store, "models"), recorded(store, "v1", PROBABILITIES, label="cyst"))


def test_recorded_answers_for_other_classes_than_the_versions_are_not_compared_with(store: ObjectStore) -> None:
    made = recorded(store, "v1", PROBABILITIES, classes=("benign", "malignant"))
    with pytest.raises(ArtifactError, match="the table of answers has the columns"):
        answers_of(ModelRegistry(store, "models"), made)


def test_answers_that_somebody_replaced_are_not_taken(store: ObjectStore) -> None:
    made = answered(store, "v1")
    better = write_answers(rows("v1"), CLASSES, np.array([(1.0, 0.0, 0.0)] * len(FOLDS)))
    store.put("models/v1/out_of_fold.parquet", better)
    with pytest.raises(ArtifactError, match="has changed"):
        answers_of(ModelRegistry(store, "models"), made)


# load_champion and load_anchor ----------------------------------------------------------------------------------------


@pytest.fixture
def put(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reference]:
    """Upload a version with its answers. Its file is a name: loading a network is tested by test_classifier.py."""
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path, keep_aspect: path.read_bytes())

    def put(name: str, **changes: Any) -> Reference:
        model = store.put_referenced(f"models/{name}/model.h5", f"the file of {name}".encode())
        answered(store, name, model=model, as_of=AS_OF, **changes)
        return model

    return put


def point(store: ObjectStore, name: str, model: Reference, anchor: Anchor | None = None) -> None:
    said = {"by": "the gate", "reason": "approved", "run": "r", "at": AS_OF, "as_of": AS_OF, "synthetic": False}
    store.save("models/champion.json", ChampionDocument(version=name, sha256=model.sha256, anchor=anchor, **said))


def anchored(name: str, model: Reference) -> Anchor:
    since = AS_OF + timedelta(days=1)
    return Anchor(version=name, sha256=model.sha256, since=since, by="the gate", reason="better with confidence")


def test_a_champion_is_loaded_with_its_record_its_answers_and_what_it_has_seen(
    store: ObjectStore, put: Callable[..., Reference], tmp_path: Path
) -> None:
    point(store, "v1", put("v1"))
    champion = load_champion(ModelRegistry(store, "models"), tmp_path)
    assert champion is not None and champion.problem is None
    assert (champion.version, champion.as_of, champion.classes, champion.temperature) == ("v1", AS_OF, CLASSES, 1.2)
    assert champion.model == b"the file of v1"
    assert list(champion.record) == rows("v1") == list(champion.answered)
    assert champion.answers.shape == (len(FOLDS), len(CLASSES))
    assert champion.seen == {f"v1-{fold}" for fold in FOLDS}


def test_an_anchor_that_is_not_the_champion_is_loaded_as_a_champion_is(
    store: ObjectStore, put: Callable[..., Reference], tmp_path: Path
) -> None:
    first, second = put("v1", synthetic=True), put("v2")
    point(store, "v2", second, anchored("v1", first))
    registry = ModelRegistry(store, "models")
    anchor, champion = load_anchor(registry, tmp_path), load_champion(registry, tmp_path)
    assert anchor is not None and anchor.problem is None
    assert (anchor.version, anchor.as_of, anchor.synthetic) == ("v1", AS_OF, True), "as its model.json says"
    assert anchor.model == b"the file of v1"
    assert list(anchor.answered) == rows("v1")
    assert champion is not None and champion.model == b"the file of v2"


def test_an_anchor_that_is_the_champion_and_one_that_is_not_there_are_not_loaded(
    store: ObjectStore, put: Callable[..., Reference], tmp_path: Path
) -> None:
    registry, model = ModelRegistry(store, "models"), put("v1")
    assert (load_champion(registry, tmp_path), load_anchor(registry, tmp_path)) == (None, None)
    point(store, "v1", model)
    assert load_anchor(registry, tmp_path) is None
    point(store, "v1", model, anchored("v1", model))
    assert load_anchor(registry, tmp_path) is None


def _gone(store: ObjectStore, key: str) -> None:
    store.client.delete_object(Bucket=store.bucket, Key=key)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda store: store.put("models/v1/model.h5", b"another"), "is not the promised file"),
        (lambda store: _gone(store, "models/v1/model.h5"), "is gone"),
        (lambda store: _gone(store, "models/v1/model.json"), "is not whole"),
        (lambda store: _gone(store, "models/v1/split.parquet"), "split.parquet"),
        (lambda store: _gone(store, "models/v1/out_of_fold.parquet"), "out_of_fold.parquet"),
        (lambda store: store.put("models/v1/out_of_fold.parquet", b"?"), "has changed"),
    ],
    ids=["another file", "no file", "no document", "no split", "no answers", "other answers"],
)
def test_an_anchor_that_cannot_be_compared_is_a_problem_and_not_an_error(
    store: ObjectStore, put: Callable[..., Reference], tmp_path: Path, spoil: Callable[[ObjectStore], object], said: str
) -> None:
    first, second = put("v1"), put("v2")
    point(store, "v2", second, anchored("v1", first))
    spoil(store)
    anchor = load_anchor(ModelRegistry(store, "models"), tmp_path)
    assert anchor is not None and anchor.model is None
    assert anchor.version == "v1"
    assert anchor.problem is not None and said in anchor.problem
