"""Build the network of a run.

Every network takes raw 0-255 RGB pixels and answers probabilities; its normalisation is part of it, in stock Keras layers
only, so that the saved file needs nothing beside it and reloads with safe loading.

    cnn                 the notebook's Sequential of convolution + max-pooling blocks
    efficientnet_lite0  EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Apache-2.0, Google, 2020);
                        efficientnet_lite1 and _lite2 are deeper, and the latter is wider
    any other name      that model of keras.applications
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from bcc_ops.exceptions import ConfigError, WeightsUnavailable

log = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]

LITE = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
"""EfficientNet-Lite by name -> how much wider and deeper than `_STAGES` it is."""

_STAGES = (  # kernel, stride, expansion, filters, repeats: table 1 of arXiv:1905.11946
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_EPSILON = 1e-3
_LUMA = (0.299, 0.587, 0.114)
_MEAN, _SPREAD = 80.0, 50.0
_LAST = "probabilities"
_CNN_FILTERS = (16, 32, 64, 128)
_CNN_SMALLEST = 46


def build_classifier(
    architecture: str,
    image_size: int,
    classes: int,
    *,
    dropout: float,
    weights: str | Path | Arrays | None,
    frozen_part: float,
    standardize: bool = False,
) -> keras.Model:
    """Return the network that is trained: pixels in, probabilities out.

    Args:
        architecture: `cnn`, one of `LITE` or a model of `keras.applications` by name, in any spelling.
        image_size: side of the input, in pixels.
        classes: number of classes, at least 2.
        dropout: before the last layer.
        weights: of the backbone. Arrays as `pretrained.efficientnet_lite_weights` gives them, a weights file, "imagenet"
            (Keras fetches them), or None: drawn at random.
        frozen_part: the part of the backbone's layers, from the input on, that is not trained. Two kinds of layers of a
            pretrained backbone are frozen throughout: batch normalisation, since the statistics of a batch of 16 are
            worse than those of ImageNet, and depthwise filters, since they are 5 % of the weights, cost a fifth of a
            step on a processor, and come out no better for it (docs/training-trials.md).
        standardize: whether the network begins with `standardized`.

    Returns:
        A model from (n, image_size, image_size, 3) in 0-255 to float32 (n, classes).

    Raises:
        ConfigError: there is no such architecture, or the images are too small for it.
        WeightsUnavailable: the weights do not fit or are not available.
    """
    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    seen = standardized(pixels) if standardize else pixels
    if architecture == "cnn":
        return keras.Model(pixels, _cnn(seen, classes, dropout), name="classifier")
    if architecture in LITE:
        scaled: Any = layers.Rescaling(1 / 128, offset=-127 / 128, name="scale")(seen)
        backbone = efficientnet_lite(architecture, image_size, weights)
    else:
        constructor, preprocess = _keras_application(architecture)
        scaled = _as_layer(preprocess)(seen)
        backbone = _load_application(constructor, image_size, weights)
    if weights is not None:
        _freeze(backbone, frozen_part)
    features = layers.GlobalAveragePooling2D(name="average")(backbone(scaled))
    features = layers.Dropout(dropout, name="dropout")(features)
    probabilities = layers.Dense(classes, activation="softmax", dtype="float32", name=_LAST)(features)
    return keras.Model(pixels, probabilities, name="classifier")


def standardized(pixels: Any) -> Any:
    """Return the same images in shades of gray, with the mean and the standard deviation of brightness that `_MEAN` and `_SPREAD`
    state: machines differ in gain, in dynamic range and in the tint of their display.

    Padding does not count, nor does anything else that is black, and it stays black. An image of one shade stays one shade.

    Args:
        pixels: symbolic, (n, side, side, 3) in 0-255.

    Returns:
        Symbolic, of the same shape and range. Stock layers only, in float32: the sums over an image are too large for float16.
    """
    exact = {"dtype": "float32"}
    gray = _mixed(pixels, _LUMA, "gray")
    shown = layers.ReLU(1.0, name="shown", **exact)(gray)  # 1 where there is anything to see, 0 where it is black
    # With its negative beside it, its mean is 0 and its deviation the square root of the part of the square that shows something.
    pair = layers.Concatenate(name="pair", **exact)([shown, layers.Rescaling(-1.0, **exact)(shown)])
    pair = layers.GroupNormalization(1, epsilon=1e-6, center=False, scale=False, name="pair_over_root", **exact)(pair)
    over_root = _mixed(pair, (1, 0), "shown_over_root")
    along = layers.GlobalAveragePooling2D(keepdims=True, **exact)(layers.Multiply(**exact)([gray, over_root]))
    minus_mean = layers.Rescaling(-1.0, name="minus_mean", **exact)(layers.Multiply(**exact)([along, over_root]))
    centred = layers.Add(name="centred", **exact)([gray, minus_mean])
    # The deviation over the whole square is too small by that root.
    spread = layers.GroupNormalization(1, epsilon=1.0, center=False, scale=False, name="spread", **exact)(centred)
    root = layers.GlobalAveragePooling2D(keepdims=True, **exact)(layers.Multiply(**exact)([shown, over_root]))
    root = layers.Rescaling(_SPREAD, name="root", **exact)(root)
    level = layers.Rescaling(_MEAN, name="level", **exact)(shown)
    standard = layers.Add(name="standard", **exact)([layers.Multiply(**exact)([spread, root]), level])
    standard = layers.ReLU(255.0, name="in_range", **exact)(standard)
    return layers.Concatenate(name="three_channels", **exact)([standard] * 3)


def _mixed(x: Any, parts: Sequence[float], name: str) -> Any:
    """Return one channel that is this fixed mixture of the channels."""
    layer = layers.Conv2D(1, 1, use_bias=False, trainable=False, name=name, dtype="float32")
    mixed = layer(x)
    layer.set_weights([np.array(parts, np.float32).reshape(1, 1, len(parts), 1)])
    return mixed


def with_mirror_image(classifier: keras.Model) -> keras.Model:
    """Return a model that averages its answers for an image and its mirror image.

    The image is mirrored by a fixed permutation matrix over its columns: stock layers only, and exact, since every
    product is a pixel times 0 or 1.
    """
    side = int(classifier.input_shape[1])
    pixels = keras.Input(classifier.input_shape[1:], name="pixels")
    columns_last = layers.Permute((1, 3, 2), name="columns_last")(pixels)
    mirror = layers.Dense(side, use_bias=False, trainable=False, name="mirror")
    mirrored = layers.Permute((1, 3, 2), name="channels_last")(mirror(columns_last))
    mirror.set_weights([np.eye(side, dtype=np.float32)[::-1]])
    mean = layers.Average(name="mean")([classifier(pixels), classifier(mirrored)])
    return keras.Model(pixels, mean, name="classifier_with_mirror_image")


def efficientnet_lite(name: str, image_size: int, weights: Arrays | str | Path | None = None) -> keras.Model:
    """EfficientNet-Lite's convolutions: inputs (x - 127) / 128, 1,280 features at 1/32 of the resolution.

    Args:
        name: one of `LITE`.
        image_size: side of the input, in pixels.
        weights: `<layer>/<variable>` -> array, as `pretrained.to_keras_layout` gives them: then each batch normalisation
            is folded into the convolution before it, which leaves the function as it is and makes training a fifth
            cheaper. None: random, with batch normalisation, since it cannot be trained from nothing without.

    Raises:
        WeightsUnavailable: an array is missing or has another shape.
    """
    if weights is not None and not isinstance(weights, Mapping):
        raise WeightsUnavailable(f"{name} takes its weights from its package, a .pth file or none, not {weights}")
    pixels = keras.Input((image_size, image_size, 3))
    x = _convolution(pixels, weights, "conv_stem", "bn0", filters=32, kernel=3, stride=2)
    width, block = 32, 0
    for kernel, first_stride, expansion, filters, repeats in _scaled_stages(*LITE[name]):
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            this, y = f"block{block}", x
            if expansion > 1:
                y = _convolution(y, weights, f"{this}_expand_conv", f"{this}_bn0", filters=width * expansion)
            y = _convolution(y, weights, f"{this}_depthwise_conv", f"{this}_bn1", kernel=kernel, stride=stride)
            y = _convolution(y, weights, f"{this}_project_conv", f"{this}_bn2", filters=filters, activation=False)
            x = layers.Add(name=f"{this}_add")([x, y]) if stride == 1 and width == filters else y
            width, block = filters, block + 1
    x = _convolution(x, weights, "conv_head", "bn1", filters=1280)
    return keras.Model(pixels, x, name=name)


def _scaled_stages(wider: float, deeper: float) -> Iterator[tuple[int, int, int, int, int]]:
    """Scale `_STAGES` as EfficientNet-Lite does: filters in eights, and the first and the last stage as deep as they are."""
    for position, (kernel, stride, expansion, filters, repeats) in enumerate(_STAGES):
        is_scaled = 0 < position < len(_STAGES) - 1
        depth = math.ceil(round(repeats * deeper, 6)) if is_scaled else repeats
        yield kernel, stride, expansion, int(filters * wider + 4) // 8 * 8, depth


def _convolution(
    x: Any,
    weights: Arrays | None,
    name: str,
    norm: str,
    *,
    filters: int | None = None,
    kernel: int = 1,
    stride: int = 1,
    activation: bool = True,
) -> Any:
    """Return a convolution (depthwise if `filters` is None), its batch normalisation and ReLU6."""
    shared: dict[str, Any] = {"strides": stride, "padding": "same", "use_bias": weights is not None, "name": name}
    layer = layers.DepthwiseConv2D(kernel, **shared) if filters is None else layers.Conv2D(filters, kernel, **shared)
    x = layer(x)
    if weights is None:
        x = layers.BatchNormalization(epsilon=_EPSILON, momentum=0.99, name=norm)(x)
    else:
        _set_weights(layer, name, *_folded(weights, name, norm, depthwise=filters is None))
    return layers.ReLU(6.0, name=f"{name}_relu6")(x) if activation else x


def _folded(weights: Arrays, name: str, norm: str, depthwise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias that do what a kernel and the batch normalisation after it do."""
    try:
        kernel = weights[f"{name}/kernel"]
        gamma, beta, mean, variance = (weights[f"{norm}/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance"))
    except KeyError as error:
        raise WeightsUnavailable(f"the weights have no {error.args[0]}: they are of another network") from None
    scale = gamma / np.sqrt(variance + _EPSILON)
    return kernel * (scale[:, None] if depthwise else scale), beta - mean * scale


