"""Train a run's five fold models, combine them, and ask them about other hospitals; beside the notebook, on the same split.

    python -m benchmarks.training IMAGES [--external FOLDER …] [--patients REGEX] [--seeds 1 2 3] [--set NAME=VALUE …]
                                         [--results DIR] [--notebook-epochs 20] [--only PART …] [--write]

IMAGES is a folder with one folder per class; each FOLDER is another one, from elsewhere, not trained on. REGEX reads
the patient from a file's name there. Each part runs in a process of its own, one after the other, and leaves its result in DIR;
what is there already is not done again, so an interrupted benchmark continues. `--set` changes parameters of the run: give each
trial a DIR of its own. `--write` puts the tables into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.image_checks import check_images
from bcc_ops.dataset.splits import describe_split, split_images
from bcc_ops.dataset.sync import LocalImage, training_view
from bcc_ops.evaluation.metrics import Evaluation, ScoredModel, Scores, Threshold, cross_fit
from bcc_ops.runs.documents import FOLDS, Estimate, FoldDocument, Reference, SnapshotDocument, parse_document
from bcc_ops.runs.paths import RunPaths, fold_file
from bcc_ops.runs.rows import AssignmentRow, SplitRow
from bcc_ops.runs.tables import read_answers, read_rows, write_rows
from benchmarks.report import write_section

CLASSES, POSITIVE = ("benign", "malignant", "normal"), 1
INPUT_EPOCHS = 4
LIMITS = ("malignant.auc", "macro_auc", "balanced_accuracy", "accuracy", "loss", "calibration_slope")
OPERATING = ("operating.sensitivity", "operating.specificity")


def main() -> None:
    """Run what is missing, then report."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder with one folder per class")
    parser.add_argument("--external", type=Path, nargs="*", default=[], help="folders from elsewhere, one folder per class each")
    parser.add_argument("--patients", default=r"^([A-Z]{4})_", help="reads the patient from a file's name from elsewhere")
    parser.add_argument("--results", type=Path, default=Path(".local/benchmarks/training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of the run")
    parser.add_argument("--notebook-epochs", type=int, default=20)
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="SEED-fold-N, SEED-file, notebook, input-notebook, input-pipeline"
    )
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--note", default="", help="a sentence for the section: what else the machine had to do, say")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder: Path = given.results
    folder.mkdir(parents=True, exist_ok=True)
    if given.part:
        result = run_part(given.part, given)
        (folder / f"{given.part}.json").write_text(json.dumps(result))
        return
    prepare(list_images(given.images), folder)
    trainings = [f"{seed}-{part}" for seed in given.seeds for part in (*(f"fold-{fold}" for fold in FOLDS), "file")]
    for part in given.only or ["input-pipeline", "input-notebook", *trainings, "notebook"]:
        if (folder / f"{part}.json").exists():
            print(f"{part}: done before", flush=True)
            continue
        print(f"{part}: starts", flush=True)
        command = ["benchmarks.training", *sys.argv[1:], "--part", part]
        if part == "notebook":
            views = [str(folder / "notebook" / side) for side in ("train", "validation")]
            command = ["benchmarks.notebook", *views, str(folder / "notebook.json"), "--epochs", str(given.notebook_epochs)]
        subprocess.run([sys.executable, "-m", *command], check=True)
    report = "\n\n".join(part for part in (markdown(folder, given.seeds), given.note) if part)
    print(report)
    if given.write:
        write_section("training", report)


def list_images(folder: Path) -> list[LocalImage]:
    """Return the images of a folder with one folder per class, masks left out, as the pipeline would list them."""
    ignored = RetrainingConfig().ignored_names
    return [
        LocalImage(f"images/{label}/{path.name}", label, hashlib.sha256(path.read_bytes()).hexdigest(), path)
        for label in CLASSES
        for path in sorted((folder / label).glob("*"))
        if path.is_file() and not any(fnmatch(path.name, pattern) for pattern in ignored)
    ]


