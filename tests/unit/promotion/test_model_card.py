from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bcc_ops.exceptions import ConfigError
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.promotion.model_card import MISSING, WRITTEN_BY_PEOPLE, RunDocuments, read_template, render_model_card
from bcc_ops.runs.documents import Estimate, ModelDocument
from bcc_ops.runs.object_store import ObjectStore
from tests.unit.promotion.samples import model_document
from tests.unit.report import samples

REGISTRY = ModelRegistry(ObjectStore(None, "bucket"), "models")  # type: ignore[arg-type]

TEMPLATE = """What the hospital wrote.

## Intended use

A second reader for trained sonographers.

## Reference standard
Histology; for normal images two years of follow-up.

## Contact

## Something else
not for the card
"""


def card_of(template: str = "", model: ModelDocument | None = None, **changes: Any) -> str:
    """The card of a run's documents, some of them changed."""
    documents: dict[str, Any] = {
        "snapshot": samples.snapshot_document(),
        "checks": samples.checks_document(),
        "split": samples.split_document(),
        "training": samples.training_document(),
        "evaluation": samples.evaluation_document(),
        "gate": samples.gate_document("approved"),
    }
    model = model or model_document(REGISTRY, b"weights")
    return render_model_card(model, RunDocuments(**{**documents, **changes}), template)


def section(card: str, heading: str) -> str:
    return card.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0].strip()


def test_the_card_is_about_what_the_deployment_calls_the_model() -> None:
    assert card_of().startswith("# Breast ultrasound classifier ")
    rule = samples.rule("min_malignant_sensitivity", True, 0.8, 0.7, "Finding sensitivity is 0.8.")
    other = card_of(
        snapshot=samples.snapshot_document(title="Woven textures", positive_class="finding"),
        gate=samples.gate_document("approved", rules=(rule,)),
    )
    assert other.startswith("# Woven textures classifier ")
    assert "breast" not in other.lower()
    assert "| min_finding_sensitivity | yes |" in section(other, "The gate's decision")


def test_what_nobody_wrote_is_shown_as_missing() -> None:
    card = card_of()
    assert [section(card, heading) for heading in WRITTEN_BY_PEOPLE] == [MISSING] * len(WRITTEN_BY_PEOPLE)


def test_what_people_wrote_is_taken_from_the_template_and_an_empty_heading_stays_missing() -> None:
    card = card_of(TEMPLATE)
    assert section(card, "Intended use") == "A second reader for trained sonographers."
    assert section(card, "Reference standard").startswith("Histology;")
    assert section(card, "Contact") == MISSING
    assert "not for the card" not in card


def test_the_images_are_shown_as_a_flow_that_adds_up() -> None:
    flow = section(card_of(), "Images")
    assert "| – refused: damaged | 1 |" in flow
    assert "| – refused: too small | 1 |" in flow
    assert "| – one lesion under two labels | 2 |" in flow
    assert "| = usable | 617 |" in flow
    assert "| = fold 1 | 124 |" in flow and "| = fold 5 | 122 |" in flow
    assert "| malignant | 33 | 33 | 34 | 33 | 33 | 1.236 |" in flow


def test_figures_come_with_their_intervals_and_missing_ones_with_their_reason() -> None:
    evaluation = samples.evaluation_document()
    challenger = evaluation.challenger.model_copy(update={"macro_auc": Estimate.missing("there is not an image of normal")})
    card = card_of(evaluation=evaluation.model_copy(update={"challenger": challenger}))
    metrics = section(card, "Metrics on held-out images")
    assert "not available: there is not an image of normal" in metrics
    assert "| malignant sensitivity there | 0.880 (0.830 to 0.930) |" in card
    assert "95 % intervals, by near-duplicate group" in metrics


def test_the_comparison_names_the_champion_and_what_was_left_out() -> None:
    text = section(card_of(), "Against the champion before it")
    assert "20261115T020000Z-3f9c2a1b" in text and "4 left out" in text
    alone = card_of(evaluation=samples.evaluation_document(champion=False))
    assert section(alone, "Against the champion before it") == "There was no champion."


def test_the_card_tells_what_the_comparison_may_have_missed_and_what_a_warm_start_had_seen() -> None:
    evaluation = samples.evaluation_document(warm_start_note="Training started from champion v1.")
    assert evaluation.comparison is not None
    comparison = evaluation.comparison.model_copy(update={"caution": "3 images are gone."})
    card = card_of(evaluation=evaluation.model_copy(update={"comparison": comparison}))
    assert "3 images are gone." in section(card, "Against the champion before it")
    assert "Training started from champion v1." in section(card, "Metrics on held-out images")
    assert "None" not in section(card_of(), "Against the champion before it")


