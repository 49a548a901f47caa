"""Train with the preset `transfer` and as the notebook did, side by side, on the same split of the same images.

    python -m benchmarks.training IMAGES [--results DIR] [--seeds 1 2 3] [--salts 1 2 3 4] [--notebook-epochs 20]
                                         [--only PART …] [--write]

IMAGES is a folder with one folder per class. Each part runs in a process of its own, one after the other, and leaves a JSON
file in DIR; what is there already is not done again, so an interrupted benchmark continues. `--write` puts
the tables into docs/benchmarks.md. The validation part is only ever looked at here, to report; nothing is chosen by it.

Each of SALTS draws another split of the same images, on which the preset is trained once more: what a metric owes to the
validation images that it happened to get is seen there, and in no number of seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.image_checks import check_images
from bcc_ops.dataset.splits import class_weights, count_partitions, split_images
from bcc_ops.dataset.sync import LocalImage, training_view
from bcc_ops.runs.tables import SplitRow, read_rows, write_rows
from benchmarks.report import write_section

CLASSES, POSITIVE = ("benign", "malignant", "normal"), 1
GOALS = {"balanced_accuracy": 0.82, "macro_auc": 0.93, "malignant_auc": 0.94, "malignant_sensitivity": 0.88}
INPUT_EPOCHS = 4


def main() -> None:
    """Run what is missing, then report."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder with one folder per class")
    parser.add_argument("--results", type=Path, default=Path(".local/benchmarks/training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--salts", nargs="*", default=["1", "2", "3", "4"], help="`split_salt` of each further split")
    parser.add_argument("--notebook-epochs", type=int, default=20)
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="notebook, transfer-SEED, split-SALT, input-notebook, input-pipeline"
    )
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--note", default="", help="a sentence for the section: what else the machine had to do, say")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder: Path = arguments.results
    folder.mkdir(parents=True, exist_ok=True)
    images = list_images(arguments.images)
    if arguments.part:
        result = run_part(arguments.part, images, folder)
        (folder / f"{arguments.part}.json").write_text(json.dumps(result))
        return
    prepare(images, folder, arguments.salts)
    trainings = [*(f"transfer-{seed}" for seed in arguments.seeds), "notebook", *(f"split-{salt}" for salt in arguments.salts)]
    parts = ["input-pipeline", "input-notebook", *trainings]
    for part in arguments.only or parts:
        if (folder / f"{part}.json").exists():
            print(f"{part}: done before", flush=True)
            continue
        print(f"{part}: starts", flush=True)
        if part == "notebook":
            views = [str(folder / "notebook" / side) for side in ("train", "validation")]
            epochs = ["--epochs", str(arguments.notebook_epochs)]
            command = ["benchmarks.notebook", *views, str(folder / "notebook.json"), *epochs]
        else:
            command = ["benchmarks.training", str(arguments.images), "--results", str(folder), "--part", part]
        subprocess.run([sys.executable, "-m", *command], check=True)
    report = "\n\n".join(part for part in (markdown(folder, arguments.seeds, arguments.salts), arguments.note) if part)
    print(report)
    if arguments.write:
        write_section("training", report)


def list_images(folder: Path) -> list[LocalImage]:
    """Return the images of a folder with one folder per class, masks left out, as the pipeline would list them."""
    ignored = RetrainingConfig().ignored_names
    return [
        LocalImage(f"images/{label}/{path.name}", label, hashlib.sha256(path.read_bytes()).hexdigest(), path)
        for label in CLASSES
        for path in sorted((folder / label).glob("*.png"))
        if not any(fnmatch(path.name, pattern) for pattern in ignored)
    ]


def prepare(images: Sequence[LocalImage], folder: Path, salts: Sequence[str]) -> None:
    """Split as the project does; the notebook's 80 % are the train and the tuning part together."""
    missing = [salt for salt in ("", *salts) if not _split_file(folder, salt).exists()]
    if missing:
        checked = check_images(
            images,
            RetrainingConfig(),
            memory_path=folder / "contents.sqlite",
            snapshot_digest="benchmark",
            classes=CLASSES,
            previous=None,
        )
        for salt in missing:
            rows = split_images(checked.contents, [], RetrainingConfig.resolve({"split_salt": salt}), CLASSES).rows
            _split_file(folder, salt).write_bytes(write_rows(SplitRow, rows))
    sides = divide(images, folder)
    for view, chosen in {"train": ("train", "tuning"), "validation": ("validation",)}.items():
        (folder / "notebook").mkdir(exist_ok=True)
        training_view([image for side in chosen for image in sides[side]], folder / "notebook" / view)


