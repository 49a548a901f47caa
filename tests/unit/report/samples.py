"""A run's documents, made by hand for the report's tests: a rejected or approved challenger against a champion."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from bcc_ops.config import RetrainingConfig
from bcc_ops.runs.documents import (
    FOLDS,
    Calibration,
    ChampionDocument,
    ChampionMove,
    ChecksDocument,
    ClassEvaluation,
    Comparison,
    ConfigDocument,
    Document,
    DriftFinding,
    EpochRow,
    Estimate,
    EvaluationDocument,
    EvaluationWithout,
    ExternalEvaluation,
    FileCheck,
    FoldDocument,
    FoldSummary,
    FollowedShortcut,
    GateDocument,
    IgnoredKeys,
    ImageGroup,
    LeftOutImage,
    ModelDocument,
    ModelEvaluation,
    OperatingPoint,
    PromotionDocument,
    Reference,
    RefusedImage,
    ReliabilityBin,
    RuleResult,
    RunHandle,
    ShortcutFinding,
    SliceEvaluation,
    SnapshotChange,
    SnapshotDocument,
    SplitDocument,
    TrainingDocument,
)
from bcc_ops.runs.epochs import history_csv
from bcc_ops.runs.history import RunSummary
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths, fold_file
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import write_answers, write_predictions

AS_OF = datetime(2026, 11, 22, 2, 0, tzinfo=timezone.utc)
RUN_ID = "scheduled__2026-11-22T02:00:00+00:00"
CLASSES = ("benign", "malignant", "normal")
PATHS = RunPaths.of("artifacts", AS_OF, RUN_ID)


def reference(name: str) -> Reference:
    return Reference(key=PATHS.document(name), sha256=hashlib.sha256(name.encode()).hexdigest())


def around(value: float, half: float = 0.05) -> Estimate:
    return Estimate(value=value, low=value - half, high=min(1.0, value + half))


COMPARED_SLICE: dict[str, Any] = {
    "compared": 74,
    "compared_positive_groups": 22,
    "champion_sensitivity": around(0.84, 0.09),
    "champion_specificity": around(0.66, 0.1),
    "differences": {
        "malignant_sensitivity": around(0.01, 0.06),
        "malignant_sensitivity_at_operating_point": around(0.02, 0.07),
        "malignant_specificity_at_operating_point": around(0.04, 0.08),
    },
}


def config_document(run_id: str = RUN_ID, **given: Any) -> ConfigDocument:
    config = RetrainingConfig.resolve(given)
    return ConfigDocument(
        run_id=run_id,
        run_kind="nightly",
        config=config,
        origins=config.origins(),
        digest="c" * 64,
    )


def snapshot_document(**changes: Any) -> SnapshotDocument:
    fields: dict[str, Any] = {
        "bucket": "bucket",
        "prefix": "images",
        "as_of": AS_OF,
        "run_id": RUN_ID,
        "run_kind": "nightly",
        "versioned": True,
        "as_of_source": "versions",
        "classes": CLASSES,
        "positive_class": "malignant",
        "counts": {"benign": 347, "malignant": 168, "normal": 108},
        "digest": "d" * 64,
        "previous_run": "20261121T020000Z__scheduled__2026-11-21T02-00-00-00-00-1a2b3c4d",
        "change": SnapshotChange(
            added=12,
            changed=1,
            removed=0,
            examples={"added": ("images/benign/benign (348).png",), "changed": ("images/normal/normal (3).png",), "removed": ()},
        ),
        "ignored": (IgnoredKeys(reason="matches *_mask*", count=623, examples=("images/benign/benign (1)_mask.png",)),),
        "images": reference("images.parquet"),
    }
    return SnapshotDocument(**{**fields, **changes})


def checks_document(**changes: Any) -> ChecksDocument:
    fields: dict[str, Any] = {
        "snapshot_digest": "d" * 64,
        "checked": 623,
        "usable": {"benign": 343, "malignant": 166, "normal": 108},
        "synthetic": 0,
        "converted": {"RGBA": 17, "L": 4},
        "refused": (
            RefusedImage(key="images/benign/benign (12).png", reason="damaged", detail="image file is truncated"),
            RefusedImage(key="images/benign/benign (99).png", reason="too small", detail="41 x 38 px, smallest side 64"),
        ),
        "groups": (
            ImageGroup(
                group="g1",
                keys=("images/benign/benign (4).png", "images/benign/benign (5).png"),
                labels=("benign",),
                how=("pixels",),
            ),
        ),
        "conflicts": (
            ImageGroup(
                group="g2",
                keys=("images/benign/benign (7).png", "images/malignant/malignant (8).png"),
                labels=("benign", "malignant"),
                how=("bytes",),
            ),
        ),
        "thresholds": {"min_side": 64, "hash_distance": 8},
        "drift": (
            drift("all", "brightness", 0.11, 0.31, False),
            drift("benign", "brightness", 0.14, 0.21, False),
            drift("malignant", "contrast", 0.46, 0.0004, True),
            drift("normal", "width", 0.2, 0.09, False),
        ),
        "warnings": ("malignant: the contrast of the new images differs from the earlier ones",),
        "shortcuts": (
            ShortcutFinding(properties="size and aspect", label="benign", auc=around(0.58), warning=False),
            ShortcutFinding(properties="size and aspect", label="malignant", auc=around(0.72), warning=True),
            ShortcutFinding(properties="size and aspect", label="normal", auc=Estimate.missing("4 images"), warning=False),
            *(
                ShortcutFinding(properties="file type", label=label, auc=Estimate.missing("it does not differ"), warning=False)
                for label in CLASSES
            ),
        ),
        "contents": reference("contents.parquet"),
    }
    return ChecksDocument(**{**fields, **changes})


def drift(label: str, quantity: str, statistic: float, p_value: float, warning: bool) -> DriftFinding:
    return DriftFinding(
        label=label,
        quantity=quantity,
        statistic=statistic,
        p_value=p_value,
        images_before=611,
        images_new=12,
        warning=warning,
        sentence=f"{label}: the {quantity} of 12 new images {'differs from' if warning else 'is like'} that of 611 earlier ones",
    )


def split_document(**changes: Any) -> SplitDocument:
    fields: dict[str, Any] = {
        "classes": CLASSES,
        "counts": {
            1: {"benign": 69, "malignant": 33, "normal": 22},
            2: {"benign": 69, "malignant": 33, "normal": 21},
            3: {"benign": 68, "malignant": 34, "normal": 22},
            4: {"benign": 69, "malignant": 33, "normal": 22},
            5: {"benign": 68, "malignant": 33, "normal": 21},
        },
        "weights": {"benign": 0.6, "malignant": 1.236, "normal": 1.913},
        "grouping": "near-duplicate group",
        "salt": "",
        "carried_forward": 605,
        "previous_run": "20261121T020000Z__x",
        "left_out": (LeftOutImage(key="images/normal/normal (9).png", reason="near-duplicate of images in folds 1 and 3"),),
        "held_out_digest": "v" * 64,
        "table": reference("split.parquet"),
    }
    return SplitDocument(**{**fields, **changes})


def epochs(count: int = 12, folds: int = 5) -> tuple[EpochRow, ...]:
    """`count` epochs of each of the first `folds` models."""

    def row(fold: int, epoch: int) -> EpochRow:
        gain = 1 - 0.78**epoch
        luck = 0.02 * (fold - 3)
        return EpochRow(
            fold=fold,
            epoch=epoch,
            loss=1.1 - 0.75 * gain,
            accuracy=0.5 + 0.45 * gain,
            held_out_loss=1.05 - 0.55 * gain - luck + 0.004 * max(0, epoch - 8) ** 2,
            held_out_accuracy=0.52 + 0.34 * gain + luck - 0.004 * max(0, epoch - 8),
            held_out_balanced_accuracy=0.48 + 0.36 * gain + luck - 0.003 * max(0, epoch - 8),
            learning_rate=0.0005 * (1 - epoch / 20),
            seconds=41.5,
            images_per_second=10.1,
        )

    return tuple(row(fold, epoch) for fold in FOLDS[:folds] for epoch in range(1, count + 1))


def histories(count: int = 12, folds: int = 5) -> dict[str, bytes]:
    """The history of each fold's model, by file name."""
    rows = epochs(count, folds)
    return {fold_file(fold, "csv"): history_csv([row for row in rows if row.fold == fold]) for fold in FOLDS[:folds]}