def test_the_card_names_the_anchor_and_says_who_is_it_from_now_on() -> None:
    evaluation = samples.whole_evaluation()
    text = section(card_of(evaluation=evaluation), "Against the anchor")
    assert "20261001T020000Z-77aa88bb" in text and "becomes the anchor" not in text
    best = samples.gate_document("approved", becomes_anchor=True)
    assert "This version becomes the anchor" in section(card_of(evaluation=evaluation, gate=best), "Against the anchor")
    assert section(card_of(), "Against the anchor") == "The champion was the anchor."
    first = samples.gate_document("approved_without_champion", champion_version=None, becomes_anchor=True)
    alone = section(card_of(evaluation=samples.evaluation_document(champion=False), gate=first), "Against the anchor")
    assert alone == "There was none. This version becomes the anchor: later ones are measured against it."
    assert evaluation.anchor is not None
    gone = evaluation.model_copy(update={"anchor": evaluation.anchor.model_copy(update={"problem": "its file is gone"})})
    told = section(card_of(evaluation=gone), "Against the anchor")
    assert told == "Anchor 20261001T020000Z-77aa88bb could not be compared: its file is gone."


def test_the_card_shows_how_the_file_does_elsewhere_beside_the_champion_and_its_folds() -> None:
    text = section(card_of(evaluation=samples.whole_evaluation()), "Images from elsewhere")
    assert "| metric | this version | champion |" in text
    assert "| malignant auc | 0.012 (-0.021 to 0.044) |" in text
    assert "The model file's log loss is 0.431 on 60 images from elsewhere, its folds' models' 0.419" in text
    unasked = samples.external_evaluation(champion=None, differences={}, problem="its file is gone")
    alone = section(card_of(evaluation=samples.evaluation_document(external=(unasked,))), "Images from elsewhere")
    assert alone.startswith("### elsewhere\n\n60 images")
    assert "The champion could not be asked: its file is gone.\n\n| metric | value |" in alone
    anchor = samples.model_evaluation(samples.predictions(60, seed=11), "champion", -0.04)
    differences = {"malignant_auc": samples.around(0.02, 0.05)}
    beside = samples.external_evaluation(name="Ulm", anchor=anchor, anchor_differences=differences)
    empty = samples.external_evaluation(name="Lima", note="0 images.", challenger=None, champion=None, differences={})
    both = section(card_of(evaluation=samples.evaluation_document(external=(beside, empty))), "Images from elsewhere")
    assert "| metric | this version | champion | anchor |" in both
    assert "| difference, paired | this version minus the anchor |\n| --- | --- |\n| malignant auc | 0.020 (" in both
    assert both.endswith("### Lima\n\n0 images.")


def test_the_card_says_what_the_file_is_made_of() -> None:
    training = section(card_of(), "Training")
    assert "| model file | average of the weights of 5 models; it has learned from 617 images |" in training
    assert "| held out in turn | fold 1, 2, 3, 4, 5 |" in training
    older = section(card_of(training=samples.training_document(folds=(), combined="one model")), "Training")
    assert "held out in turn" not in older


def test_a_card_of_synthetic_images_says_so_before_anything_else() -> None:
    card = card_of(model=model_document(REGISTRY, b"w", synthetic=True))
    assert card.splitlines()[2] == "> **The images are synthetic: no metric below says anything about any patient.**"


def test_limits_follow_from_what_the_run_could_and_could_not_do() -> None:
    limits = section(card_of(), "Known limits")
    assert "Patients are not known" in limits and "Not evaluated on images from another site" in limits
    by_patient = card_of(split=samples.split_document(grouping="patient"))
    assert "Patients are not known" not in by_patient


def test_a_pipe_or_a_line_break_in_a_name_does_not_break_a_table() -> None:
    broken = samples.split_document(
        classes=("benign", "mal|ign\nant", "normal"),
        counts={fold: {"benign": 1, "mal|ign\nant": 2, "normal": 3} for fold in (1, 2, 3)},
        weights={"benign": 1.0, "mal|ign\nant": 1.0, "normal": 1.0},
    )
    assert "| mal\\|ign ant | 2 | 2 | 2 | 1.000 |" in card_of(split=broken)


def test_the_same_documents_give_the_same_bytes() -> None:
    assert card_of(TEMPLATE) == card_of(TEMPLATE)


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert read_template("") == ""
    with pytest.raises(ConfigError, match=r"BCC_MODEL_CARD_TEMPLATE: .*gone\.md"):
        read_template(str(tmp_path / "gone.md"))
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="as text"):
        read_template(str(tmp_path / "binary.md"))


def test_a_template_without_end_is_refused(tmp_path):
    path = tmp_path / "template.md"
    path.write_text("## Contact\n" + "x" * 100_001)
    with pytest.raises(ConfigError, match="larger than 100,000 bytes: shorten it"):
        read_template(str(path))
