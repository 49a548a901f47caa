from __future__ import annotations

import cv2
import numpy as np
import pytest

from bcc_ops.dataset import marks


@pytest.fixture
def tissue():
    """Smooth speckle, 240 x 320, as a scan has it."""
    noise = np.random.default_rng(7).normal(70, 120, (240, 320)).astype(np.float32)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 2), 0, 255).astype(np.uint8)


def colour(gray):
    return np.repeat(gray[:, :, None], 3, axis=2)


def cross(gray, x, y, arm=8):
    gray[y - 1 : y + 2, x - arm : x + arm + 1] = 235
    gray[y - arm : y + arm + 1, x - 1 : x + 2] = 235


def test_two_crosses_are_calipers_and_tissue_has_none(tissue):
    assert marks.find_calipers(colour(tissue), tissue) == []
    cross(tissue, 80, 60)
    cross(tissue, 200, 90)
    found = marks.find_calipers(colour(tissue), tissue)
    centres = {(round((one.left + one.width / 2) / 10), round((one.top + one.height / 2) / 10)) for one in found}
    assert centres == {(8, 6), (20, 9)}


def test_outlined_letters_at_the_edge_are_seen_and_one_alone_is_not(tissue):
    bright = np.maximum(tissue, 120)
    assert not marks.find_cut_letters(bright)
    bright[0:20, 0:30] = 0
    bright[0:12, 4:7] = 230
    assert not marks.find_cut_letters(bright)
    bright[0:12, 14:21] = 230
    assert [(one.left, one.width) for one in marks.find_cut_letters(bright)] == [(4, 3), (14, 7)]


def test_pure_red_and_blue_spots_are_flow_and_a_tint_is_not(tissue):
    rgb = colour(tissue)
    rgb[..., 2] = np.minimum(255, rgb[..., 2].astype(int) + 30)
    assert not marks.shows_flow(rgb)
    rgb[100:106, 100:106] = (200, 20, 20)
    assert marks.shows_flow(rgb)


def test_a_seam_or_a_gap_in_the_middle_is_two_views(tissue):
    assert not marks.shows_two_views(tissue)
    seam = tissue.copy()
    seam[:, 160:] = np.minimum(255, seam[:, 160:].astype(int) + 60)
    assert marks.shows_two_views(seam)
    gap = tissue.copy()
    gap[:, 155:165] = 0
    assert marks.shows_two_views(gap)


def test_paper_and_photographs_are_not_ultrasound_and_a_scan_is(tissue):
    assert not marks.is_not_ultrasound(colour(tissue), tissue)
    paper = np.full_like(tissue, 250)
    assert marks.is_not_ultrasound(colour(paper), paper)
    photograph = colour(tissue)
    photograph[..., 1] = np.minimum(255, photograph[..., 1].astype(int) + 80)
    assert marks.is_not_ultrasound(photograph, tissue)


def test_one_brightness_and_next_to_all_black_are_blank(tissue):
    assert not marks.is_nearly_blank(tissue)
    assert marks.is_nearly_blank(np.full_like(tissue, 90))
    black = np.zeros_like(tissue)
    black[10:14, 10:40] = 200
    assert marks.is_nearly_blank(black)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (9, 700), (700, 9)])
def test_no_shape_is_too_small(shape):
    gray = np.full(shape, 100, np.uint8)
    assert marks.find_calipers(colour(gray), gray) == []
    assert marks.find_cut_letters(gray) == []
    assert not marks.shows_two_views(gray)


def test_an_image_of_thousands_of_signs_is_not_compared_all_with_all():
    strokes = np.zeros((600, 600), np.uint8)
    for top in range(2, 590, 12):
        for left in range(2, 590, 8):
            strokes[top : top + 6, left] = 255
    assert len(marks.find_cut_letters(strokes)) <= 200
    assert len(marks.find_calipers(colour(strokes), strokes)) <= 200
