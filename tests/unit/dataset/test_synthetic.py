"""The synthetic images: marked, the same for a seed, all different, and of classes that can be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcc_ops.dataset.synthetic import SYNTHETIC_CLASSES, SYNTHETIC_MARK, TEXTURE_CLASSES, draw_image, is_synthetic, write_images


def test_every_file_carries_the_mark_and_decodes_to_rgb(tmp_path: Path) -> None:
    files = write_images(tmp_path, per_class=2)
    assert [file.parent.name for file in files] == ["benign"] * 2 + ["malignant"] * 2 + ["normal"] * 2
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG" and image.mode == "RGB"
            assert is_synthetic(image.info)


def test_a_real_image_is_not_taken_for_a_synthetic_one(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "real.png")
    with Image.open(tmp_path / "real.png") as image:
        assert not is_synthetic(image.info)
    assert not is_synthetic({SYNTHETIC_MARK[0]: "something else"})


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = [file.read_bytes() for file in write_images(tmp_path / "a", per_class=2, seed=1)]
    again = [file.read_bytes() for file in write_images(tmp_path / "b", per_class=2, seed=1)]
    other = [file.read_bytes() for file in write_images(tmp_path / "c", per_class=2, seed=2)]
    assert first == again
    assert len({*first, *other}) == len(first) + len(other)


def test_asking_for_more_keeps_what_is_there(tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in write_images(tmp_path, per_class=1)}
    after = write_images(tmp_path, per_class=2)
    assert len(after) == 6
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_no_two_images_are_near_duplicates() -> None:
    """ImageChecks would group images whose pixels correlate by 0.9 and more."""
    drawn = [
        draw_image(label, np.random.default_rng([number, len(label)])) for label in SYNTHETIC_CLASSES for number in range(12)
    ]
    pixels = [np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BOX), dtype=float).ravel() for image in drawn]
    similarity = np.corrcoef(np.stack(pixels)) - 2 * np.eye(len(pixels))
    assert similarity.max() < 0.85


def test_classes_can_be_told_apart_from_the_mass_and_what_lies_below_it() -> None:
    """A linear model on two hand-made features beats guessing by far, so that a network can learn them."""
    from sklearn.linear_model import LogisticRegression

    def features(image: np.ndarray) -> list[float]:
        small = np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BOX), dtype=float)
        inner = small[4:16, 4:20]
        row, column = np.unravel_index(int(inner.argmin()), inner.shape)
        below = small[min(row + 10, 22) :, column + 3 : column + 6].mean() - small[min(row + 10, 22) :].mean()
        return [inner.mean() - inner.min(), below]

    def sample(seeds: range) -> tuple[list[list[float]], list[str]]:
        pairs = [
            (features(draw_image(label, np.random.default_rng(seed))), label) for label in SYNTHETIC_CLASSES for seed in seeds
        ]
        return [x for x, _ in pairs], [y for _, y in pairs]

    model = LogisticRegression(max_iter=1000).fit(*sample(range(40)))
    assert model.score(*sample(range(1000, 1025))) > 0.6  # guessing: 0.33


def test_a_weave_with_a_flaw_has_a_bright_disc_and_one_without_has_none() -> None:
    """The brightest part of a blurred image, over what is usual in it: two classes that a network can tell apart."""

    def brightest(label: str, seed: int) -> float:
        image = Image.fromarray(draw_image(label, np.random.default_rng(seed)))
        small = np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=float)
        return float(small.max() - np.median(small))

    flawed, whole = ([brightest(label, seed) for seed in range(30)] for label in TEXTURE_CLASSES)
    assert np.mean([one > other for one in flawed for other in whole]) > 0.8


def test_weaves_are_files_of_two_classes_and_no_two_are_alike(tmp_path: Path) -> None:
    files = write_images(tmp_path, per_class=8, classes=TEXTURE_CLASSES)
    assert [file.parent.name for file in files] == ["finding"] * 8 + ["no_finding"] * 8
    small = [
        np.asarray(Image.open(file).convert("L").resize((64, 64), Image.Resampling.BOX), dtype=float).ravel() for file in files
    ]
    similarity = np.corrcoef(np.stack(small)) - 2 * np.eye(len(small))
    assert similarity.max() < 0.85


@pytest.mark.parametrize(("label", "per_class"), [("cyst", 1), ("benign", 0)])
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, label: str, per_class: int) -> None:
    with pytest.raises(ValueError, match=r"cyst|at least one"):
        write_images(tmp_path, per_class=per_class, classes=[label])
