"""Where a network looked: Grad-CAM (Selvaraju et al., arXiv:1610.02391) on its last feature map.

A heat map says which places speak for a class; it does not prove why the network answered so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from bcc_ops.exceptions import ModelError
from bcc_ops.models.classifier import Classifier

Heat = npt.NDArray[np.float32]


class GradCam:
    """Heat maps of one model.

    A model that averages over an image and its mirror image is looked at the same way: its maps are the mean of both.

    Args:
        classifier: its last layer must be a dense softmax.

    Raises:
        ModelError: the model has no feature map, or ends in something else.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._read = classifier.read
        inner = _classifier_in(classifier.model)
        self._mirrors = inner is not classifier.model
        self._last = inner.layers[-1]
        self._explained = _with_feature_map(inner)

    def __call__(self, paths: Sequence[Path], classes: Sequence[int]) -> Heat:
        """Heat maps of image files.

        Args:
            paths: n images; each is decoded and resized as in training.
            classes: for each image the index of the class that is asked about.

        Returns:
            (n, h, w) in [0, 1], h and w those of the last feature map, each map's highest place 1; all 0 if nothing
            speaks for the class.
        """
        return self.of_pixels(np.stack([self._read(path) for path in paths]), classes)

    def of_pixels(self, pixels: np.ndarray, classes: Sequence[int]) -> Heat:
        """Return the same for pixels (n, side, side, 3) in 0-255."""
        images = np.asarray(pixels, np.float32)
        heat = self._weighted_map(images, classes)
        if self._mirrors:
            heat = np.mean([heat, self._weighted_map(images[:, :, ::-1], classes)[:, :, ::-1]], axis=0, dtype=np.float32)
        highest = heat.max(axis=(1, 2), keepdims=True)
        scaled: Heat = np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)
        return scaled

    def _weighted_map(self, images: np.ndarray, classes: Sequence[int]) -> Heat:
        """Equations 1 and 2 of the paper: the positive part of the channels' sum, weighted by the score's mean gradient."""
        inputs = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(inputs)  # else nothing is recorded of a network whose weights are frozen
            features, before_last = self._explained(inputs, training=False)
            every = tf.matmul(tf.cast(before_last, tf.float32), self._last.kernel) + self._last.bias
            scores = tf.gather(every, tf.constant(classes), batch_dims=1, axis=1)
        weights = tf.reduce_mean(tape.gradient(scores, features), axis=(1, 2), keepdims=True)
        return np.asarray(tf.nn.relu(tf.reduce_sum(tf.cast(weights * features, tf.float32), axis=-1)), np.float32)


def _classifier_in(model: keras.Model) -> keras.Model:
    """Return the network that answers probabilities itself: `model`, or the one that it averages over both mirror images of."""
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model) and layer.output_shape == model.output_shape]
    return _classifier_in(inner[-1]) if inner else model


def _with_feature_map(classifier: keras.Model) -> keras.Model:
    """Pixels -> (last feature map, what the last layer gets)."""
    last = classifier.layers[-1]
    if not (isinstance(last, keras.layers.Dense) and last.activation is keras.activations.softmax):
        raise ModelError(f"Grad-CAM needs a dense softmax at the end, not {type(last).__name__}")
    for layer in reversed(classifier.layers[:-1]):
        # A nested network's own `output` belongs to its inner graph; the node of its call has the tensor of this one.
        outputs: Any = layer._inbound_nodes[-1].output_tensors if layer._inbound_nodes else ()
        if len(outputs) == 1 and len(outputs[0].shape) == 4 and not isinstance(layer, keras.layers.InputLayer):
            return keras.Model(classifier.inputs, [outputs[0], last._inbound_nodes[-1].input_tensors[0]])
    raise ModelError("Grad-CAM needs a feature map, and this network has none")
