"""Images -> tf.data.

Every image is decoded and resized once and kept as 8-bit pixels; what each epoch does again (shuffle, augment, batch) works
on those. Each random draw is a function of (seed, epoch, image), so that an epoch is the same whether training reached
it in one go or resumed there, and however many threads work on it.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.decoding import Box, box_in_square, decode_rgb, fit_square
from bcc_ops.dataset.resources import cores
from bcc_ops.dataset.sync import LocalImage, training_view
from bcc_ops.exceptions import DataError

log = logging.getLogger(__name__)

_AHEAD = 2
"""Batches that are ready and wait for the training step."""
_GRAIN = 0.8
"""Sigma in pixels of what smooths white noise into speckle."""


@dataclass(frozen=True)
class Pixels:
    """Decoded images: those that a model is trained on, or those that it is asked about.

    Attributes:
        images: uint8, (n, side, side, 3); in memory, or mapped from a file in the cache.
        labels: int64, (n,): indices into `classes`.
        classes: the class names.
        boxes: where each square shows its image; None if every image is its whole square.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    boxes: tuple[Box, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def one_hot(self) -> np.ndarray:
        """float32, (n, classes)."""
        one_hot: np.ndarray = np.eye(len(self.classes), dtype=np.float32)[self.labels]
        return one_hot


def decode_images(
    images: Sequence[LocalImage], classes: Sequence[str], *, side: int, keep_aspect: bool, scratch: Path, budget_bytes: int
) -> Pixels:
    """Decode and resize images, once.

    Args:
        images: the images, with their files.
        classes: the class names; a label's index among them is its number.
        side: of the square that they are resized to, in pixels.
        keep_aspect: whether they are padded to it or squeezed, as `fit_square` says.
        scratch: where pixels that the budget does not hold are kept, in a file that nobody else sees.
        budget_bytes: how much memory the pixels may take.

    Raises:
        ImageRefused: an image cannot be decoded (a DataError).
    """
    pixels = _allocate((len(images), side, side, 3), scratch, budget_bytes)

    def decode(position: int) -> Box:
        rgb = decode_rgb(images[position].path)
        pixels[position] = fit_square(rgb, side, keep_aspect=keep_aspect)
        return box_in_square(rgb.shape, side, keep_aspect=keep_aspect)

    with ThreadPoolExecutor(cores()) as pool:
        boxes = tuple(pool.map(decode, range(len(images))))
    number = {name: position for position, name in enumerate(classes)}
    labels = np.array([number[image.label] for image in images], np.int64)
    return Pixels(pixels, labels, tuple(classes), boxes if keep_aspect else None)


def read_as_notebook(
    images: Sequence[LocalImage], classes: Sequence[str], *, side: int, scratch: Path, budget_bytes: int
) -> Pixels:
    """Read images as the notebook did, squeezed, with `image_dataset_from_directory` on a view with one folder per class.

    Arguments are those of `decode_images`. The images come ordered by class and key.
    """
    pixels = _allocate((len(images), side, side, 3), scratch, budget_bytes)
    labels = np.zeros(len(images), np.int64)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        dataset = tf.keras.utils.image_dataset_from_directory(
            training_view(images, Path(folder) / "by-class"),
            class_names=list(classes),
            image_size=(side, side),
            batch_size=None,
            shuffle=False,
            verbose=False,
        )
        position = -1
        for position, (image, label) in enumerate(dataset.as_numpy_iterator()):
            pixels[position] = np.clip(np.rint(image), 0, 255)
            labels[position] = label
    if position + 1 != len(images):
        raise DataError(f"Keras read {position + 1} of {len(images)} images: it does not recognise the names of the others")
    return Pixels(pixels, labels, tuple(classes))


def _allocate(shape: tuple[int, ...], scratch: Path, budget_bytes: int) -> np.ndarray:
    size = math.prod(shape)
    if size <= budget_bytes:
        return np.empty(shape, np.uint8)
    scratch.mkdir(parents=True, exist_ok=True)
    log.info(
        "the pixels take %.1f GB, more than the %.1f GB of memory allowed: they are kept in a file",
        size / 1e9,
        budget_bytes / 1e9,
    )
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.truncate(size)
        return np.memmap(file, np.uint8, "r+", shape=shape)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image; each attribute is the parameter of that name. All of it happens in one go:
    flips, rotation, zoom, stretch and shift are one affine map, brightness, contrast and gamma one table, and half of the
    images are softened while the other half gets speckle. Padding moves with the image and stays black.
    """

    flip: str = "none"
    rotation: float = 0.0
    zoom: float = 0.0
    stretch: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    blur: float = 0.0
    speckle: float = 0.0

    @classmethod
    def of(cls, config: RetrainingConfig) -> Augmentation:
        """Return the augmentation that a run's parameters ask for."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})

    def __call__(self, image: np.ndarray, rng: np.random.Generator, box: Box | None = None) -> np.ndarray:
        """Return one image, augmented.

        Args:
            image: uint8, (side, side, 3).
            rng: where the draws come from; each call takes the same ones, whatever the parameters say, and speckle's grain last.
            box: where the square shows the image; None if that is everywhere.

        Returns:
            uint8, (side, side, 3). What comes into sight from outside is the image's reflection; where there was padding, black.
        """
        side = image.shape[0]
        place, (light, strength, bend, soft) = rng.uniform(-1, 1, 5), rng.uniform(-1, 1, 4)
        mirrored, upside_down = rng.random(2) < 0.5
        matrix = self._affine(side, place, bool(mirrored), bool(upside_down))
        if box is not None:
            image = image[box.slices]
            matrix[:, 2] -= box.left, box.top
        height, width = image.shape[:2]
        image = cv2.warpAffine(
            image, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
        )
        if self.blur and soft > 0:
            image = cv2.GaussianBlur(image, (0, 0), sigmaX=0.1 + soft * self.blur)
        if self.brightness or self.contrast or self.gamma:
            image = cv2.LUT(image, self._table(light, strength, bend))
        if self.speckle and soft < 0:
            image = _speckled(image, -soft * self.speckle, rng)
        for axis, length in enumerate((width, height)):
            if length < side:
                image[_beyond(matrix[axis], length, side)] = 0
        return image

    def _affine(self, side: int, place: np.ndarray, mirrored: bool, upside_down: bool) -> np.ndarray:
        """Return the 2 x 3 map from a place in the result to the place in the image that is shown there.

        `place` has five numbers from -1 to 1: turn, nearness, width, and the shift to the right and down.
        """
        turn, near, wide, right, down = place
        angle = 2 * math.pi * self.rotation * turn
        scale, ratio = 1 + self.zoom * near, math.sqrt((1 + self.stretch) ** wide)
        flip_x = -1 if mirrored and self.flip in ("horizontal", "horizontal_and_vertical") else 1
        flip_y = -1 if upside_down and self.flip in ("vertical", "horizontal_and_vertical") else 1
        linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        linear = linear @ np.diag([flip_x * scale * ratio, flip_y * scale / ratio])
        centre = np.full(2, (side - 1) / 2)
        offset = centre - linear @ centre + side * self.shift * np.array([right, down])
        return np.column_stack([linear, offset])

    def _table(self, light: float, strength: float, bend: float) -> np.ndarray:
        """Return the new value of each of the 256 pixel values. Contrast turns about middle gray."""
        values = np.linspace(0, 1, 256) ** ((1 + self.gamma) ** bend)
        values = (values - 0.5) * (1 + self.contrast * strength) + 0.5 + self.brightness * light
        table: np.ndarray = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
        return table


def _beyond(row: np.ndarray, length: int, side: int) -> np.ndarray:
    """Return where the result shows what is before or behind the image, in one direction: bool, (side, side).

    Args:
        row: of the affine map, which gives the place in the image in that direction.
        length: of the image in that direction, in pixels.
        side: of the result, in pixels.
    """
    steps = np.arange(side, dtype=np.float32)
    place = row[0] * steps + (row[1] * steps + row[2])[:, None]
    beyond: np.ndarray = (place < -0.5) | (place > length - 0.5)
    return beyond


def _speckled(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image with another machine's grain: multiplicative, the same in all channels, about two pixels wide.

    Args:
        strength: the grain's standard deviation, as a part of the brightness.
    """
    grain = cv2.GaussianBlur(rng.standard_normal(image.shape[:2], np.float32), (0, 0), sigmaX=_GRAIN)
    factor = 1 + strength * grain / grain.std()
    speckled: np.ndarray = np.clip(np.rint(image * factor[..., None]), 0, 255).astype(np.uint8)
    return speckled


def training_batches(pixels: Pixels, augmentation: Augmentation, batch_size: int, seed: int, epoch: int) -> tf.data.Dataset:
    """Return one epoch: every image once, shuffled, augmented.

    Args:
        pixels: the images to train on.
        batch_size: images per batch; the last one may be smaller.
        seed, epoch: determine the order and the augmentation.

    Returns:
        Batches of float32 pixels (b, side, side, 3) in 0-255 and one-hot labels (b, classes).
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(pixels))
    one_hot = pixels.one_hot
    cv2.setNumThreads(1)  # the batches are what runs in parallel; threads below them would fight for the same cores

    def augmented(positions: np.ndarray) -> np.ndarray:
        boxes = [pixels.boxes[p] if pixels.boxes else None for p in positions]
        draws = [np.random.default_rng([seed, epoch, int(p)]) for p in positions]
        return np.stack([augmentation(pixels.images[p], rng, box) for p, rng, box in zip(positions, draws, boxes)])

    def batch(positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Stateless, or else tf.data gives up working on batches in parallel once op determinism is on.
        images = tf.numpy_function(augmented, [positions], tf.uint8, stateful=False)
        images.set_shape((None, *pixels.images.shape[1:]))
        return tf.cast(images, tf.float32), tf.gather(one_hot, positions)

    batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
    return _ahead(batches.map(batch, num_parallel_calls=cores(), deterministic=True))


def plain_batches(pixels: Pixels, batch_size: int) -> tf.data.Dataset:
    """Return every image once, in order, as it is: batches of float32 pixels (b, side, side, 3) in 0-255."""

    def batch(positions: tf.Tensor) -> tf.Tensor:
        images = tf.numpy_function(lambda chosen: pixels.images[chosen], [positions], tf.uint8, stateful=False)
        images.set_shape((None, *pixels.images.shape[1:]))
        return tf.cast(images, tf.float32)

    return _ahead(tf.data.Dataset.range(len(pixels)).batch(batch_size).map(batch))


def _ahead(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Return the batches, made ahead of the training step.

    Without tf.data's autotuning: an iterator's end waits for the thread that does it, which may sleep for seconds, and
    each epoch ends two iterators.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(_AHEAD).with_options(options)