def fold_summary(fold: int, **changes: Any) -> FoldSummary:
    held_out = sum(split_document().counts[fold].values())
    fields: dict[str, Any] = {
        "fold": fold,
        "images": 617 - held_out,
        "held_out": held_out,
        "epochs": 12,
        "seconds": 498.0,
        "resumed_after_epochs": (5,) if fold == 2 else (),
        "host": "worker-1",
        "model": reference(f"fold-{fold}.h5"),
    }
    return FoldSummary(**{**fields, **changes})


TRAINED_AS: dict[str, Any] = {
    "preset": "transfer",
    "architecture": "efficientnet_lite0",
    "weights": "imagenet",
    "classes": CLASSES,
    "image_size": 256,
    "preprocessing": "raw 0-255 RGB, 256 x 256, antialiased bilinear",
    "parameters": 3_417_035,
    "seed": 20261122,
    "deterministic": True,
    "determinism_note": None,
    "mixed_precision": False,
    "xla": "off",
    "versions": {"python": "3.11.2", "tensorflow": "2.21.0", "keras": "3.13.1"},
    "devices": ("CPU: 2 cores",),
    "host": "worker-1",
    "snapshot_digest": "d" * 64,
    "config_digest": "c" * 64,
    "synthetic": False,
}
"""What the documents of a fold's model and of the file made from all of them have in common."""


