"""The notebook that this project starts from, done again as it was: naively.

`image_dataset_from_directory` at 500 x 500 in batches of 32, without a cache; random flip, rotation, zoom and brightness
as layers; rescaling to [0, 1]; class weights; a `Sequential` of convolution + max-pooling blocks with dense layers and
dropout; Adam, categorical cross-entropy, 20 epochs; an `.h5`. Only the split is the project's, so that its metrics can
stand beside the others. It is a baseline: nothing here is meant to be good.

    python -m benchmarks.notebook TRAIN_FOLDER VALIDATION_FOLDER OUT.json [--epochs 20] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

IMAGE_SIZE, BATCH_SIZE, EPOCHS = 500, 32, 20


def main() -> None:
    """Train as the notebook did, and write down what each epoch took and answered."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.write_text(json.dumps(train(arguments.train, arguments.checks, arguments.epochs, arguments.seed)))


def train(train_folder: Path, validation_folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Train and validate.

    Returns:
        Seconds (of the whole, and a list with one entry per epoch), processor seconds, labels and probabilities on the
        validation images, one entry per epoch, and peak memory in MB.
    """
    began = time.monotonic()
    import keras
    import numpy as np
    from keras import layers

    keras.utils.set_random_seed(seed)
    options: dict[str, Any] = {"label_mode": "categorical", "image_size": (IMAGE_SIZE, IMAGE_SIZE), "batch_size": BATCH_SIZE}
    train_set = keras.utils.image_dataset_from_directory(train_folder, seed=seed, **options)
    validation_set = keras.utils.image_dataset_from_directory(validation_folder, shuffle=False, **options)
    names = train_set.class_names
    model = keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3)),
            layers.RandomFlip("horizontal_and_vertical"),
            layers.RandomRotation(0.2),
            layers.RandomZoom(0.2),
            layers.RandomBrightness(0.2),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(128, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(len(names), activation="softmax"),
        ]
    )
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    counts = [len(list((train_folder / name).iterdir())) for name in names]
    weights = {number: sum(counts) / (len(counts) * count) for number, count in enumerate(counts)}
    probabilities: list[Any] = []
    ends: list[float] = []
    spent_on_the_record = cpu_spent_on_the_record = 0.0

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            nonlocal spent_on_the_record, cpu_spent_on_the_record
            ends.append(time.monotonic() - began - spent_on_the_record)
            asked, cpu_asked = time.monotonic(), time.process_time()
            probabilities.append(model.predict(validation_set, verbose=0).tolist())
            spent_on_the_record += time.monotonic() - asked
            cpu_spent_on_the_record += time.process_time() - cpu_asked
            print(f"epoch {epoch + 1}/{epochs}: {logs}, {ends[-1]:.0f} s", flush=True)

    model.fit(train_set, validation_data=validation_set, epochs=epochs, class_weight=weights, verbose=0, callbacks=[Record()])
    labels = np.concatenate([batch.argmax(axis=1) for _, batch in validation_set.as_numpy_iterator()])
    return {
        "seconds": ends[-1],
        "cpu_seconds": time.process_time() - cpu_spent_on_the_record,
        "epoch_ends": ends,
        "labels": labels.tolist(),
        "probabilities": probabilities,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


if __name__ == "__main__":
    main()