def _set_weights(layer: keras.Layer, name: str, *arrays: np.ndarray) -> None:
    try:
        layer.set_weights(list(arrays))
    except ValueError as error:
        raise WeightsUnavailable(f"the weights of {name} have another shape: {error}") from None


def _cnn(pixels: Any, classes: int, dropout: float) -> Any:
    if pixels.shape[1] < _CNN_SMALLEST:
        raise ConfigError(f"image_size: cnn needs at least {_CNN_SMALLEST} pixels, or nothing is left after its last pooling")
    x = layers.Rescaling(1 / 255, name="scale")(pixels)
    for block, filters in enumerate(_CNN_FILTERS):
        x = layers.Conv2D(filters, 3, activation="relu", name=f"convolution{block}")(x)
        x = layers.MaxPooling2D(name=f"pooling{block}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(128, activation="relu", name="dense")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return layers.Dense(classes, activation="softmax", dtype="float32", name=_LAST)(x)


def _keras_application(name: str) -> tuple[Callable[..., keras.Model], Callable[[np.ndarray], np.ndarray]]:
    """Return a model's constructor and its own `preprocess_input`."""
    wanted = name.replace("_", "").lower()
    models = {known.lower(): known for known in dir(keras.applications) if known[0].isupper()}
    if wanted not in models:
        raise ConfigError(f"architecture: got {name!r}, must be one of cnn, {', '.join((*LITE, *sorted(models.values())))}")
    constructor = getattr(keras.applications, models[wanted])
    module = importlib.import_module(constructor.__module__)
    return constructor, module.preprocess_input


def _as_layer(preprocess: Callable[[np.ndarray], np.ndarray]) -> keras.Layer:
    """Return a `preprocess_input` of keras.applications as a stock layer.

    Each of them is affine in a pixel's three channels (some swap red and blue), so that four pixels tell all of it.
    """
    probes = np.concatenate([np.zeros((1, 3)), np.eye(3)]).astype(np.float32).reshape(4, 1, 1, 3)
    answers = np.asarray(preprocess(probes.copy()), np.float32).reshape(4, 3)
    offset, matrix = answers[0], answers[1:] - answers[0]
    if np.allclose(matrix, matrix[0, 0] * np.eye(3)) and np.allclose(offset, offset[0]):
        return layers.Rescaling(float(matrix[0, 0]), offset=float(offset[0]), name="scale")
    layer = layers.Conv2D(3, 1, trainable=False, name="scale")
    layer.build((None, None, None, 3))
    layer.set_weights([matrix.reshape(1, 1, 3, 3), offset])
    return layer


def _load_application(constructor: Callable[..., keras.Model], image_size: int, weights: Any) -> keras.Model:
    name = constructor.__name__
    if isinstance(weights, Mapping):
        raise WeightsUnavailable(f"these weights are not of {name}")
    try:
        return constructor(include_top=False, weights=weights, input_shape=(image_size, image_size, 3))
    except Exception as error:
        # Keras raises a bare Exception for a download that fails, ValueError or OSError for a file that does not fit.
        raise WeightsUnavailable(
            f"the weights {weights!r} of {name} are not available: {' '.join(str(error).split())[:300]} (weights: imagenet needs "
            "the network; a weights file on the worker, an s3:// address or none does not)"
        ) from error


def _freeze(backbone: keras.Model, part: float) -> None:
    trained = [layer for layer in backbone.layers if layer.weights]
    frozen = round(part * len(trained))
    for position, layer in enumerate(trained):
        layer.trainable = position >= frozen and not isinstance(layer, (layers.BatchNormalization, layers.DepthwiseConv2D))