def fold_document(fold: int, **changes: Any) -> FoldDocument:
    fields: dict[str, Any] = {
        **TRAINED_AS,
        "fold": fold,
        "images": 493,
        "epochs": 12,
        "resumed_after_epochs": (),
        "seconds": 498.0,
        "seconds_per_epoch": 41.5,
        "images_per_second": 12.0,
        "peak_memory_mb": 2210.0,
        "split": reference("split.json"),
        "history": reference(f"fold-{fold}.csv"),
        "answers": reference(f"fold-{fold}.parquet"),
        "model": reference(f"fold-{fold}.h5"),
    }
    return FoldDocument(**{**fields, **changes})


def training_document(**changes: Any) -> TrainingDocument:
    fields: dict[str, Any] = {
        **TRAINED_AS,
        "folds": tuple(fold_summary(fold) for fold in FOLDS),
        "images": 617,
        "combined": "average of the weights of 5 models",
        "answers": reference("out_of_fold.parquet"),
        "epochs": 12,
        "seconds": 2490.0,
        "peak_memory_mb": 2210.0,
        "model": reference("model.h5"),
    }
    return TrainingDocument(**{**fields, **changes})


def predictions(images: int = 124, seed: int = 7, sharpness: float = 2.2) -> dict[str, list[Any]]:
    """Columns of predictions.parquet, drawn so that the model is right most of the time."""
    random = np.random.default_rng(seed)
    truth = random.choice(3, size=images, p=[0.56, 0.27, 0.17])
    columns: dict[str, list[Any]] = {
        "key": [f"images/{CLASSES[label]}/{CLASSES[label]} ({index}).png" for index, label in enumerate(truth)],
        "label": [CLASSES[label] for label in truth],
        "group": [f"g{index // 2 if index < 20 else index}" for index in range(images)],
    }
    for model, strength in (("challenger", sharpness), ("champion", sharpness - 0.5)):
        logits = random.normal(size=(images, 3))
        logits[np.arange(images), truth] += strength
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for column, name in enumerate(CLASSES):
            columns[f"{model}_{name}"] = [float(value) for value in probabilities[:, column]]
    return columns


def out_of_fold_parquet(columns: dict[str, list[Any]]) -> bytes:
    """The challenger's answers among these predictions, as the folds' models gave them."""
    rows = [
        SplitRow(key, hashlib.sha256(key.encode()).hexdigest(), label, group, FOLDS[place % len(FOLDS)])
        for place, (key, label, group) in enumerate(zip(columns["key"], columns["label"], columns["group"]))
    ]
    probabilities = np.array([columns[f"challenger_{name}"] for name in CLASSES]).T
    return write_answers(rows, CLASSES, probabilities)


def predictions_parquet(columns: dict[str, list[Any]]) -> bytes:
    models = {model: {name: columns[f"{model}_{name}"] for name in CLASSES} for model in ("challenger", "champion")}
    return write_predictions(columns["key"], columns["label"], columns["group"], models)