def _split_file(folder: Path, salt: str = "") -> Path:
    return folder / (f"split-{salt}.parquet" if salt else "split.parquet")


def divide(images: Sequence[LocalImage], folder: Path, salt: str = "") -> dict[str, list[LocalImage]]:
    """Partition -> its images, by the split of a salt; "" is the project's own."""
    side_of = {row.key: row.partition for row in read_rows(SplitRow, _split_file(folder, salt).read_bytes())}
    return {side: [image for image in images if side_of.get(image.key) == side] for side in ("train", "tuning", "validation")}


def run_part(part: str, images: Sequence[LocalImage], folder: Path) -> dict[str, Any]:
    """Return one part of the benchmark, in this process."""
    if part.startswith("transfer-"):
        return transfer(divide(images, folder), int(part.removeprefix("transfer-")), folder / part, each_epoch=True)
    if part.startswith("split-"):
        return transfer(divide(images, folder, part.removeprefix("split-")), 1, folder / part, each_epoch=False)
    return {"input-notebook": input_of_notebook, "input-pipeline": input_pipeline}[part](divide(images, folder)["train"], folder)


def transfer(sides: dict[str, list[LocalImage]], seed: int, scratch: Path, each_epoch: bool) -> dict[str, Any]:
    """Train with the default parameters; validation is answered by the saved file, as a user would have it.

    Args:
        sides: partition -> its images.
        seed: of the training.
        scratch: a folder to work in, which is removed.
        each_epoch: whether to ask also what each epoch's model would have answered, beside the clock.
    """
    began = time.monotonic()
    from bcc_ops.dataset.input_pipeline import decode_images
    from bcc_ops.models.classifier import load_classifier
    from bcc_ops.training.architectures import build_classifier
    from bcc_ops.training.checkpoints import CheckpointFolder
    from bcc_ops.training.devices import peak_memory_mb, prepare_devices
    from bcc_ops.training.fit import train
    from bcc_ops.training.pretrained import efficientnet_lite0_weights
    from bcc_ops.training.run_training import odds_factors, save_model

    config = RetrainingConfig.resolve({"seed": seed})
    devices = prepare_devices(config.seed, config.deterministic, config.mixed_precision)

    def build() -> Any:
        return build_classifier(
            config.architecture,
            config.image_size,
            len(CLASSES),
            dropout=config.dropout,
            weights=efficientnet_lite0_weights(scratch.parent / "cache"),
            frozen_part=config.frozen_part,
        )

    classifier = build()
    train_pixels, tuning_pixels = (
        decode_images(sides[side], CLASSES, side=config.image_size, scratch=scratch, budget_bytes=10**9)
        for side in ("train", "tuning")
    )
    counts: dict[str, int] = {name: int((train_pixels.labels == number).sum()) for number, name in enumerate(CLASSES)}
    checkpoints = CheckpointFolder(scratch, "checkpoint", None)
    epochs: list[dict[str, Any]] = []
    beside_the_clock = cpu_beside_the_clock = 0.0
    mirror = build()
    odds_factor = odds_factors(config, CLASSES, CLASSES[POSITIVE])
    saved: dict[str, Any] = {"test_time_flip": config.test_time_flip, "odds_factor": odds_factor}

    def record(rows: Sequence[Any]) -> None:
        nonlocal beside_the_clock, cpu_beside_the_clock
        print(f"  epoch {len(rows)}: {rows[-1].seconds:.0f} s, tuning loss {rows[-1].tuning_loss:.3f}", flush=True)
        if not each_epoch:
            return
        end, cpu_end = time.monotonic(), time.process_time()
        reached = checkpoints.load()
        assert reached is not None
        mirror.set_weights(list(reached.best))
        file = save_model(mirror, reached.best, scratch / "epoch.h5", **saved)
        answers = load_classifier(file).predict([image.path for image in sides["validation"]])
        epochs.append({"end": end - began - beside_the_clock, "probabilities": answers.tolist()})
        beside_the_clock += time.monotonic() - end
        cpu_beside_the_clock += time.process_time() - cpu_end

    result = train(
        classifier,
        train_pixels,
        tuning_pixels,
        class_weights=class_weights(counts),
        config=config,
        devices=devices,
        checkpoints=checkpoints,
        stop=threading.Event(),
        on_epoch=record,
    )
    file = save_model(classifier, result.weights, scratch.parent / f"{scratch.name}.h5", **saved)
    seconds = time.monotonic() - began - beside_the_clock
    cpu_seconds = time.process_time() - cpu_beside_the_clock
    model = load_classifier(file)
    shutil.rmtree(scratch)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "epoch_ends": [epoch["end"] for epoch in epochs],
        "probabilities": [epoch["probabilities"] for epoch in epochs],
        "final": model.predict([image.path for image in sides["validation"]]).tolist(),
        "labels": [CLASSES.index(image.label) for image in sides["validation"]],
        "tuning": model.predict([image.path for image in sides["tuning"]]).tolist(),
        "tuning_labels": [CLASSES.index(image.label) for image in sides["tuning"]],
        "wanted_sensitivity": config.wanted_sensitivity,
        "best_epoch": result.best_epoch,
        "epochs": len(result.rows),
        "images_per_second": float(np.mean([row.images_per_second for row in result.rows])),
        "peak_memory_mb": peak_memory_mb(),
        "counts": counts,
    }


