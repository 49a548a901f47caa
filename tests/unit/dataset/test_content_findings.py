from __future__ import annotations

import pytest

from bcc_ops.config import FINDINGS, NO_FINDINGS, RetrainingConfig
from bcc_ops.dataset.content_findings import action_on, choose_examples, list_findings, names_of, text_was_read, warnings_about
from bcc_ops.runs.rows import ContentRow


def config(actions=""):
    return RetrainingConfig.resolve({"content_findings": actions} if actions else {})


def row(key, findings, label="benign"):
    return ContentRow(key, label, key, 500, 400, "RGB", 60, 30, False, key, "", findings=findings)


def test_the_first_word_says_how_an_image_was_looked_at():
    assert names_of("2t axilla calipers") == ("axilla", "calipers")
    assert names_of("") == ()


@pytest.mark.parametrize(
    ("findings", "action"),
    [("2t", "ignore"), ("2t axilla", "exclude_from_training"), ("2t axilla calipers", "exclude"), ("2t device", "report")],
)
def test_the_strictest_action_counts(findings, action):
    assert action_on(findings, config("axilla=exclude_from_training, calipers=exclude")) == action


def test_findings_are_counted_by_class_and_what_is_ignored_is_not_listed():
    rows = [row("a", "2t axilla device"), row("b", "2t axilla", "malignant"), row("c", "2t")]
    (found,) = list_findings(rows, config("device=ignore"))
    assert (found.finding, found.images, found.labels, found.keys) == ("axilla", 2, {"benign": 1, "malignant": 1}, ("a", "b"))


def test_text_that_may_be_a_name_is_a_warning_and_is_not_repeated():
    (said,) = warnings_about(list_findings([row("a", "2t unknown_text")], config()))
    assert said.startswith("1 image holds text of unknown meaning, which may be a patient's name")


def test_images_that_nobody_read_are_told_from_those_that_were():
    assert text_was_read([row("a", "2t axilla"), row("b", "")])
    assert not text_was_read([row("a", "2t"), row("b", "2 calipers")])


def test_every_finding_can_be_ignored_at_once():
    assert config(NO_FINDINGS).ignores_findings and not config().ignores_findings
    assert config().finding_actions["nearly_blank"] == "exclude" and set(config().finding_actions) == set(FINDINGS)


def test_examples_are_of_each_class_in_turn_and_no_content_is_shown_twice():
    rows = [row(f"b{number}", "2t calipers") for number in range(4)]
    rows += [row("m0", "2t calipers", "malignant"), row("n0", "2t doppler", "normal")]
    rows.append(rows[0]._replace(key="copy"))
    found = list_findings(rows, config())
    shown = {name: [one.key for one in some] for name, some in choose_examples(rows, found, 3).items()}
    assert shown == {"calipers": ["copy", "m0", "b1"], "doppler": ["n0"]}
    assert choose_examples(rows[::-1], found, 3)["doppler"] == [rows[5]]


def test_an_image_with_text_that_may_be_a_name_is_no_example_of_any_finding():
    rows = [row("a", "2t unknown_text"), row("b", "2t unknown_text calipers"), row("c", "2t calipers")]
    found = list_findings(rows, config())
    assert [one.finding for one in found] == ["unknown_text", "calipers"]
    assert choose_examples(rows, found, 9) == {"calipers": [rows[2]]}