def model_evaluation(columns: dict[str, list[Any]], model: str = "challenger", shift: float = 0.0) -> ModelEvaluation:
    probabilities = np.array([columns[f"{model}_{name}"] for name in CLASSES]).T
    truth = np.array([CLASSES.index(label) for label in columns["label"]])
    answer = probabilities.argmax(axis=1)
    matrix = np.zeros((3, 3), dtype=int)
    np.add.at(matrix, (truth, answer), 1)
    per_class = {
        name: ClassEvaluation(
            support=int(matrix[index].sum()),
            sensitivity=around(matrix[index, index] / matrix[index].sum()),
            specificity=around(0.9 + shift),
            precision=around(matrix[index, index] / max(1, matrix[:, index].sum())),
            f1=around(0.8 + shift),
            auc=around(0.93 + shift, 0.03),
        )
        for index, name in enumerate(CLASSES)
    }
    confidence = probabilities.max(axis=1)
    order = np.array_split(np.argsort(confidence), 8)
    bins = tuple(
        ReliabilityBin(
            images=len(part), confidence=float(confidence[part].mean()), accuracy=float((answer == truth)[part].mean())
        )
        for part in order
    )
    balanced = float(np.mean([metrics.sensitivity.value for metrics in per_class.values()]))
    return ModelEvaluation(
        images=len(truth),
        groups=len(set(columns["group"])),
        loss=around(0.52 - shift, 0.08),
        accuracy=around(float((answer == truth).mean())),
        balanced_accuracy=around(balanced),
        macro_f1=around(0.81 + shift),
        macro_auc=around(0.93 + shift, 0.03),
        per_class=per_class,
        operating_point=OperatingPoint(
            threshold=0.31,
            wanted_sensitivity=0.9,
            chosen_on="all out-of-fold answers: 166 positive and 451 other images",
            sensitivity=around(0.88 + shift),
            specificity=around(0.83 + shift),
        ),
        calibration=Calibration(
            slope=around(0.8, 0.1),
            error=Estimate(value=0.07),
            brier=around(0.31, 0.04),
            temperature=1.2,
            slope_scaled=around(1.0, 0.1),
            error_scaled=Estimate(value=0.05),
            bins=bins,
        ),
        confusion_matrix=tuple(tuple(int(n) for n in row) for row in matrix),
    )


def comparison_with(version: str, columns: dict[str, list[Any]], days: int = 7, **changes: Any) -> Comparison:
    fields: dict[str, Any] = {
        "champion_version": version,
        "champion_as_of": AS_OF - timedelta(days=days),
        "champion_synthetic": False,
        "left_out": {"near-duplicate of what the version was trained on": 4},
        "recorded": 112,
        "asked": 8,
        "challenger": model_evaluation(columns),
        "champion": model_evaluation(columns, "champion", -0.03),
        "differences": {
            "balanced_accuracy": Estimate(value=0.031, low=-0.012, high=0.079),
            "macro_auc": Estimate(value=0.024, low=0.004, high=0.047),
            "accuracy": Estimate(value=0.028, low=-0.02, high=0.071),
            "malignant_sensitivity": Estimate(value=-0.061, low=-0.118, high=-0.009),
            "macro_f1": Estimate.missing("a class has no image among those compared"),
        },
        "positive_groups": 31,
        "problem": None,
    }
    return Comparison(**{**fields, **changes})