def prepare(images: Sequence[LocalImage], folder: Path) -> None:
    """Split as the project does; the notebook trains on all folds but the first, and validates on that."""
    file = folder / "split.parquet"
    if not file.exists():
        checked = check_images(
            images,
            RetrainingConfig(),
            memory_path=folder / "contents.sqlite",
            snapshot_digest="benchmark",
            classes=CLASSES,
            previous=None,
        )
        file.write_bytes(write_rows(SplitRow, split_images(checked.contents, [], RetrainingConfig(), CLASSES).rows))
    fold_of = {row.key: row.fold for row in _split(folder)}
    (folder / "notebook").mkdir(exist_ok=True)
    for view, is_validation in {"train": False, "validation": True}.items():
        chosen = [image for image in images if image.key in fold_of and (fold_of[image.key] == 1) == is_validation]
        training_view(chosen, folder / "notebook" / view)


def _split(folder: Path) -> list[SplitRow]:
    return read_rows(SplitRow, (folder / "split.parquet").read_bytes())


def run_part(part: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return one part of the benchmark, in this process."""
    images, folder = list_images(given.images), given.results
    if part.startswith("input-"):
        fold_of = {row.key: row.fold for row in _split(folder)}
        training = [image for image in images if fold_of.get(image.key, 1) != 1]
        return {"input-notebook": input_of_notebook, "input-pipeline": input_pipeline}[part](training, folder)
    seed, _, what = part.partition("-")
    parameters = dict(setting.split("=", 1) for setting in given.set)
    config = RetrainingConfig.resolve({**parameters, "seed": int(seed)})
    if what == "file":
        return combined(folder, seed, given)
    return fold_model(images, config, int(what.removeprefix("fold-")), folder, seed)


def fold_model(images: Sequence[LocalImage], config: RetrainingConfig, fold: int, folder: Path, seed: str) -> dict[str, Any]:
    """Train a fold's model as the task does, and keep its files."""
    began = time.monotonic()
    from bcc_ops.dataset.splits import Split
    from bcc_ops.training.checkpoints import CheckpointFolder
    from bcc_ops.training.pretrained import backbone_weights
    from bcc_ops.training.run_training import FoldInputs, train_fold

    rows = _split(folder)
    assigned = [AssignmentRow(row.key, row.sha256, row.pixels, row.label, row.group, row.fold, 1) for row in rows]
    nowhere = Reference.of("split.json", b"")
    split = describe_split(Split(tuple(rows), (), tuple(assigned), 0, config.folds), config, CLASSES, table=nowhere)
    now = datetime.now(timezone.utc)
    snapshot = SnapshotDocument(
        bucket="",
        prefix="images",
        as_of=now,
        run_id="benchmark",
        run_kind="manual",
        versioned=False,
        as_of_source="last_modified",
        classes=CLASSES,
        positive_class=CLASSES[POSITIVE],
        counts={},
        digest="",
        previous_run=None,
        change=None,
        ignored=(),
        images=nowhere,
    )
    inputs = FoldInputs(
        fold=fold,
        config=config,
        config_digest="",
        snapshot=snapshot,
        split=split,
        split_reference=nowhere,
        rows=rows,
        synthetic=False,
        images=lambda: images,
        weights=lambda: backbone_weights(config.architecture, config.weights, folder / "cache", None),
        scratch=folder / "pixels",
    )
    checkpoints = CheckpointFolder(folder, f"checkpoint-{seed}-{fold}", None)
    paths = RunPaths.of("benchmark", now, seed)
    trained = train_fold(
        paths,
        inputs,
        checkpoints,
        stop=threading.Event(),
        publish=lambda history: print("  epoch", history.count(b"\n") - 1, flush=True),
    )
    checkpoints.clear()
    for ending, content in (
        ("h5", trained.model),
        ("csv", trained.history),
        ("parquet", trained.answers),
        ("json", trained.document.to_json()),
    ):
        (folder / f"seed-{seed}-{fold_file(fold, ending)}").write_bytes(content)
    return {
        "wall_seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time(),
        "epoch_seconds": trained.document.seconds,
        "peak_memory_mb": trained.document.peak_memory_mb,
    }


def combined(folder: Path, seed: str, given: argparse.Namespace) -> dict[str, Any]:
    """Combine the folds' models, and ask them and the average of their weights about the images from elsewhere.

    The file's answers are the mean of theirs: `tests/unit/models/test_combination.py` asks a real one.
    """
    from bcc_ops.models.classifier import load_classifier
    from bcc_ops.models.combination import average_weights
    from bcc_ops.training.combine import combine_folds

    began = time.monotonic()
    stored = {
        ending: [(folder / f"seed-{seed}-{fold_file(fold, ending)}").read_bytes() for fold in FOLDS]
        for ending in ("json", "h5", "parquet")
    }
    documents = [parse_document(FoldDocument, content, "fold") for content in stored["json"]]
    made = combine_folds(RunPaths.of("benchmark", datetime.now(timezone.utc), seed), documents, stored["h5"], stored["parquet"])
    (folder / f"seed-{seed}-model.h5").write_bytes(made.model)
    (folder / f"seed-{seed}-out_of_fold.parquet").write_bytes(made.answers)
    seconds = time.monotonic() - began
    average = folder / f"seed-{seed}-average.h5"
    average.write_bytes(average_weights(stored["h5"]))
    elsewhere: dict[str, Any] = {}
    files = [average, *(folder / f"seed-{seed}-{fold_file(fold, 'h5')}" for fold in FOLDS)]
    for place in given.external:
        images = list_images(place)
        paths = [image.path for image in images]
        answers = [load_classifier(path, keep_aspect=documents[0].keep_aspect).predict(paths).tolist() for path in files]
        matches = [re.search(given.patients, image.path.name) for image in images]
        elsewhere[place.name] = {
            "labels": [CLASSES.index(image.label) for image in images],
            "groups": [match.group(1) if match else image.key for match, image in zip(matches, images)],
            "file": np.mean(answers[1:], axis=0).tolist(),
            "average": answers[0],
            "folds": answers[1:],
        }
    return {"seconds": seconds, "file_mb": len(made.model) / 1e6, "combined": made.document.combined, "elsewhere": elsewhere}


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
        pixels = decode_images(images, CLASSES, side=side, keep_aspect=config.keep_aspect, scratch=folder, budget_bytes=10**9)
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


def markdown(folder: Path, seeds: Sequence[int]) -> str:
    """Return the tables of what was measured so far."""
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json") if not path.stem.startswith("seed-")}
    done = [seed for seed in seeds if f"{seed}-file" in found]
    lines = ["## Training: five folds, their file, and the notebook", "", "`python -m benchmarks.training IMAGES --write`", ""]
    lines += [_split_sentence(folder), ""]
    if done:
        lines += [*_out_of_fold_table(folder, done, found.get("notebook")), "", *_costs(found, done)]
        lines += ["", *_elsewhere_table(found, done)]
    if "input-pipeline" in found and "input-notebook" in found:
        lines += ["", *_input_rates(found["input-pipeline"], found["input-notebook"])]
    return "\n".join(lines)


def _split_sentence(folder: Path) -> str:
    rows = _split(folder)
    counts = {fold: [sum(row.fold == fold and row.label == name for row in rows) for name in CLASSES] for fold in FOLDS}
    parts = "; ".join(
        f"fold {fold}: {sum(by)} ({', '.join(f'{n} {c}' for n, c in zip(by, CLASSES))})" for fold, by in counts.items()
    )
    return f"Images: {parts}. The notebook trains on folds 2 to 5 and is asked about fold 1."


def evaluated(labels: Any, probabilities: Any, groups: Any, folds: Any) -> Evaluation:
    """Evaluate out-of-fold answers, one entry per image in each, with cross-fitted thresholds and temperatures."""
    scores = Scores(np.asarray(labels, np.int64), np.asarray(probabilities, float), np.asarray(groups))
    return Evaluation(
        cross_fit(scores, np.asarray(folds, np.int64), POSITIVE, RetrainingConfig().wanted_sensitivity, ""), CLASSES, "malignant"
    )


def _out_of_fold(folder: Path, seed: int, fold: int | None = None) -> Evaluation:
    rows, answers = read_answers((folder / f"seed-{seed}-out_of_fold.parquet").read_bytes(), CLASSES)
    chosen = np.array([fold in (None, row.fold) for row in rows])
    kept = [row for row, keep in zip(rows, chosen) if keep]
    return evaluated([CLASSES.index(r.label) for r in kept], answers[chosen], [r.group for r in kept], [r.fold for r in kept])


def _out_of_fold_table(folder: Path, seeds: Sequence[int], notebook: dict[str, Any] | None) -> list[str]:
    lines = ["| | five folds pooled | mean of the seeds | fold 1 alone | interval narrower by | notebook, fold 1, last epoch |"]
    lines.append("|---" * 6 + "|")
    pooled = [_out_of_fold(folder, seed) for seed in seeds]
    single = _out_of_fold(folder, seeds[0], 1)
    last = None
    if notebook:
        scores = Scores(
            np.asarray(notebook["labels"]), np.asarray(notebook["probabilities"][-1]), np.arange(len(notebook["labels"]))
        )
        last = Evaluation(ScoredModel(scores, Threshold(None, 0.9, "", "none"), None), CLASSES, "malignant")
    for name in (*LIMITS, *OPERATING):
        first, alone = pooled[0].estimate(name), single.estimate(name)
        values = [value for value in (each.estimate(name).value for each in pooled) if value is not None]
        other = last.estimate(name) if last and name not in OPERATING else None
        cells = [
            f"{first:.3f}",
            f"{np.mean(values):.3f}",
            f"{alone:.3f}",
            f"{_width(alone) / _width(first):.1f}x" if first.low else "",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{other.value:.3f}' if other and other.value is not None else ''} |")
    return lines


def _width(estimate: Estimate) -> float:
    return (estimate.high or 0) - (estimate.low or 0)


def _costs(found: dict[str, Any], seeds: Sequence[int]) -> list[str]:
    parts = [[found[f"{seed}-fold-{fold}"] for fold in FOLDS] for seed in seeds]
    walls = [sum(part["wall_seconds"] for part in of_seed) for of_seed in parts]
    single = [of_seed[0]["wall_seconds"] for of_seed in parts]
    memory = max(part["peak_memory_mb"] for of_seed in parts for part in of_seed)
    rows = {
        "one fold's model, wall time": f"{np.mean(single):,.0f} s",
        "five, one after the other": f"{np.mean(walls):,.0f} s ({np.mean(walls) / np.mean(single):.1f} times one)",
        "combining them": f"{np.mean([found[f'{seed}-file']['seconds'] for seed in seeds]):,.1f} s",
        "peak memory": f"{memory:,.0f} MB",
        "the file": f"{found[f'{seeds[0]}-file']['file_mb']:.1f} MB, {found[f'{seeds[0]}-file']['combined']}",
    }
    if "notebook" in found:
        rows["notebook, wall time"] = f"{found['notebook']['seconds']:,.0f} s"
    return ["| cost | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _elsewhere_table(found: dict[str, Any], seeds: Sequence[int]) -> list[str]:
    lines = [
        "| malignant AUC elsewhere | the file | against benign | average of weights | against benign | a fold's model, mean |",
        "|---" * 6 + "|",
    ]
    for place in found[f"{seeds[0]}-file"]["elsewhere"]:
        sets = [found[f"{seed}-file"]["elsewhere"][place] for seed in seeds]
        average = [{**one, "file": one["average"]} for one in sets]
        each = [_auc({**one, "file": fold}).value for one in sets for fold in one["folds"]]
        cells = [
            f"{values[0]:.3f}" + (f"; seeds {', '.join(f'{v.value:.3f}' for v in values)}" if len(values) > 1 else "")
            for values in ([_auc(one, benign_only=only) for one in of] for of in (sets, average) for only in (False, True))
        ]
        lines.append(f"| {place} | {' | '.join(cells)} | {np.mean([value for value in each if value is not None]):.3f} |")
    return lines


def _auc(one: dict[str, Any], *, benign_only: bool = False) -> Estimate:
    labels, answers, groups = np.asarray(one["labels"]), np.asarray(one["file"], float), np.asarray(one["groups"])
    chosen = labels != CLASSES.index("normal") if benign_only else np.ones(len(labels), bool)
    scores = Scores(labels[chosen], answers[chosen], groups[chosen])
    return Evaluation(ScoredModel(scores, Threshold(None, 0.9, "", "none"), None), CLASSES, "malignant").estimate("malignant.auc")


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
