"""The question to a person, and what counts as an answer."""

from __future__ import annotations

from bcc_ops.promotion.approval import approval_text
from tests.unit.report import samples


def test_the_question_to_a_person_has_the_verdict_every_rule_and_the_report() -> None:
    gate = samples.gate_document("approved")
    subject, body = approval_text(gate, samples.snapshot_document(), samples.PATHS, "/bcc/runs/d/r/report")
    assert subject == "Breast ultrasound: may the model of 2026-11-22 02:00 UTC replace champion 20261115T020000Z-3f9c2a1b?"
    assert "[Report of the run](/bcc/runs/d/r/report)" in body
    assert all(rule.sentence in body for rule in gate.rules)
    assert "| max_holdout_reuse | – |" in body and "| min_macro_auc | yes |" in body
    assert "synthetic" not in body


def test_the_question_names_the_model_and_its_positive_class() -> None:
    snapshot = samples.snapshot_document(title="Woven textures", classes=("finding", "no_finding"), positive_class="finding")
    rule = samples.rule("min_malignant_sensitivity", True, 0.8, 0.7, "Finding sensitivity is 0.8.")
    subject, body = approval_text(samples.gate_document("approved", rules=(rule,)), snapshot, samples.PATHS, "/r")
    assert subject.startswith("Woven textures: may the model of")
    assert "| min_finding_sensitivity |" in body and "breast" not in f"{subject} {body}".lower()


def test_the_question_about_synthetic_images_says_so() -> None:
    first = samples.gate_document("approved_without_champion", synthetic=True, champion_version=None)
    subject, body = approval_text(first, samples.snapshot_document(), samples.PATHS, "/r")
    assert subject.endswith("become the first champion?")
    assert body.startswith("**The images are synthetic")