def evaluation_document(columns: dict[str, list[Any]] | None = None, champion: bool = True, **changes: Any) -> EvaluationDocument:
    columns = columns or predictions()
    challenger = model_evaluation(columns)
    comparison = comparison_with("20261115T020000Z-3f9c2a1b", columns)
    fields: dict[str, Any] = {
        "classes": CLASSES,
        "positive_class": "malignant",
        "as_of": AS_OF,
        "synthetic": False,
        "held_out_digest": "v" * 64,
        "challenger": challenger,
        "comparison": comparison if champion else None,
        "anchor": None,
        "shortcuts": (FollowedShortcut(properties="size and aspect", correlation=around(0.31, 0.15), warning=True),),
        "slices": (
            SliceEvaluation(
                by="site",
                value="A",
                images=80,
                groups=61,
                positive_groups=24,
                balanced_accuracy=around(0.82),
                positive_sensitivity=around(0.86, 0.09),
                positive_specificity=around(0.7, 0.1),
                **(COMPARED_SLICE if champion else {}),
            ),
            SliceEvaluation(
                by="site",
                value="B",
                images=44,
                balanced_accuracy=around(0.71),
                positive_sensitivity=Estimate.missing("no such image"),
            ),
        ),
        "slices_unavailable": None,
        "without": (
            EvaluationWithout(
                finding="axilla",
                images=31,
                balanced_accuracy=around(0.84),
                macro_auc=around(0.941, 0.02),
                positive_auc=around(0.957, 0.02),
            ),
        ),
        "grouping": "near-duplicate group",
        "model": reference("model.h5"),
        "predictions": reference("predictions.parquet"),
    }
    return EvaluationDocument(**{**fields, **changes})


def whole_evaluation(columns: dict[str, list[Any]] | None = None, **changes: Any) -> EvaluationDocument:
    """An evaluation with everything that one may have: an anchor, external images and the check of the file."""
    columns = columns or predictions()
    anchor = comparison_with("20261001T020000Z-77aa88bb", columns, days=52, recorded=90, asked=30, left_out={})
    return evaluation_document(
        columns, **{"anchor": anchor, "external": (external_evaluation(),), "file_check": file_check(), **changes}
    )


def external_evaluation(**changes: Any) -> ExternalEvaluation:
    columns = predictions(60, seed=11)
    fields: dict[str, Any] = {
        "name": "elsewhere",
        "prefix": "elsewhere",
        "note": "60 images in 60 near-duplicate groups under elsewhere/ (20 benign, 20 malignant, 20 normal).",
        "challenger": model_evaluation(columns),
        "champion": model_evaluation(columns, "champion", -0.02),
        "differences": {"malignant_auc": Estimate(value=0.012, low=-0.021, high=0.044)},
        "positive_groups": 30,
        "problem": None,
    }
    return ExternalEvaluation(**{**fields, **changes})


def file_check(**changes: Any) -> FileCheck:
    fields: dict[str, Any] = {
        "images": 60,
        "external": True,
        "file_loss": 0.431,
        "folds_loss": 0.419,
        "difference": Estimate(value=0.012, low=-0.004, high=0.028),
        "agreement": 0.967,
        "passed": True,
    }
    return FileCheck(**{**fields, **changes})


def gate_document(verdict: str = "rejected", **changes: Any) -> GateDocument:
    rejected = verdict == "rejected"
    fields: dict[str, Any] = {
        "verdict": verdict,
        "reasons": (
            ("Malignant sensitivity fell by 0.061, with confidence more than the margin of 0.05.",)
            if rejected
            else ("Every rule holds.", "Balanced accuracy rose by 0.031.")
        ),
        "rules": (
            rule("min_balanced_accuracy", True, 0.79, 0.7, "Balanced accuracy is 0.790, at least 0.700 is asked for."),
            rule("min_macro_auc", True, 0.93, 0.85, "Macro AUC is 0.930, at least 0.850 is asked for."),
            rule(
                "malignant_sensitivity_not_inferior",
                not rejected,
                -0.118,
                -0.05,
                "Malignant sensitivity may lie 0.118 below the champion's; 0.050 is allowed.",
            ),
            RuleResult(
                rule="max_holdout_reuse",
                passed=True,
                applies=False,
                value=4,
                threshold=30,
                sentence="Each held-out image decided 4 times on average; from 30 on they count as overused.",
            ),
        ),
        "as_of": AS_OF,
        "synthetic": False,
        "champion_version": "20261115T020000Z-3f9c2a1b",
        "champion_etag": "e" * 32,
        "held_out_digest": "v" * 64,
        "holdout_reuse": 4,
        "evaluation": reference("evaluation.json"),
    }
    return GateDocument(**{**fields, **changes})


def rule(name: str, passed: bool, metric: float, threshold: float, sentence: str) -> RuleResult:
    return RuleResult(rule=name, passed=passed, applies=True, value=metric, threshold=threshold, sentence=sentence)


