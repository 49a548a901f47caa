"""Train over two virtual processors, be interrupted after an epoch, resume; print what came of it."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.input_pipeline import Pixels
from bcc_ops.exceptions import TrainingInterrupted
from bcc_ops.training.architectures import build_classifier
from bcc_ops.training.checkpoints import CheckpointFolder
from bcc_ops.training.devices import prepare_devices
from bcc_ops.training.fit import TrainingRecord, train

(processor,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
config = RetrainingConfig.resolve(
    {"architecture": "cnn", "weights": "none", "image_size": 46, "batch_size": 4, "epochs": 2, "mixed_precision": False}
)
labels = np.arange(18) % 3
images = np.random.default_rng(0).integers(0, 256, (18, 46, 46, 3), np.uint8)
pixels = Pixels(images, labels, ("benign", "malignant", "normal"))


def attempt(stop_after: int) -> TrainingRecord:
    """Train; stop once so many epochs are done."""
    devices = prepare_devices(1, deterministic=False, mixed_precision=False)
    devices = replace(devices, strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    stop = threading.Event()
    with devices.strategy.scope():
        classifier = build_classifier("cnn", 46, 3, dropout=0.3, weights=None, frozen_part=0.0)
    return train(
        classifier,
        pixels,
        pixels,
        fold=1,
        class_weights=dict.fromkeys(pixels.classes, 1.0),
        config=config,
        devices=devices,
        checkpoints=CheckpointFolder(Path(sys.argv[1]), "checkpoint", None),
        stop=stop,
        on_epoch=lambda rows: stop.set() if len(rows) == stop_after else None,
    )


try:
    attempt(stop_after=1)
except TrainingInterrupted:
    record = attempt(stop_after=0)
    print(json.dumps({"replicas": 2, "resumed_after": record.resumed_after, "rows": len(record.rows)}))  # noqa: T201
