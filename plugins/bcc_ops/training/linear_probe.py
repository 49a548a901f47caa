"""Fit a network's last layer to the features that its backbone brings along, before anything else is trained.

A last layer of random numbers sends large, meaningless gradients into a pretrained backbone during the first steps. They distort
features that other hospitals' images need too. A fitted layer has nothing to send back but what is left to learn (Kumar et al.,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_INVERSE_PENALTY = 0.003
_MOST_STEPS = 300


def fit_last_layer(
    features: np.ndarray, labels: np.ndarray, class_weights: Mapping[int, float]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return kernel and bias of a dense softmax layer: a logistic regression with a strong penalty.

    Args:
        features: (n, width), what the layer gets.
        labels: (n,) indices of the true classes.
        class_weights: number of the class -> weight of its images. Its classes are those that the layer answers.

    Returns:
        float32, (width, classes) and (classes,); None if a class has no image.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if set(np.unique(labels).tolist()) != set(class_weights):
        return None
    scaler = StandardScaler().fit(features)
    regression = LogisticRegression(C=_INVERSE_PENALTY, class_weight=dict(class_weights), max_iter=_MOST_STEPS)
    regression.fit(scaler.transform(features), labels)
    slopes, offsets = regression.coef_, regression.intercept_
    if len(class_weights) == 2:  # of two classes it knows the log odds alone
        slopes, offsets = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-offsets, offsets]) / 2
    kernel = (slopes / scaler.scale_).T
    return kernel.astype(np.float32), (offsets - scaler.mean_ @ kernel).astype(np.float32)