def input_of_notebook(images: Sequence[LocalImage], folder: Path) -> dict[str, Any]:
    """Return images per second of the notebook's way: read, decoded and resized in each epoch, augmented by Keras' layers."""
    import keras
    from keras import layers

    from benchmarks.notebook import BATCH_SIZE, IMAGE_SIZE

    keras.utils.set_random_seed(1)
    view = training_view(images, folder / "input-notebook")
    dataset = keras.utils.image_dataset_from_directory(
        view, label_mode="categorical", image_size=(IMAGE_SIZE, IMAGE_SIZE), batch_size=BATCH_SIZE, seed=1, verbose=False
    )
    augment = keras.Sequential(
        [
            layers.RandomFlip("horizontal_and_vertical"),
            layers.RandomRotation(0.2),
            layers.RandomZoom(0.2),
            layers.RandomBrightness(0.2),
        ]
    )
    augmented = dataset.map(lambda pixels, labels: (augment(pixels, training=True), labels))
    return {"images_per_second": images_per_second(lambda epoch: iter(augmented), len(images))}


def input_pipeline(images: Sequence[LocalImage], folder: Path) -> dict[str, Any]:
    """Return images per second of the project's pipeline, at the preset's size and at the notebook's, augmented."""
    from bcc_ops.dataset.input_pipeline import Augmentation, decode_images, training_batches

    config = RetrainingConfig()
    found: dict[str, Any] = {"side": config.image_size}
    for name, side in {"images_per_second": config.image_size, "images_per_second_at_500": 500}.items():
        pixels = decode_images(images, CLASSES, side=side, scratch=folder, budget_bytes=10**9)
        augmentation = Augmentation.of(config)

        def epoch_of(epoch: int, pixels: Any = pixels, augmentation: Any = augmentation) -> Iterator[Any]:
            return iter(training_batches(pixels, augmentation, config.batch_size, config.seed, epoch))

        found[name] = images_per_second(epoch_of, len(images))
    return found


def images_per_second(batches: Callable[[int], Iterator[Any]], images: int) -> float:
    """Of the second epoch on: the first one pays for building the graph, and for files that are not in memory yet."""
    spent = []
    for epoch in range(INPUT_EPOCHS):
        began = time.monotonic()
        for _ in batches(epoch):
            pass
        spent.append(time.monotonic() - began)
    return images / float(np.mean(spent[1:]))


