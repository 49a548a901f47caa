"""Model and images -> probabilities, in stored models' own terms: raw 0-255 RGB in, probabilities out.

A model file comes from a bucket that others can write to, so `model_file` searches it before Keras builds anything, and Keras
builds it with safe loading.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bcc_ops.dataset.decoding import decode_rgb, fit_square
from bcc_ops.dataset.resources import cores
from bcc_ops.exceptions import ModelError
from bcc_ops.models.keras_import import import_keras
from bcc_ops.models.model_file import building_at_most, check_answers, refuse_unsafe

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Classifier:
    """A loaded model.

    Attributes:
        model: the network.
        image_size: side of its input, in pixels.
        classes_count: how many probabilities it answers.
        keep_aspect: whether it was trained on images that were padded to the square, or squeezed.
    """

    model: keras.Model
    image_size: int
    classes_count: int
    keep_aspect: bool

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        """Probabilities for image files.

        Args:
            paths: the images; each is decoded and resized as in training.
            batch_size: images at a time.

        Returns:
            float32, (n, classes).

        Raises:
            ImageRefused: an image cannot be decoded (a DataError).
        """
        if not paths:
            return np.zeros((0, self.classes_count), np.float32)
        with ThreadPoolExecutor(cores()) as pool:
            batches = (paths[start : start + batch_size] for start in range(0, len(paths), batch_size))
            return np.concatenate([self.predict_pixels(np.stack(list(pool.map(self.read, batch)))) for batch in batches])

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities, float32 (n, classes), for pixels (n, image_size, image_size, 3) in 0-255."""
        return np.asarray(self.model.predict_on_batch(np.asarray(pixels, np.float32)), np.float32)

    def read(self, path: Path) -> np.ndarray:
        """Return what the model sees of an image file: uint8, (image_size, image_size, 3).

        Raises:
            ImageRefused: it cannot be decoded (a DataError).
        """
        return fit_square(decode_rgb(path), self.image_size, keep_aspect=self.keep_aspect)


def load_classifier(path: Path, *, keep_aspect: bool) -> Classifier:
    """Load an `.h5` model that was saved by this project, or by a notebook to the same contract.

    Args:
        path: the file.
        keep_aspect: what the model's own document says: the file itself does not know how its images were made square.

    Raises:
        ModelError: as `load_model` says.
    """
    model = load_model(path)
    return Classifier(model, int(model.input_shape[1]), int(model.output_shape[1]), keep_aspect)


def load_model(path: Path) -> keras.Model:
    """Load the network of an `.h5` file.

    Args:
        path: the file.

    Raises:
        ModelError: it is damaged, contains what `model_file` does not allow, or does not map square RGB images to
            probabilities.
    """
    numbers = refuse_unsafe(path)  # before Keras is imported, which takes seconds
    keras = import_keras()
    try:
        with building_at_most(keras, numbers):
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        check_answers(model)
    except ModelError as error:
        raise ModelError(f"{path.name} is not loaded: {error}") from None
    except Exception as error:
        # The errors that h5py and Keras raise about a damaged file have no common class.
        raise ModelError(f"{path.name} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    shape, answers = model.input_shape, model.output_shape
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] != 3 or len(answers) != 2:
        raise ModelError(f"{path.name} maps {shape} to {answers}; it must map square RGB images to one probability per class")
    black_and_white = np.stack([np.zeros(shape[1:], np.float32), np.full(shape[1:], 255, np.float32)])
    sums = np.asarray(model.predict_on_batch(black_and_white), np.float32).sum(axis=1)
    if not np.allclose(sums, 1, atol=1e-3):
        raise ModelError(f"{path.name} does not answer probabilities: they sum to {sums[0]:.3f} on a black image")
    return model
