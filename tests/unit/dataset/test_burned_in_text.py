from __future__ import annotations

import pytest

from bcc_ops.dataset.burned_in_text import classify_text


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("RT AXILLA", {"axilla"}),
        ("LTAXILLA", {"axilla"}),
        ("LT AX", {"axilla"}),
        ("AX2", {"axilla"}),
        ("LEFT BREAST", {"position"}),
        ("It12 above nippl", {"position"}),  # l read as I, and the end cut off
        ("RT UOQ", {"position"}),
        ("LT 3-4", {"position"}),
        ("rt 10 o'clock", {"position"}),
        ("LOGIQ E9", {"device"}),
        ("GIQ", {"device"}),
        ("MI 1.2", {"device"}),
        ("1 L 0.99 cm", {"measurement"}),
        ("57", {"unread_text"}),
    ],
)
def test_a_line_is_told_by_its_words(text, about):
    assert classify_text(text) == about


@pytest.mark.parametrize(
    "text", ["MARIA GARCIA", "MARTA", "RITA", "TAX", "19450312", "03/04/1945", "RT BREAST MARIA", "王芳", "김민"]
)
def test_what_may_be_a_name_a_number_or_a_date_of_a_patient_is_unknown(text):
    assert classify_text(text) == {"unknown_text"}


def test_a_name_beside_a_known_word_is_still_seen():
    assert classify_text("AXILLA MARIA") == {"axilla", "unknown_text"}


@pytest.mark.parametrize("text", ["MI1234567", "GN 20031122", "VOL 1234567", "DIST 20031122", "W12345678.9", "123456 mm"])
def test_a_long_number_is_unknown_though_it_is_written_as_a_setting_or_a_length(text):
    assert "unknown_text" in classify_text(text)


@pytest.mark.parametrize("text", ["", "Q", " 1 ", "+", "-"])
def test_a_single_character_is_no_text(text):
    assert classify_text(text) == frozenset()


def test_a_long_line_of_ambiguous_letters_is_classified_in_one_pass():
    assert classify_text("CL" * 5000 + "X") == {"unknown_text"}