def metrics(labels: Sequence[int], probabilities: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return what the goals are about, and accuracy, by scikit-learn: an opinion of its own beside the project's metrics."""
    from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

    truth, answers = np.asarray(labels), np.asarray(probabilities)
    predicted = answers.argmax(axis=1)
    aucs = [roc_auc_score(truth == number, answers[:, number]) for number in range(answers.shape[1])]
    return {
        "accuracy": float((predicted == truth).mean()),
        "balanced_accuracy": float(balanced_accuracy_score(truth, predicted)),
        "macro_auc": float(np.mean(aucs)),
        "malignant_auc": float(aucs[POSITIVE]),
        "malignant_sensitivity": float(recall_score(truth, predicted, labels=[POSITIVE], average=None)[0]),
    }


def at_operating_point(part: dict[str, Any]) -> tuple[float, float]:
    """Malignant sensitivity and specificity on validation, at the threshold that the tuning part gives."""
    from bcc_ops.evaluation.metrics import Scores, choose_threshold

    tuning = np.asarray(part["tuning"], float)
    labels = np.asarray(part["tuning_labels"])
    scores = Scores(labels, tuning, np.arange(len(labels)))
    threshold = choose_threshold(scores, POSITIVE, part["wanted_sensitivity"], "tuning").value
    assert threshold is not None
    called = np.asarray(part["final"])[:, POSITIVE] >= threshold
    positive = np.asarray(part["labels"]) == POSITIVE
    return float(called[positive].mean()), float((~called[~positive]).mean())


def reaches(part: dict[str, Any], metric: str, goal: float) -> float | None:
    """Return the seconds from the start until an epoch's model was at least that good on validation; None if none was."""
    for end, answers in zip(part["epoch_ends"], part["probabilities"]):
        if metrics(part["labels"], answers)[metric] >= goal:
            return float(end)
    return None


def markdown(folder: Path, seeds: Sequence[int], salts: Sequence[str]) -> str:
    """Return the tables of what was measured so far."""
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    runs = [found[f"transfer-{seed}"] for seed in seeds if f"transfer-{seed}" in found]
    notebook = found.get("notebook")
    lines = ["## Training: `transfer` beside the notebook", "", "`python -m benchmarks.training IMAGES --write`", ""]
    lines += [_split_sentence(folder), ""]
    trained = [f"seed {seed}" for seed in seeds if f"transfer-{seed}" in found]
    lines.append(f"| {' | '.join(['', 'goal', *trained, 'mean', 'notebook, last epoch', 'notebook, best epoch'])} |")
    lines += ["|---" * (len(runs) + 5) + "|"]
    finals = [metrics(run["labels"], run["final"]) for run in runs]
    history = [metrics(notebook["labels"], answers) for answers in notebook["probabilities"]] if notebook else []
    for name in ("accuracy", *GOALS):
        values = [final[name] for final in finals]
        cells = [f"{GOALS[name]:.2f}" if name in GOALS else "", *(f"{value:.3f}" for value in values)]
        cells += [f"**{np.mean(values):.3f}**" if values else ""]
        cells += [f"{history[-1][name]:.3f}", f"{max(epoch[name] for epoch in history):.3f}"] if history else ["", ""]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    points = [at_operating_point(run) for run in runs]
    if runs:
        for position, name in enumerate(("sensitivity", "specificity")):
            values = [point[position] for point in points]
            cells = ["", *(f"{value:.3f}" for value in values), f"**{np.mean(values):.3f}**", "", ""]
            lines.append(f"| malignant {name} at the operating point | " + " | ".join(cells) + " |")
    for name, measure, called, goal in (
        ("seconds", "s", "wall time", "a third"),
        ("cpu_seconds", "s", "processor time", ""),
        ("peak_memory_mb", "MB", "peak memory", "< 4,000 MB"),
    ):
        values = [run[name] for run in runs]
        cells = [
            goal,
            *(f"{value:,.0f} {measure}" for value in values),
            f"**{np.mean(values):,.0f} {measure}**" if values else "",
        ]
        cells += [f"{notebook[name]:,.0f} {measure}" if notebook else "", ""]
        lines.append(f"| {called} | {' | '.join(cells)} |")
    if runs and notebook:
        lines += ["", *_races(runs, notebook, history), "", *_floors(finals, points, history[-1])]
    splits = {salt: found[f"split-{salt}"] for salt in salts if f"split-{salt}" in found}
    if runs and splits:
        lines += ["", *other_splits(runs[0], splits)]
    if "input-pipeline" in found and "input-notebook" in found:
        lines += ["", *_input_rates(found["input-pipeline"], found["input-notebook"])]
    return "\n".join(lines)


def _split_sentence(folder: Path) -> str:
    counts = count_partitions(read_rows(SplitRow, _split_file(folder).read_bytes()), CLASSES)
    parts = "; ".join(
        f"{side} {sum(by.values())} ({', '.join(f'{n} {c}' for c, n in by.items())})" for side, by in counts.items()
    )
    return (
        f"Images: {parts}. The notebook trains on train and tuning together, and does not know of the near-duplicates but "
        "by the split. No parameter was chosen by the validation part."
    )


def other_splits(own: dict[str, Any], others: dict[str, dict[str, Any]]) -> list[str]:
    """Return the metrics on further splits, beside those of the same seed on the project's own."""
    measured = []
    for run in (own, *others.values()):
        sensitivity, specificity = at_operating_point(run)
        measured.append(
            metrics(run["labels"], run["final"])
            | {"sensitivity at the operating point": sensitivity, "specificity at the operating point": specificity}
        )
    names = ["", "goal", "the split above", *(f"`split_salt` {salt}" for salt in others), "mean", "standard deviation"]
    lines = ["One seed, on the split above and on others of the same images:", ""]
    lines += [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name in measured[0]:
        values = [metric[name] for metric in measured]
        goal = f"{GOALS[name]:.2f}" if name in GOALS else ""
        cells = [f"{value:.3f}" for value in values]
        cells += [f"**{np.mean(values):.3f}**", f"{np.std(values, ddof=1):.3f}"]
        lines.append(f"| {name.replace('_', ' ')} | {goal} | {' | '.join(cells)} |")
    return lines


def _races(runs: Sequence[dict[str, Any]], notebook: dict[str, Any], history: Sequence[dict[str, float]]) -> list[str]:
    lines = ["| time to reach the other's best | transfer, mean | notebook |", "|---|---|---|"]
    for name in ("balanced_accuracy", "malignant_auc"):
        times = [reaches(run, name, max(epoch[name] for epoch in history)) for run in runs]
        own = [time for time in times if time is not None]
        best = float(np.mean([metrics(run["labels"], run["final"])[name] for run in runs]))
        other = reaches(notebook, name, best)
        cells = f"{np.mean(own):,.0f} s" if len(own) == len(runs) else f"{len(own)} of {len(runs)} seeds did"
        lines.append(f"| {name.replace('_', ' ')} | {cells} | {f'{other:,.0f} s' if other is not None else 'never'} |")
    return lines


def _floors(finals: Sequence[dict[str, float]], points: Sequence[tuple[float, float]], notebook: dict[str, float]) -> list[str]:
    """Return what the gate asks of a model if there is no champion. The notebook has no tuning part to choose a threshold on."""
    gate = RetrainingConfig()
    rows: list[tuple[str, float, float, float | None]] = [
        (name, floor, min(final[key] for final in finals), notebook[key])
        for name, key, floor in (
            ("balanced accuracy", "balanced_accuracy", gate.min_balanced_accuracy),
            ("macro AUC", "macro_auc", gate.min_macro_auc),
        )
    ]
    sensitivity, specificity = (min(values) for values in zip(*points))
    rows.append(("malignant sensitivity at the operating point", gate.min_malignant_sensitivity, sensitivity, None))
    rows.append(("malignant specificity at the operating point", gate.min_malignant_specificity, specificity, None))
    lines = ["| the gate's floors | floor | transfer, lowest of the seeds | notebook, last epoch |", "|---|---|---|---|"]
    for name, floor, own, other in rows:
        cells = [f"{value:.3f} {'passes' if value >= floor else 'fails'}" if value is not None else "" for value in (own, other)]
        lines.append(f"| {name} | {floor:.2f} | {' | '.join(cells)} |")
    return lines


def _input_rates(pipeline: dict[str, Any], notebook: dict[str, Any]) -> list[str]:
    rows = {
        "notebook, 500 px": notebook["images_per_second"],
        f"input pipeline, {pipeline['side']} px": pipeline["images_per_second"],
        "input pipeline, 500 px": pipeline["images_per_second_at_500"],
    }
    lines = ["| input alone, second epoch on, with augmentation | images/s | |", "|---|---|---|"]
    lines += [f"| {name} | {rate:,.0f} | {rate / notebook['images_per_second']:.1f}x |" for name, rate in rows.items()]
    return lines


if __name__ == "__main__":
    main()
