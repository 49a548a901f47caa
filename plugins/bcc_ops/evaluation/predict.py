"""Model and images -> probabilities, in stored models' own terms: raw 0-255 RGB in, probabilities out.

A model file comes from a bucket that others write to, so nothing in it may run code: it is looked through before Keras
builds anything of it, and built with safe loading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from bcc_ops.dataset.decoding import decode_rgb, resize_square
from bcc_ops.exceptions import ModelError

_NO_LAYERS = {"Functional", "Model", "Sequential", "DTypePolicy"}
_RUNS_FOREIGN_CODE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "Wrapper"}


@dataclass(frozen=True)
class Classifier:
    """A loaded model."""

    model: keras.Model
    image_size: int
    classes_count: int

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
        with ThreadPoolExecutor() as pool:
            batches = (paths[start : start + batch_size] for start in range(0, len(paths), batch_size))
            return np.concatenate([self.predict_pixels(np.stack(list(pool.map(self._read, batch)))) for batch in batches])

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities, float32 (n, classes), for pixels (n, image_size, image_size, 3) in 0-255."""
        return np.asarray(self.model.predict_on_batch(np.asarray(pixels, np.float32)), np.float32)

    def _read(self, path: Path) -> np.ndarray:
        return resize_square(decode_rgb(path), self.image_size)


def load_classifier(path: Path) -> Classifier:
    """Load an `.h5` model that was saved by this project, or by a notebook to the same contract.

    Args:
        path: the file.

    Raises:
        ModelError: it is damaged, has a layer that is none of Keras' own or could run code, or does not map square
            RGB images to probabilities.
    """
    _refuse_unsafe(path)
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        # What a damaged file makes h5py and Keras raise has no common class.
        raise ModelError(f"{path.name} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    shape, answers = model.input_shape, model.output_shape
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] != 3 or len(answers) != 2:
        raise ModelError(f"{path.name} maps {shape} to {answers}; square RGB images to a probability a class are needed")
    classifier = Classifier(model, int(shape[1]), int(answers[1]))
    sums = classifier.predict_pixels(np.stack([np.zeros(shape[1:]), np.full(shape[1:], 255.0)])).sum(axis=1)
    if not np.allclose(sums, 1, atol=1e-3):
        raise ModelError(f"{path.name} does not answer probabilities: they sum to {sums[0]:.3f} on a black image")
    return classifier


def _refuse_unsafe(path: Path) -> None:
    try:
        with h5py.File(path, "r") as file:
            config = json.loads(file.attrs["model_config"])
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(f"{path.name} is no Keras .h5 model: {error}") from None
    for name in _layer_classes(config):
        if name in _RUNS_FOREIGN_CODE or not (name in _NO_LAYERS or hasattr(keras.layers, name)):
            raise ModelError(f"{path.name} has a layer of the class {name}, which is not loaded: it may run code of its own")


def _layer_classes(config: Any) -> Iterator[str]:
    """The class of each network and layer in a model's configuration, however deep."""
    if isinstance(config, list):
        for entry in config:
            yield from _layer_classes(entry)
    elif isinstance(config, dict):
        inner = config.get("config")
        if isinstance(config.get("class_name"), str) and isinstance(inner, dict) and ("name" in inner or "layers" in inner):
            yield config["class_name"]
        for value in config.values():
            yield from _layer_classes(value)
