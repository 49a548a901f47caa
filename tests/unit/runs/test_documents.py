from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import (
    FOLDS,
    Estimate,
    EvaluationDocument,
    ModelDocument,
    Reference,
    SliceEvaluation,
    SplitDocument,
    digest_of,
    parse_document,
)
from bcc_ops.runs.documents import ChampionDocument as Champion
from tests.unit.report.samples import evaluation_document, model_document, split_document


def test_an_estimate_reads_back_as_it_was_written() -> None:
    for estimate in (Estimate(value=0.5, low=0.4, high=0.6), Estimate(value=0.5), Estimate.missing("one class only")):
        assert Estimate.model_validate_json(estimate.model_dump_json()) == estimate


def test_a_missing_metric_is_null_with_a_reason() -> None:
    assert Estimate.missing("no image").model_dump() == {"value": None, "reason": "no image"}


@pytest.mark.parametrize("fields", [{"value": None}, {"value": 0.5, "reason": "why"}, {"value": math.nan}, {"value": math.inf}])
def test_an_estimate_without_value_and_reason_or_not_finite_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Estimate.model_validate(fields)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 1}', b'{"schema_version": 5}', b"\xff\xfe"])
def test_what_is_no_such_document_is_told_in_one_line_with_its_origin(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"^s3://b/champion\.json is not a ChampionDocument") as caught:
        parse_document(Champion, content, "s3://b/champion.json")
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_refused_rather_than_ignored() -> None:
    with pytest.raises(ValidationError, match="colour"):
        Reference.model_validate({"key": "k", "sha256": "0", "colour": "blue"})


def test_an_evaluation_and_a_version_from_before_their_notes_are_still_read() -> None:
    evaluation = json.loads(evaluation_document().to_json())
    version = json.loads(model_document().to_json())
    del evaluation["warm_start_note"], evaluation["comparison"]["caution"], version["warm_started_from"]
    assert EvaluationDocument.model_validate_json(json.dumps(evaluation)) == evaluation_document()
    assert ModelDocument.model_validate_json(json.dumps(version)) == model_document()


def test_a_version_that_does_not_tell_its_folds_held_out_the_first_and_kept_no_answers() -> None:
    version = json.loads(model_document().to_json())
    del version["folds"], version["answers"]
    older = ModelDocument.model_validate_json(json.dumps(version))
    assert (older.folds, older.answers) == ((1,), None)


def test_counts_per_fold_come_back_with_numbers_for_folds() -> None:
    document = split_document()
    assert parse_document(SplitDocument, document.to_json(), "split.json") == document
    assert list(document.counts) == list(FOLDS)


def test_documents_are_frozen() -> None:
    part = SliceEvaluation(
        by="size", value="small", images=1, balanced_accuracy=Estimate(value=1), positive_sensitivity=Estimate(value=1)
    )
    with pytest.raises(ValidationError):
        part.images = 2  # type: ignore[misc]


def test_the_digest_of_a_value_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


@pytest.mark.parametrize(
    ("estimate", "spec", "text"),
    [
        (Estimate(value=0.8534, low=0.801, high=0.902), "", "0.853 (0.801 to 0.902)"),
        (Estimate(value=-0.012, low=-0.03, high=0.01), "+.2f", "-0.01 (-0.03 to +0.01)"),
        (Estimate(value=0.5), "", "0.500"),
        (Estimate.missing("too few groups"), ".2f", "not available: too few groups"),
    ],
)
def test_an_estimate_is_spelled_in_one_way(estimate: Estimate, spec: str, text: str) -> None:
    assert format(estimate, spec) == text


def test_a_fold_without_an_image_is_not_held_out() -> None:
    """Its model could be asked about nothing: a few groups do not fill five folds."""
    some, none = {"benign": 1, "malignant": 2}, {"benign": 0, "malignant": 0}
    split = split_document(counts={1: some, 2: some, 3: none, 4: some, 5: none})
    assert [split.held_out(folds) for folds in (1, 3, 5)] == [[1], [1, 2], [1, 2, 4]]
    assert split_document(counts={0: some, 1: some}).held_out(5) == [1]
