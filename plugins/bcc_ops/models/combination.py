"""Make one model file from several: the mean of their answers, or the average of their weights.

Models that were trained from the same pretrained start are near one another, and their average is a model, at the size and speed
of one (Wortsman et al., "Model soups", ICML 2022). On images of other hospitals the mean of their answers was better
(docs/benchmarks.md, "Training"). Models that were trained from random weights have no average.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from bcc_ops.exceptions import ModelError
from bcc_ops.models.model_file import LARGEST_FILE, refuse_unsafe

if TYPE_CHECKING:
    import keras


def average_weights(files: Sequence[bytes]) -> bytes:
    """Return the `.h5` file whose arrays are the means of those of the files. They are read as HDF5: no TensorFlow.

    Args:
        files: contents of Keras `.h5` files of the same network; at least one.

    Raises:
        ModelError: one of them is unsafe or damaged, or they are not of the same network.
    """
    for file in files:
        _refuse_unsafe(file)
    if len(files) == 1:
        return files[0]
    content = io.BytesIO(files[0])
    with h5py.File(content, "r+") as average:
        arrays = _arrays(average)
        others = [_arrays(h5py.File(io.BytesIO(file), "r")) for file in files[1:]]
        shapes = {name: array.shape for name, array in arrays.items()}
        for place, other in enumerate(others, 2):
            if {name: array.shape for name, array in other.items()} != shapes:
                raise ModelError(f"model {place} of {len(files)} is another network than the first: they have no average")
        for name, array in arrays.items():
            stacked = [array[()], *(other[name][()] for other in others)]
            array[...] = np.mean(np.asarray(stacked, np.float64), axis=0).astype(array.dtype)
    return content.getvalue()


def _refuse_unsafe(file: bytes) -> None:
    """Search a file before HDF5 opens it: its numbers may be those of another file of this worker, or too many."""
    with tempfile.TemporaryDirectory(prefix="bcc-combine-") as folder:
        path = Path(folder) / "fold.h5"
        path.write_bytes(file)
        refuse_unsafe(path)


def mean_of_answers(files: Sequence[bytes]) -> bytes:
    """Return the `.h5` file that answers the mean of what the files answer, in stock layers: as large as all of them together.

    Args:
        files: contents of Keras `.h5` files with the same input and classes; at least one.

    Raises:
        ModelError: one of them is unsafe or damaged, they differ in input or classes, or the file would be too large to load.
    """
    from bcc_ops.models.classifier import load_model
    from bcc_ops.models.keras_import import import_keras

    if len(files) == 1:
        return files[0]
    if (size := sum(map(len, files))) > LARGEST_FILE:
        raise ModelError(
            f"the mean of the answers of {len(files)} models would be a file of {size:,} bytes, and at most {LARGEST_FILE:,} are "
            "loaded: switch ensemble off, or choose a smaller architecture"
        )
    keras = import_keras()
    models = []
    with tempfile.TemporaryDirectory(prefix="bcc-combine-") as folder:
        for number, file in enumerate(files, 1):
            path = Path(folder) / f"fold-{number}.h5"
            path.write_bytes(file)
            models.append(load_model(path))
            models[-1].name = f"fold_{number}"
    shapes = {(model.input_shape, model.output_shape) for model in models}
    if len(shapes) > 1:
        raise ModelError("the models of the folds differ in their input or in their classes: their answers have no mean")
    pixels = keras.Input(models[0].input_shape[1:], name="pixels")
    mean = keras.layers.Average(name="mean")([model(pixels) for model in models])
    return model_file_of(keras.Model(pixels, mean, name="mean_of_folds"))


def model_file_of(model: keras.Model) -> bytes:
    """Return the content of a model's `.h5`: what it takes to predict, and nothing of training (no optimizer, no augmentation).

    Args:
        model: in float32.
    """
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # Keras warns that the format is legacy; it is the one that this project promises
    try:
        with tempfile.TemporaryDirectory(prefix="bcc-model-") as folder:
            path = Path(folder) / "model.h5"
            model.save(path, include_optimizer=False)
            return path.read_bytes()
    finally:
        absl.setLevel(level)


def _arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found
