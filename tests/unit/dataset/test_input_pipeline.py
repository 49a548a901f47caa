from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.decoding import Box
from bcc_ops.dataset.input_pipeline import (
    Augmentation,
    Pixels,
    decode_images,
    plain_batches,
    read_as_notebook,
    training_batches,
)
from bcc_ops.dataset.sync import LocalImage
from bcc_ops.exceptions import ImageRefused
from bcc_ops.models.classifier import Classifier

CLASSES = ("benign", "malignant", "normal")


def _pixels(count: int, side: int = 8) -> Pixels:
    """Image n is n everywhere, of class n modulo 3."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 3)).copy()
    return Pixels(images, np.arange(count) % 3, CLASSES)


def _numbers(pixels: Pixels, epoch: int, seed: int = 1, batch_size: int = 4) -> list[int]:
    batches = training_batches(pixels, Augmentation(), batch_size, seed, epoch)
    return [int(image[0, 0, 0]) for images, _ in batches.as_numpy_iterator() for image in images]


def _gradient(side: int = 9) -> np.ndarray:
    """Red rises to the right, green downwards."""
    image = np.zeros((side, side, 3), np.uint8)
    image[:, :, 0] = 10 * np.arange(side)
    image[:, :, 1] = 10 * np.arange(side)[:, None]
    return image


class _Draws:
    """A generator whose uniform draws are given: turn, near, wide, right, down, light, strength, bend, soft.

    Normal ones are drawn, from a seed.
    """

    def __init__(self, mirrored: bool = False, upside_down: bool = False, **draws: float) -> None:
        self.draws, self.coins = draws, np.where([mirrored, upside_down], 0.1, 0.9)

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        names = ["turn", "near", "wide", "right", "down"] if count == 5 else ["light", "strength", "bend", "soft"]
        return np.array([self.draws.get(name, 0.0) for name in names])

    def random(self, count: int) -> np.ndarray:
        return self.coins

    def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(shape, dtype)


def _draws(**given: Any) -> Any:
    """Stand in for a generator."""
    return _Draws(**given)


def test_an_epoch_has_every_image_once_with_its_label() -> None:
    pixels = _pixels(10)
    seen = []
    for images, labels in training_batches(pixels, Augmentation(), 4, 1, 1).as_numpy_iterator():
        assert images.dtype == np.float32
        assert images.shape[1:] == (8, 8, 3)
        for image, label in zip(images, labels):
            seen.append(int(image[0, 0, 0]))
            np.testing.assert_array_equal(label, np.eye(3)[int(image[0, 0, 0]) % 3])

    assert sorted(seen) == list(range(10))


def test_an_epochs_order_depends_on_seed_and_epoch_alone() -> None:
    pixels = _pixels(40)

    assert _numbers(pixels, epoch=3) == _numbers(pixels, epoch=3)
    assert _numbers(pixels, epoch=3) != _numbers(pixels, epoch=4)
    assert _numbers(pixels, epoch=3) != _numbers(pixels, epoch=3, seed=2)


def test_an_images_augmentation_does_not_depend_on_the_batch_it_is_in() -> None:
    pixels = Pixels(np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8), np.arange(12) % 3, CLASSES)
    augmentation = Augmentation.of(RetrainingConfig())

    def epoch(batch_size: int) -> np.ndarray:
        batches = training_batches(pixels, augmentation, batch_size, seed=5, epoch=2)
        return np.concatenate([images for images, _ in batches.as_numpy_iterator()])

    np.testing.assert_array_equal(epoch(3), epoch(5))


def test_without_augmentation_an_image_stays_as_it_is() -> None:
    np.testing.assert_array_equal(Augmentation()(_gradient(), np.random.default_rng(0)), _gradient())


@pytest.mark.parametrize(
    ("flip", "mirrors", "turns_over"),
    [
        ("none", False, False),
        ("horizontal", True, False),
        ("vertical", False, True),
        ("horizontal_and_vertical", True, True),
    ],
)
def test_flips_go_in_the_directions_asked_for(flip: str, mirrors: bool, turns_over: bool) -> None:
    flipped = Augmentation(flip=flip)(_gradient(), _draws(mirrored=True, upside_down=True))
    expected = _gradient()[:, ::-1] if mirrors else _gradient()
    expected = expected[::-1] if turns_over else expected

    np.testing.assert_array_equal(flipped, expected)


def test_a_quarter_of_a_turn_turns_the_image_by_ninety_degrees() -> None:
    turned = Augmentation(rotation=0.25)(_gradient(), _draws(turn=1.0))

    np.testing.assert_array_equal(turned, np.rot90(_gradient()))


def test_zoom_scales_about_the_centre() -> None:
    # Half as near: a step in the result is 1.5 steps in the image, and the centre stays.
    zoomed = Augmentation(zoom=0.5)(_gradient(9), _draws(near=1.0))

    assert zoomed[4, 4, 0] == 40
    assert (int(zoomed[4, 6, 0]) - 40, int(zoomed[6, 4, 1]) - 40) == (30, 30)


def test_stretch_changes_width_against_height() -> None:
    # sqrt(4) = 2: two steps to the right for one, half a step down for one.
    stretched = Augmentation(stretch=3.0)(_gradient(9), _draws(wide=1.0))

    assert int(stretched[4, 5, 0]) - 40 == 20
    assert int(stretched[6, 4, 1]) - 40 == 10


def test_shift_moves_by_a_part_of_the_side_and_reflects_what_comes_into_sight() -> None:
    shifted = Augmentation(shift=0.25)(_gradient(8), _draws(right=1.0))

    np.testing.assert_array_equal(shifted[0, :, 0], [20, 30, 40, 50, 60, 70, 70, 60])


@pytest.mark.parametrize(
    ("augmentation", "draws", "expected"),
    [
        (Augmentation(brightness=0.2), {"light": 1.0}, [51, 151, 255]),
        (Augmentation(brightness=0.2), {"light": -1.0}, [0, 49, 204]),
        (Augmentation(contrast=0.5), {"strength": 1.0}, [0, 86, 255]),
        (Augmentation(contrast=0.5), {"strength": -1.0}, [64, 114, 191]),
        (Augmentation(gamma=1.0), {"bend": 1.0}, [0, 39, 255]),
        (Augmentation(gamma=1.0), {"bend": -1.0}, [0, 160, 255]),
    ],
)
def test_light_changes_as_the_formula_says(augmentation: Augmentation, draws: dict[str, float], expected: list[int]) -> None:
    # By hand, for 0, 100 and 255: x + 51; x - 51; 127.5 + 1.5 (x - 127.5); 127.5 + 0.5 (x - 127.5);
    # 255 (x / 255) ** 2; 255 (x / 255) ** 0.5; each cut off at 0 and 255.
    image = np.broadcast_to(np.array([0, 100, 255], np.uint8)[None, :, None], (3, 3, 3)).copy()

    np.testing.assert_array_equal(augmentation(image, _draws(**draws))[0, :, 0], expected)


def test_blur_softens_half_of_the_images() -> None:
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255

    assert Augmentation(blur=1.0)(image, _draws(soft=1.0))[4, 4, 0] < 100
    np.testing.assert_array_equal(Augmentation(blur=1.0)(image, _draws(soft=-0.5)), image)


def test_speckle_scales_the_other_half_by_grain_that_all_channels_share() -> None:
    image = np.broadcast_to(np.array([0, 50, 100], np.uint8), (64, 64, 3)).copy()
    speckled = Augmentation(speckle=0.2)(image, _draws(soft=-0.5)).astype(float)

    assert speckled[..., 0].max() == 0
    np.testing.assert_allclose(speckled[..., 2], 2 * speckled[..., 1], atol=1.5)  # each rounded by itself
    assert speckled[..., 2].mean() == pytest.approx(100, abs=2)
    assert speckled[..., 2].std() == pytest.approx(100 * 0.2 * 0.5, rel=0.1)
    np.testing.assert_array_equal(Augmentation(speckle=0.2)(image, _draws(soft=0.5)), image)


def _padded(side: int = 8, top: int = 2, bottom: int = 5) -> tuple[np.ndarray, Box]:
    """An image that is as wide as its square, 3 of its 8 rows high, and rises to the right from 100 on."""
    image = np.zeros((side, side, 3), np.uint8)
    image[top:bottom] = 100 + 10 * np.arange(side)[:, None]
    return image, Box(top, bottom, 0, side)


@pytest.mark.parametrize(
    ("augmentation", "draws"),
    [
        (Augmentation(brightness=0.2), {"light": 1.0}),
        (Augmentation(contrast=0.5), {"strength": -1.0}),
        (Augmentation(blur=1.0), {"soft": 1.0}),
        (Augmentation(speckle=0.2), {"soft": -1.0}),
    ],
)
def test_padding_stays_black_whatever_happens_to_the_light(augmentation: Augmentation, draws: dict[str, float]) -> None:
    image, box = _padded()
    changed = augmentation(image, _draws(**draws), box)

    assert changed[:2].max() == changed[5:].max() == 0
    assert changed[2:5].min() > 50
    assert not np.array_equal(changed, image)


def test_padding_moves_with_its_image() -> None:
    image, box = _padded()
    upright = np.rot90(image)

    def moved(augmentation: Augmentation, **draws: Any) -> np.ndarray:
        return augmentation(image, _draws(**draws), box)

    # Two rows up: nothing but black follows. Two columns to the left: what follows is the image's reflection.
    np.testing.assert_array_equal(moved(Augmentation(shift=0.25), down=1.0), np.roll(image, -2, axis=0))
    assert moved(Augmentation(shift=0.25), right=1.0)[:, :, 0].tolist() == [
        [120, 130, 140, 150, 160, 170, 170, 160] if 2 <= row < 5 else [0] * 8 for row in range(8)
    ]
    np.testing.assert_array_equal(moved(Augmentation(rotation=0.25), turn=1.0), upright)
    np.testing.assert_array_equal(moved(Augmentation(flip="vertical"), upside_down=True), image[::-1])
    sideways = Augmentation(rotation=0.25)(upright, _draws(turn=-1.0), Box(0, 8, 2, 5))
    np.testing.assert_array_equal(sideways, image)


def test_each_image_is_augmented_within_its_own_box() -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    boxes = (Box(2, 6, 0, 8), Box(0, 8, 3, 5), Box(0, 8, 0, 8))
    for number, box in enumerate(boxes):
        images[number, box.top : box.bottom, box.left : box.right] = 100
    pixels = Pixels(images, np.arange(3), CLASSES, boxes)

    for batch, labels in training_batches(pixels, Augmentation(gamma=1.0, brightness=0.2), 2, 1, 1).as_numpy_iterator():
        for image, number in zip(batch, labels.argmax(axis=1)):
            shown = images[number] > 0
            assert image[~shown].sum() == 0 and image[shown].min() == image[shown].max() not in (0, 100)


def test_the_parameters_reach_the_augmentation() -> None:
    config = RetrainingConfig.resolve({"preset": "notebook", "shift": 0.125})

    assert Augmentation.of(config) == Augmentation(
        flip="horizontal_and_vertical", rotation=0.2, zoom=0.2, brightness=0.2, shift=0.125
    )


@pytest.fixture
def folder_of_images(tmp_path: Path) -> list[LocalImage]:
    found = []
    for number, label in enumerate(["malignant", "benign", "normal", "benign"]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 12), (10 * number, 0, 255)).save(path)
        found.append(LocalImage(f"images/{label}/{number}.png", label, "", path))
    return found


@pytest.mark.parametrize("budget", [10**9, 0])
def test_images_are_decoded_to_squares_in_memory_or_in_a_file(
    folder_of_images: list[LocalImage], tmp_path: Path, budget: int
) -> None:
    pixels = decode_images(
        folder_of_images, CLASSES, side=6, keep_aspect=False, scratch=tmp_path / "scratch", budget_bytes=budget
    )

    assert isinstance(pixels.images, np.memmap) == (budget == 0)
    assert pixels.images.shape == (4, 6, 6, 3)
    assert pixels.images[:, 0, 0].tolist() == [[0, 0, 255], [10, 0, 255], [20, 0, 255], [30, 0, 255]]
    assert pixels.labels.tolist() == [1, 0, 2, 0]
    np.testing.assert_array_equal(pixels.one_hot[0], [0, 1, 0])
    assert not list((tmp_path / "scratch").glob("*")), "the file has no name, so that it cannot be left behind"


def test_images_whose_aspect_is_kept_come_with_their_boxes(folder_of_images: list[LocalImage], tmp_path: Path) -> None:
    # 20 x 12 pixels at a side of 6: 3.6 rows are 4.
    pixels = decode_images(folder_of_images, CLASSES, side=6, keep_aspect=True, scratch=tmp_path, budget_bytes=10**9)

    assert pixels.boxes == (Box(1, 5, 0, 6),) * 4
    assert pixels.images[1, :, 3].tolist() == [[0, 0, 0], *[[10, 0, 255]] * 4, [0, 0, 0]]


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_a_model_is_asked_about_the_pixels_that_it_was_trained_on(
    folder_of_images: list[LocalImage], tmp_path: Path, keep_aspect: bool
) -> None:
    rng = np.random.default_rng(0)
    for image, (width, height) in zip(folder_of_images, [(90, 61), (40, 200), (7, 5), (64, 64)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(image.path)
    trained = decode_images(folder_of_images, CLASSES, side=33, keep_aspect=keep_aspect, scratch=tmp_path, budget_bytes=10**9)
    asked = Classifier(None, 33, 3, keep_aspect)  # type: ignore[arg-type]

    np.testing.assert_array_equal(trained.images, [asked.read(image.path) for image in folder_of_images])


def test_an_image_that_cannot_be_decoded_stops_the_reading(folder_of_images: list[LocalImage], tmp_path: Path) -> None:
    folder_of_images[2].path.write_bytes(b"no image")

    with pytest.raises(ImageRefused):
        decode_images(folder_of_images, CLASSES, side=6, keep_aspect=False, scratch=tmp_path, budget_bytes=10**9)


def test_the_notebooks_reader_gives_the_same_pixels_by_class(folder_of_images: list[LocalImage], tmp_path: Path) -> None:
    pixels = read_as_notebook(folder_of_images, CLASSES, side=6, scratch=tmp_path / "scratch", budget_bytes=10**9)

    assert pixels.labels.tolist() == [0, 0, 1, 2]
    assert pixels.images[:, 3, 3, 0].tolist() == [10, 30, 0, 20]
    assert not list((tmp_path / "scratch").glob("*"))


def test_plain_batches_keep_the_order() -> None:
    batches = list(plain_batches(_pixels(5), 2).as_numpy_iterator())

    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [int(image[0, 0, 0]) for batch in batches for image in batch] == [0, 1, 2, 3, 4]


def test_no_batches_are_made_by_a_pipeline_that_tunes_itself() -> None:
    """The end of such an iterator waits, for seconds, for the thread that tunes; an epoch has two."""
    for batches in (training_batches(_pixels(5), Augmentation(), 2, 1, 1), plain_batches(_pixels(5), 2)):
        assert batches.options().autotune.enabled is False