def promotion_document(**changes: Any) -> PromotionDocument:
    fields: dict[str, Any] = {
        "version": "20261122T020000Z-9a8b7c6d",
        "model": reference("model.h5"),
        "promoted": True,
        "reason": "the gate approved it",
        "previous_champion": "20261115T020000Z-3f9c2a1b",
        "approved_by": "the gate",
        "at": AS_OF + timedelta(minutes=31),
    }
    return PromotionDocument(**{**fields, **changes})


def model_document(version: str = "20261115T020000Z-3f9c2a1b", **changes: Any) -> ModelDocument:
    fields: dict[str, Any] = {
        "version": version,
        "classes": CLASSES,
        "positive_class": "malignant",
        "image_size": 256,
        "preprocessing": "raw 0-255 RGB",
        "architecture": "efficientnet_lite0",
        "operating_point": model_evaluation(predictions()).operating_point,
        "temperature": 1.2,
        "synthetic": False,
        "as_of": AS_OF - timedelta(days=7),
        "run": "20261115T020000Z__scheduled__x",
        "snapshot_digest": "d" * 64,
        "folds": FOLDS,
        "split": reference("split.parquet"),
        "answers": reference("out_of_fold.parquet"),
        "model": reference("model.h5"),
        "evaluation": reference("evaluation.json"),
    }
    return ModelDocument(**{**fields, **changes})


def champion_document(**changes: Any) -> ChampionDocument:
    fields: dict[str, Any] = {
        "version": "20261115T020000Z-3f9c2a1b",
        "sha256": "a" * 64,
        "as_of": AS_OF - timedelta(days=7),
        "synthetic": False,
        "run": "20261115T020000Z__scheduled__x",
        "at": AS_OF - timedelta(days=7) + timedelta(minutes=40),
        "by": "the gate",
        "reason": "approved",
        "history": (
            ChampionMove(
                version="20261101T020000Z-11112222",
                sha256="b" * 64,
                as_of=AS_OF - timedelta(days=21),
                synthetic=False,
                run="20261101T020000Z__scheduled__x",
                at=AS_OF - timedelta(days=21),
                by="ada",
                reason="first model",
            ),
        ),
    }
    return ChampionDocument(**{**fields, **changes})


def whole_run(verdict: str = "rejected", champion: bool = True, images: int = 124, **changes: Any) -> dict[str, bytes]:
    """Every document of a run, by file name, as it is in the bucket. `changes` replace documents; None removes one."""
    columns = predictions(images)
    documents: dict[str, Document | bytes | None] = {
        "config.json": config_document(epochs=12),
        "snapshot.json": snapshot_document(),
        "checks.json": checks_document(),
        "split.json": split_document(),
        "training.json": training_document(),
        **histories(),
        "evaluation.json": evaluation_document(columns, champion),
        "out_of_fold.parquet": out_of_fold_parquet(columns),
        "predictions.parquet": predictions_parquet(columns),
        "gate.json": gate_document(verdict),
        "promotion.json": None if verdict == "rejected" else promotion_document(),
    }
    documents.update({name.replace("__", "."): document for name, document in changes.items()})
    return {
        name: document.to_json() if isinstance(document, Document) else document
        for name, document in documents.items()
        if document is not None
    }


def run_handle(store: ObjectStore, config: ConfigDocument, snapshot: SnapshotDocument) -> dict[str, str]:
    """Store the two documents that every task loads, and return the handle by which it does."""
    saved = {name: store.save(PATHS.document(f"{name}.json"), one) for name, one in (("config", config), ("snapshot", snapshot))}
    handle = RunHandle(folder=PATHS.folder_name, config=saved["config"].sha256, snapshot=saved["snapshot"].sha256)
    return handle.to_xcom()


PLUGINS = Path(__file__).resolve().parents[3] / "plugins"


def loaded_by(module: str) -> set[str]:
    """What a fresh interpreter has loaded after an import."""
    code = f"import sys, {module}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", code], cwd=PLUGINS, check=True, capture_output=True, text=True).stdout.split()
    )


def summaries(count: int) -> list[RunSummary]:
    return [
        RunSummary(
            f"f{day}",
            AS_OF.replace(day=day),
            verdict="approved" if day % 3 else "rejected",
            macro_auc=around(0.9),
        )
        for day in range(1, count + 1)
    ]
