"""A run's parameters (`RetrainingConfig`) and the place it runs in (`Settings`).

Every parameter is declared once, with its title, sentence, section, bounds and default; the trigger form, the check of what
a run was given and `config.json` are all read from here. A preset is a set of defaults. A deployment's file of parameters
(`DeploymentParameters`) comes before the preset: nightly, event and backfill runs get their parameters from it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from difflib import get_close_matches
from functools import cached_property
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bcc_ops.exceptions import ConfigError

NOTEBOOK: dict[str, Any] = {
    "folds": 1,
    "architecture": "cnn",
    "weights": "none",
    "image_size": 500,
    "keep_aspect": False,
    "standardize": False,
    "batch_size": 32,
    "epochs": 20,
    "learning_rate": 0.001,
    "warmup_epochs": 0,
    "cosine_decay": False,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "dropout": 0.5,
    "ema": False,
    "flip": "horizontal_and_vertical",
    "rotation": 0.2,
    "zoom": 0.2,
    "brightness": 0.2,
    "contrast": 0.0,
    "gamma": 0.0,
    "stretch": 0.0,
    "shift": 0.0,
    "blur": 0.0,
    "speckle": 0.0,
    "test_time_flip": False,
}
"""The notebook's recipe. Where it is silent (learning rate, dropout), Keras' own defaults and examples."""

PRESETS: dict[str, dict[str, Any]] = {"transfer": {}, "notebook": NOTEBOOK}
"""What a preset changes in the defaults below, which are those of `transfer`."""

Origin = Literal["given", "deployment", "preset", "default"]
"""Where a parameter's value came from: the form, the deployment's file, the preset, or the declarations below."""

LARGEST_IMAGE = 50_000_000
"""The most pixels of an image, whatever a run's parameters say. Pillow itself refuses more than 89.5 million."""

_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
FINDINGS: dict[str, str] = {
    "axilla": "text says that the image shows the armpit",
    "position": "text names a side, a quadrant or an hour",
    "device": "text names the scanner or one of its settings",
    "measurement": "text gives a length or a volume",
    "unknown_text": "text of unknown meaning, which may be a name",
    "unread_text": "letters that cannot be read, or are cut off at the edge",
    "calipers": "measuring marks",
    "doppler": "Doppler colour",
    "two_views": "two views in one image",
    "not_ultrasound": "white like paper, or coloured like a photograph",
    "nearly_blank": "almost nothing is visible",
}
"""What the image checks may find in an image besides a scan of the breast."""

FINDING_ACTIONS = ("ignore", "report", "exclude_from_training", "exclude")
"""What a run does about a finding, the strictest last. `exclude`: from training and from the evidence."""

NO_FINDINGS = ", ".join(f"{name}=ignore" for name in FINDINGS)
"""The value of `content_findings` that ignores every finding."""

_DATA, _CHECKS, _SPLIT = "Images", "Checks", "Split"
_MODEL, _FIT, _AUGMENTATION = "Model", "Training", "Augmentation"
_EVALUATION, _GATE, _PROMOTION = "Evaluation", "Gate", "Promotion"


def _parameter(default: Any, title: str, description: str, section: str, **bounds: Any) -> Any:
    return Field(default, title=title, description=description, json_schema_extra={"section": section}, **bounds)


class ExternalSet(NamedTuple):
    """Labelled images from elsewhere: the set's name, and its prefix in the bucket, without a slash at either end."""

    name: str
    prefix: str


def _read_external_sets(text: str) -> tuple[ExternalSet, ...]:
    """Read `external_prefixes`; a prefix without a name is named after its last folder.

    Raises:
        ValueError: a name is invalid, or two sets have the same name or overlap.
    """
    found: list[ExternalSet] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        given, equals, prefix = item.partition("=")
        bare = (prefix if equals else given).strip().strip("/")
        name = given.strip() if equals else bare.rpartition("/")[2]
        if not bare:
            raise ValueError(f"{item!r} names no prefix: write PREFIX, or NAME=PREFIX")
        if not _SET_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name a set: write NAME=PREFIX, with 1 to 40 letters, digits, '.', '_' or '-' as the name"
            )
        for other in found:
            if other.name.lower() == name.lower():
                raise ValueError(f"two sets are called {name!r}: give one of them another name, NAME=PREFIX")
            if _overlap(bare, other.prefix):
                raise ValueError(f"the sets {other.name!r} and {name!r} overlap: each needs a prefix of its own")
        found.append(ExternalSet(name, bare))
    return tuple(found)


def _overlap(one: str, other: str) -> bool:
    """Tell whether one of two prefixes (without a slash at the end) is inside the other, or the same."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


class RetrainingConfig(BaseModel):
    """The parameters of one run, resolved: nothing is left to a default that a later version may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Which images
    as_of: datetime | None = _parameter(
        None, "As of", "Train on the images as they were at this moment. Empty: now, or a backfill's own date.", _DATA
    )
    min_new_images: int = _parameter(
        1, "New images needed", "How many images must be new, changed or gone before a nightly run starts.", _DATA, ge=1
    )
    settle_seconds: int = _parameter(
        60, "Settle time (s)", "The listing must not change for this long, so that uploads are complete.", _DATA, ge=0, le=3600
    )
    wait_for_images_minutes: int = _parameter(
        360, "Wait for images (min)", "How long a nightly run waits for new images before it skips.", _DATA, ge=0, le=1440
    )
    max_removed_fraction: float = _parameter(
        0.5,
        "Removed at most",
        "The run fails if a larger part of the previous run's images is gone: an upload or a deletion may have gone wrong.",
        _DATA,
        ge=0,
        le=1,
    )
    ignore_patterns: str = _parameter(
        "*_mask*", "File names to ignore", "Comma-separated patterns of file names that are not images to train on.", _DATA
    )
    max_file_mb: int = _parameter(
        64,
        "Largest file (MB)",
        "Larger objects are not read; they count as ignored.",
        _DATA,
        ge=1,
        le=1024,
    )
    external_prefixes: str = _parameter(
        "",
        "External test sets",
        "Comma-separated prefixes with one folder per class each, or NAME=PREFIX. Never trained on; reported in each run, and "
        "the gate compares the models on each.",
        _DATA,
    )

    require_metadata: bool = _parameter(
        False,
        "Metadata required",
        "The run fails without a readable metadata table, and if neither the table nor the key names an image's patient.",
        _DATA,
    )

    # Checks
    min_side: int = _parameter(64, "Smallest side (px)", "Images with a shorter side are refused.", _CHECKS, ge=8, le=4096)
    max_pixels: int = _parameter(
        16_000_000,
        "Most pixels",
        "Images whose header states more are refused before they are decoded. Ultrasound images have one or two million.",
        _CHECKS,
        ge=10_000,
        le=LARGEST_IMAGE,
    )
    max_refused_fraction: float = _parameter(
        0.5, "Refused at most", "The run fails if a larger part of the images is refused.", _CHECKS, ge=0, le=1
    )
    hash_distance: int = _parameter(
        7,
        "Near-duplicate hash distance",
        "Images whose perceptual hashes (64 bits) are this close are compared by their pixels.",
        _CHECKS,
        ge=0,
        le=11,
    )
    min_similarity: float = _parameter(
        0.5,
        "Near-duplicate similarity",
        "Two images are near-duplicates if their aligned textures correlate this much.",
        _CHECKS,
        ge=0.3,
        le=1,
    )
    min_similarity_by_hash: float = _parameter(
        0.25,
        "Near-duplicate similarity by hash",
        "The same for images with close hashes: of two signs, each may be weaker.",
        _CHECKS,
        ge=0.1,
        le=1,
    )

    content_findings: str = _parameter(
        "not_ultrasound=exclude, nearly_blank=exclude",
        "Content findings",
        "Comma-separated finding=action: ignore, report, exclude_from_training, exclude. Findings not listed are reported: "
        f"{', '.join(FINDINGS)}.",
        _CHECKS,
    )

    # Split
    folds: int = _parameter(
        5,
        "Fold models",
        "How many of the five folds are held out in turn, one model each. 5: evidence from every image. 1: a quick look.",
        _SPLIT,
        ge=1,
        le=5,
    )
    split_salt: str = _parameter("", "Split salt", "Another salt draws other folds for groups without one.", _SPLIT)
    patient_pattern: str = _parameter(
        "",
        "Patient pattern",
        "Regular expression whose first group captures the patient id in the key; a patient's images stay together.",
        _SPLIT,
    )

    # Model and training
    preset: Literal["transfer", "notebook"] = _parameter(
        "transfer", "Preset", "transfer: a fine-tuned pretrained backbone. notebook: the original recipe.", _MODEL
    )
    architecture: str = _parameter(
        "efficientnet_lite0",
        "Architecture",
        "cnn, efficientnet_lite0, _lite1 or _lite2, or a keras.applications model by name.",
        _MODEL,
    )
    weights: str = _parameter("imagenet", "Initial weights", "imagenet, none, a file on the worker, or an s3:// address.", _MODEL)
    frozen_part: float = _parameter(
        0.3,
        "Frozen part",
        "Fraction of a pretrained backbone's layers, from the input on, that is not trained.",
        _MODEL,
        ge=0,
        le=1,
    )
    image_size: int = _parameter(256, "Image size (px)", "Side of the square that the network sees.", _MODEL, ge=32, le=1024)
    keep_aspect: bool = _parameter(
        True,
        "Keep the aspect ratio",
        "Pad images to a square with black. Off: squeeze them into it, whatever their shape.",
        _MODEL,
    )
    standardize: bool = _parameter(
        True,
        "Standardize brightness",
        "The network first turns each image gray and gives it the same mean brightness and contrast.",
        _MODEL,
    )
    batch_size: int = _parameter(16, "Batch size", "Images per step.", _FIT, ge=1, le=512)
    epochs: int = _parameter(12, "Epochs", "Passes over the images that a fold's model is trained on.", _FIT, ge=1, le=500)
    learning_rate: float = _parameter(0.0005, "Learning rate", "Adam's, at its peak.", _FIT, gt=0, le=1)
    warmup_epochs: int = _parameter(
        1, "Warm-up epochs", "Epochs over which the learning rate rises to its peak.", _FIT, ge=0, le=50
    )
    cosine_decay: bool = _parameter(True, "Cosine decay", "Let the learning rate fall along a cosine.", _FIT)
    weight_decay: float = _parameter(0.0001, "Weight decay", "Decoupled, on the kernels.", _FIT, ge=0, le=1)
    label_smoothing: float = _parameter(0.05, "Label smoothing", "0 trains on hard labels.", _FIT, ge=0, lt=1)
    dropout: float = _parameter(0.3, "Dropout", "Before the last layer.", _FIT, ge=0, lt=1)
    ema: bool = _parameter(True, "Average weights", "Evaluate and save an exponential moving average of the weights.", _FIT)
    seed: int = _parameter(20261122, "Seed", "For every random draw in training.", _FIT, ge=0, le=2**31 - 1)
    deterministic: bool = _parameter(True, "Deterministic", "The same seed gives the same metrics on the same device.", _FIT)
    mixed_precision: bool = _parameter(True, "Mixed precision", "Compute in 16 bits if the GPU can.", _FIT)
    require_gpu: bool = _parameter(False, "GPU required", "Fail at once if the worker has none.", _FIT)

    # Augmentation
    flip: Literal["none", "horizontal", "vertical", "horizontal_and_vertical"] = _parameter(
        "horizontal", "Random flip", "Directions in which images are mirrored at random.", _AUGMENTATION
    )
    rotation: float = _parameter(
        0.05, "Random rotation", "At most this fraction of a full turn, either way.", _AUGMENTATION, ge=0, le=0.5
    )
    zoom: float = _parameter(0.3, "Random zoom", "At most this much nearer or farther.", _AUGMENTATION, ge=0, lt=1)
    brightness: float = _parameter(
        0.15, "Random brightness", "At most this fraction of the full range, either way.", _AUGMENTATION, ge=0, le=1
    )
    contrast: float = _parameter(0.3, "Random contrast", "At most this factor less or more.", _AUGMENTATION, ge=0, lt=1)
    gamma: float = _parameter(
        0.5, "Random gamma", "Exponent on the brightness: at most this factor more or less.", _AUGMENTATION, ge=0, le=2
    )
    stretch: float = _parameter(0.35, "Random stretch", "At most this factor wider or higher.", _AUGMENTATION, ge=0, lt=1)
    shift: float = _parameter(
        0.15, "Random shift", "At most this fraction of the side, in any direction.", _AUGMENTATION, ge=0, le=0.5
    )
    blur: float = _parameter(
        1.5, "Random blur (px)", "Half of the images are blurred, with at most this sigma.", _AUGMENTATION, ge=0, le=10
    )
    speckle: float = _parameter(
        0.3,
        "Random speckle",
        "The other half gets grain of at most this strength (a fraction of the brightness).",
        _AUGMENTATION,
        ge=0,
        le=2,
    )

    # Evaluation
    test_time_flip: bool = _parameter(
        True,
        "Average with the mirror image",
        "The saved model averages its answers for the image and its mirror image.",
        _EVALUATION,
    )
    ensemble: bool = _parameter(
        True,
        "Keep the fold models",
        "The file averages the fold models' answers. Off: it averages their weights and is a fifth as large and slow.",
        _EVALUATION,
    )
    wanted_sensitivity: float = _parameter(
        0.9,
        "Wanted malignant sensitivity",
        "Target of the operating point, chosen on the out-of-fold answers.",
        _EVALUATION,
        gt=0,
        lt=1,
    )
    slice_pattern: str = _parameter(
        "",
        "Slice pattern",
        "Regular expression whose first group captures the subgroup in the key, like a column of the metadata.",
        _EVALUATION,
    )
    min_subgroup_images: int = _parameter(
        20, "Images of a subgroup", "Subgroups with fewer images are counted but not evaluated.", _EVALUATION, ge=5
    )

    # Gate
    min_balanced_accuracy: float = _parameter(
        0.7, "Balanced accuracy at least", "Floor, with or without a champion.", _GATE, ge=0, le=1
    )
    min_macro_auc: float = _parameter(0.85, "Macro AUC at least", "Floor, with or without a champion.", _GATE, ge=0, le=1)
    min_malignant_sensitivity: float = _parameter(
        0.7, "Malignant sensitivity at least", "Floor, at the operating point.", _GATE, ge=0, le=1
    )
    min_malignant_specificity: float = _parameter(
        0.4,
        "Malignant specificity at least",
        "Floor, at the operating point: a model must not call everything malignant.",
        _GATE,
        ge=0,
        le=1,
    )
    balanced_accuracy_margin: float = _parameter(
        0.08,
        "Balanced accuracy margin",
        "With confidence, the model must be less than this much worse than the champion. Shrinks as the evidence grows.",
        _GATE,
        ge=0,
        le=1,
    )
    sensitivity_margin: float = _parameter(
        0.08,
        "Malignant sensitivity margin",
        "Of the likeliest class. With confidence, it must be less than this much worse. Shrinks as the evidence grows.",
        _GATE,
        ge=0,
        le=1,
    )
    external_margin: float = _parameter(
        0.08,
        "External test margin",
        "With confidence, the malignant AUC on each external test set must be less than this much worse.",
        _GATE,
        ge=0,
        le=1,
    )
    min_malignant_groups: int = _parameter(
        23,
        "Malignant groups to compare on",
        "Fewer fail the comparison: not even an identical model could be told from a worse one.",
        _GATE,
        ge=1,
    )
    subgroup_malignant_groups: int = _parameter(
        0,
        "Malignant groups of a subgroup",
        "If above 0: with confidence, no subgroup with this many malignant groups may be worse than with the champion.",
        _GATE,
        ge=0,
    )
    max_holdout_reuse: int = _parameter(
        30,
        "Decisions on one held-out set",
        "From this many decisions on, the gate says that the set has been used often.",
        _GATE,
        ge=1,
    )

    # Promotion
    require_approval: bool = _parameter(False, "Ask a person", "Wait for an approval in the UI before the upload.", _PROMOTION)
    approval_timeout_minutes: int = _parameter(
        720, "Time to approve (min)", "No answer in this time is a rejection.", _PROMOTION, ge=1, le=10080
    )
    promote_backfill: bool = _parameter(
        False,
        "Backfills may promote",
        "Let a backfill move the champion, if its images are newer than the champion's.",
        _PROMOTION,
    )

    @field_validator("as_of")
    @classmethod
    def _as_of_is_utc(cls, moment: datetime | None) -> datetime | None:
        if moment is None:
            return None
        return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)

    @field_validator("patient_pattern", "slice_pattern")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str) -> str:
        if pattern:
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from None
            if compiled.groups < 1:
                raise ValueError("needs a group in parentheses around what it reads")
        return pattern

    @field_validator("external_prefixes")
    @classmethod
    def _external_sets_are_apart(cls, prefixes: str) -> str:
        _read_external_sets(prefixes)
        return prefixes

    @cached_property
    def external_sets(self) -> tuple[ExternalSet, ...]:
        """The sets of `external_prefixes`, in its order."""
        return _read_external_sets(self.external_prefixes)

    @field_validator("content_findings")
    @classmethod
    def _findings_have_actions(cls, actions: str) -> str:
        _finding_actions(actions)
        return actions

    @cached_property
    def finding_actions(self) -> dict[str, str]:
        """Every finding, and the action on it that `content_findings` asks for."""
        return {**dict.fromkeys(FINDINGS, "report"), **_finding_actions(self.content_findings)}

    @property
    def ignores_findings(self) -> bool:
        """Whether every finding is ignored, so that nothing need be looked for."""
        return set(self.finding_actions.values()) == {"ignore"}

    @cached_property
    def ignored_names(self) -> tuple[str, ...]:
        """The patterns of `ignore_patterns`, one by one."""
        return tuple(pattern.strip() for pattern in self.ignore_patterns.split(",") if pattern.strip())

    def training_parameters(self) -> dict[str, Any]:
        """Return the parameters that influence which weights training ends with; as JSON values."""
        return self.model_dump(mode="json", include=set(parameters_of_sections(_CHECKS, _SPLIT, _MODEL, _FIT, _AUGMENTATION)))

    @classmethod
    def resolve(cls, given: Mapping[str, Any], deployment: Mapping[str, Any] = MappingProxyType({})) -> RetrainingConfig:
        """Check what a run was given, and fill in the rest from the deployment, the preset and the defaults, in that order.

        Args:
            given: parameter -> value. `None` and `""` mean "not given".
            deployment: parameter -> value, from `DeploymentParameters`.

        Raises:
            ConfigError: a parameter is unknown or out of its bounds; the message names it and its bounds.
        """
        chosen = {parameter: value for parameter, value in given.items() if value is not None and value != ""}
        preset = chosen.get("preset") or deployment.get("preset") or "transfer"
        if preset not in PRESETS:
            raise ConfigError(f"preset: must be {' or '.join(PRESETS)}, got {preset!r}")
        if unknown := next((name for name in chosen if name not in cls.model_fields), None):
            raise ConfigError(f"{unknown}: there is no such parameter{nearest(unknown, [*cls.model_fields, 'instances'])}")
        try:
            return cls(**{**PRESETS[preset], **_of_the_deployment(preset, deployment), **chosen, "preset": preset})
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (given: {problem['input']!r})"
                for problem in error.errors()
            )
            raise ConfigError(problems) from None

    def origins(self, deployment: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Origin]:
        """Tell where each parameter's value came from.

        A run's form arrives filled in, so only a value that the deployment would not have brought counts as given.
        """
        applied = _of_the_deployment(self.preset, deployment)
        ordinary = RetrainingConfig.resolve({"preset": self.preset}, deployment)
        usual = {**dict(ordinary), "preset": deployment.get("preset", "transfer")}

        def origin(parameter: str) -> Origin:
            if getattr(self, parameter) != usual[parameter]:
                return "given"
            if parameter in applied or (parameter == "preset" and parameter in deployment):
                return "deployment"
            return "preset" if parameter in PRESETS[self.preset] else "default"

        return {parameter: origin(parameter) for parameter in type(self).model_fields}


def _finding_actions(text: str) -> dict[str, str]:
    actions: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        finding, _, action = (part.strip() for part in pair.partition("="))
        if finding not in FINDINGS:
            raise ValueError(f"{finding!r} is not a finding; choose from {', '.join(FINDINGS)}")
        if action not in FINDING_ACTIONS:
            raise ValueError(f"{finding}: the action must be one of {', '.join(FINDING_ACTIONS)}, not {action!r}")
        if finding in actions:
            raise ValueError(f"{finding} is named twice")
        actions[finding] = action
    return actions


def _of_the_deployment(preset: str, deployment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what applies of the deployment's parameters: its recipe is for its own preset, not for another one."""
    own = preset == deployment.get("preset", "transfer")
    return {name: value for name, value in deployment.items() if name != "preset" and (own or name not in NOTEBOOK)}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for an unknown name, "" if no known name resembles it."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


@dataclass(frozen=True)
class DeploymentFile:
    """The content of the file that `BCC_PARAMETERS` names, unchecked.

    Attributes:
        values: the content; None if the file is empty or none is named.
        repeated: names that the section `instances` has twice, of which YAML keeps the last.
    """

    values: Any = None
    repeated: frozenset[str] = frozenset()


def read_deployment_file(path: str) -> DeploymentFile:
    """Read the YAML file that `BCC_PARAMETERS` names; "" for none.

    Raises:
        ConfigError: it cannot be read, or is not YAML.
    """
    if not path:
        return DeploymentFile()
    import yaml  # type: ignore[import-untyped]

    try:
        text = Path(path).read_text(encoding="utf-8")
        values, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"BCC_PARAMETERS={path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"BCC_PARAMETERS={path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not isinstance(values.get("instances"), dict):
        return DeploymentFile(values)
    section = next(value for key, value in node.value if key.value == "instances")
    names = Counter(str(key.value) for key, _ in section.value)
    return DeploymentFile(values, frozenset(name for name, times in names.items() if times > 1))


@dataclass(frozen=True)
class DeploymentParameters:
    """The parameters that a deployment's own runs have: nightly, event and backfill runs, and the form's defaults.

    Attributes:
        values: parameter -> value, checked.
        problem: why the file cannot be used; None if it can. Reading never fails, so that the DAG is still imported and can
            show the problem; no run starts until it is solved.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @classmethod
    def read(cls, path: str) -> DeploymentParameters:
        """Read the YAML file that `BCC_PARAMETERS` names; "" for none."""
        try:
            return cls.of(read_deployment_file(path).values, f"BCC_PARAMETERS={path}")
        except ConfigError as error:
            return cls(problem=str(error))

    @classmethod
    def of(cls, values: Any, where: str) -> DeploymentParameters:
        """Check what the file has; `where` names the place in the file, for the message."""
        if values is None:
            return cls()
        try:
            if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
                raise ConfigError("must be lines of `parameter: value`")
            if "as_of" in values:
                raise ConfigError("as_of: is a parameter of one run and cannot be set for all")
            config = RetrainingConfig.resolve(values)
        except ConfigError as error:
            return cls(problem=f"{where}: {error}")
        dumped = config.model_dump(mode="json")
        return cls({name: dumped[name] for name, value in values.items() if value is not None and value != ""})

    def resolve(self, given: Mapping[str, Any]) -> RetrainingConfig:
        """Return a run's parameters.

        Raises:
            ConfigError: the deployment's file cannot be used, a parameter is wrong, `patient_pattern` is not the
                deployment's (it decides which images belong together, for all runs alike), or the run would skip the
                approval that the deployment requires.
        """
        if self.problem:
            raise ConfigError(f"{self.problem}. Correct the file; no run starts until then")
        config = RetrainingConfig.resolve(given, self.values)
        grouping = self.values.get("patient_pattern", "")
        if config.patient_pattern != grouping:
            raise ConfigError(
                f"patient_pattern: {config.patient_pattern!r} is not the deployment's, {grouping!r}. It decides which images "
                "stay together in the split, so it must be the same in all runs: set it in the file that BCC_PARAMETERS names"
            )
        if self.values.get("require_approval") and not config.require_approval:
            raise ConfigError(
                "require_approval: this deployment asks a person about every model, and a run cannot switch that off. Leave the "
                "parameter out, or change the file that BCC_PARAMETERS names"
            )
        return config


def parameters_of_sections(*sections: str) -> frozenset[str]:
    """Return the names of the parameters in these sections of the form."""
    properties = RetrainingConfig.model_json_schema()["properties"]
    return frozenset(name for name, schema in properties.items() if schema["section"] in sections)


def form_fields(
    deployment: Mapping[str, Any] = MappingProxyType({}), positive_class: str = "malignant"
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return each parameter's default and JSON schema, for the trigger form.

    Args:
        deployment: parameter -> value, from `DeploymentParameters`; these are the form's defaults.
        positive_class: what the form's texts call the class that must not be missed.

    A parameter that a preset sets is optional in the form, with no default of its own: left empty, it takes the deployment's
    or the preset's value, which its description names. `patient_pattern` is not in the form: it is the deployment's.
    """
    fields: dict[str, tuple[Any, dict[str, Any]]] = {}
    properties = RetrainingConfig.model_json_schema()["properties"]
    for parameter, schema in properties.items():
        if parameter == "patient_pattern":
            continue
        form = {name: value for name, value in schema.items() if name not in ("default", "anyOf", "const")}
        form |= {text: with_positive_class(form[text], positive_class) for text in ("title", "description")}
        default = schema.get("default")
        if "anyOf" in schema:  # "X or nothing" is how pydantic spells an optional parameter
            options = [option for option in schema["anyOf"] if option.get("type") != "null"]
            form.update(options[0])
            form["type"] = [options[0]["type"], "null"]
        if parameter in NOTEBOOK:
            form["type"] = [form.get("type", "string"), "null"]
            if "enum" in form:
                form["enum"] = [*form["enum"], None]
            own = f"{deployment[parameter]} (this deployment), " if parameter in deployment else ""
            form["description_md"] = f"{form['description']} Empty: {own}{default} (transfer), {NOTEBOOK[parameter]} (notebook)."
            default = None
        else:
            if form.get("type") == "string" and "enum" not in form:
                form["type"] = ["string", "null"]
            default = deployment.get(parameter, default)
        fields[parameter] = (default, form)
    return fields


def with_positive_class(text: str, positive_class: str) -> str:
    """Return a text or the name of a rule with the deployment's positive class in place of "malignant"."""
    return text.replace("malignant", positive_class).replace("Malignant", positive_class.capitalize())


NEEDED_BY_SAGEMAKER = ("sagemaker_role_arn", "sagemaker_image_uri", "sagemaker_instance_type")
"""The settings without which nothing can be trained on SageMaker."""

_VALUES_OF_AWS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "sagemaker_role_arn": (
            r"arn:aws[a-z-]*:iam::\d{12}:role/[A-Za-z0-9_+=,.@/-]+",
            "the ARN of a role, arn:aws:iam::<account>:role/<name>",
        ),
        "sagemaker_image_uri": (
            r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/\S{1,200}",
            "an image in Amazon ECR, <account>.dkr.ecr.<region>.amazonaws.com/<name>:<tag>",
        ),
        "sagemaker_instance_type": (r"ml\.[a-z0-9-]+\.[a-z0-9-]+", "a SageMaker instance type, such as ml.g5.xlarge"),
        "sagemaker_subnets": (
            r"subnet-[0-9a-f]{1,25}(\s*,\s*subnet-[0-9a-f]{1,25}){0,15}",
            "at most 16 comma-separated subnet ids, subnet-0a1b…",
        ),
        "sagemaker_security_groups": (
            r"sg-[0-9a-f]{1,29}(\s*,\s*sg-[0-9a-f]{1,29}){0,4}",
            "at most 5 comma-separated security group ids, sg-0a1b…",
        ),
    }
)
"""Setting -> the pattern of its value, and what that is in words."""


class Settings(BaseModel):
    """Where the pipeline runs: read from `BCC_*` environment variables, the same on every machine of a deployment.

    If the deployment's file lists several instances, each has settings of its own (`bcc_ops.instances`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field("Breast ultrasound", min_length=1, max_length=60, pattern=r"^[^\n\r]+$")
    bucket: str = "breast-images"
    images_prefix: str = "images"
    artifacts_prefix: str = "artifacts"
    models_prefix: str = "models"
    classes: tuple[str, ...] = ("benign", "malignant", "normal")
    positive_class: str = "malignant"
    cache_dir: Path = Path.home() / ".cache" / "bcc_ops"
    cache_budget_gb: float = Field(20.0, gt=0)
    aws_conn_id: str = "aws_default"
    schedule: str = "0 2 * * *"
    timezone: str = "UTC"
    parameters: str = ""
    pictures: Literal["readers", "triggerers"] = "readers"
    gpu_pool: str = "gpu"
    gpu_queue: str = ""
    gpu_limit: int = Field(0, ge=0)
    training_python: str = ""
    train_on: Literal["worker", "sagemaker"] = "worker"
    sagemaker_role_arn: str = ""
    sagemaker_image_uri: str = ""
    sagemaker_instance_type: str = ""
    sagemaker_volume_gb: int = Field(50, ge=1, le=16384)
    sagemaker_max_runtime_minutes: int = Field(240, ge=1, le=28 * 24 * 60)
    sagemaker_spot_wait_minutes: int = Field(0, ge=0, le=28 * 24 * 60)
    sagemaker_subnets: str = ""
    sagemaker_security_groups: str = ""
    sagemaker_price_per_hour: float = Field(0.0, ge=0)
    sqs_queue_url: str = ""
    model_card_template: str = ""
    metadata_salt: SecretStr = SecretStr("")
    slack_conn_id: str = ""
    smtp_conn_id: str = ""
    notify_email: str = ""
    sns_topic_arn: str = ""
    _instance: str = PrivateAttr("")

    @property
    def instance(self) -> str:
        """Name of the instance that these settings are of; "" if the deployment has only one model."""
        return self._instance

    @property
    def tag(self) -> str:
        """The title as an Airflow tag: lower-case letters, digits and dashes."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "models"

    @field_validator("images_prefix", "artifacts_prefix", "models_prefix")
    @classmethod
    def _prefix_is_bare(cls, prefix: str) -> str:
        bare = prefix.strip("/")
        if not bare:
            raise ValueError("is empty; images, artifacts and models each need a prefix of their own")
        return bare

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_from_text(cls, classes: Any) -> Any:
        if isinstance(classes, str):
            return tuple(name.strip() for name in classes.split(",") if name.strip())
        return classes

    @field_validator("training_python")
    @classmethod
    def _python_is_a_path(cls, python: str) -> str:
        if python and not Path(python).is_absolute():
            raise ValueError(f"{python!r} is not an absolute path: name the interpreter, as in /opt/training/bin/python")
        return python

    @field_validator(*_VALUES_OF_AWS)
    @classmethod
    def _value_of_aws(cls, value: str, setting: ValidationInfo) -> str:
        pattern, meaning = _VALUES_OF_AWS[str(setting.field_name)]
        if value and not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is not {meaning}")
        return value

    @model_validator(mode="after")
    def _places_do_not_collide(self) -> Settings:
        if len(set(self.classes)) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: at least two different names are needed, not {', '.join(self.classes)}")
        if self.positive_class not in self.classes:
            raise ValueError(f"positive_class: must be one of {', '.join(self.classes)}, got {self.positive_class!r}")
        prefixes = (self.images_prefix, self.artifacts_prefix, self.models_prefix)
        for one, other in combinations(prefixes, 2):
            if _overlap(one, other):
                raise ValueError(f"the prefixes {one!r} and {other!r} overlap; each needs a place of its own")
        return self

    @model_validator(mode="after")
    def _sagemaker_is_complete(self) -> Settings:
        if bool(self.sagemaker_subnets) != bool(self.sagemaker_security_groups):
            raise ValueError("sagemaker_subnets and sagemaker_security_groups: set both for a VPC, or neither")
        if self.train_on != "sagemaker":
            return self
        missing = [name for name in NEEDED_BY_SAGEMAKER if not getattr(self, name)]
        if missing:
            raise ValueError(f"train_on: sagemaker also needs {', '.join(missing)}: see docs/cloud.md")
        if self.training_python:
            raise ValueError("train_on: sagemaker trains in its own image: leave training_python out")
        return self

    def require_apart(self, config: RetrainingConfig) -> None:
        """Make sure that a run's external test sets are outside the deployment's own prefixes.

        Raises:
            ConfigError: one overlaps with the images, the artifacts or the models.
        """
        own = {"images": self.images_prefix, "artifacts": self.artifacts_prefix, "models": self.models_prefix}
        for external in config.external_sets:
            for name, prefix in own.items():
                if _overlap(external.prefix, prefix):
                    raise ConfigError(
                        f"external_prefixes: the set {external.name!r} ({external.prefix!r}) overlaps with the {name} "
                        f"({prefix!r}): store images from elsewhere under a prefix of their own"
                    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read `BCC_BUCKET`, `BCC_IMAGES_PREFIX`, … ; an empty variable counts as not set.

        Raises:
            ConfigError: a variable is invalid; the message names it.
        """
        environment = os.environ if environment is None else environment
        given = {name: environment[f"BCC_{name.upper()}"] for name in cls.model_fields if environment.get(f"BCC_{name.upper()}")}
        try:
            return cls(**given)
        except ValidationError as error:
            problem = error.errors()[0]
            variable = f"BCC_{str(problem['loc'][0]).upper()}: " if problem["loc"] else ""
            raise ConfigError(f"{variable}{problem['msg']}") from None

    def for_instance(self, name: str, given: Mapping[str, Any]) -> Settings:
        """Return the settings of one of several instances; what is not given is as here.

        Its default title is its name. Its cache is a folder of its own, and no queue is shared: a message is for one instance.

        Raises:
            ConfigError: a setting is unknown or invalid; the message names it.
        """
        own = {"title": name, "cache_dir": self.cache_dir / "instances" / name, "sqs_queue_url": ""}
        try:
            settings = type(self)(**{**dict(self), **own, **given})
        except ValidationError as error:
            problem = error.errors()[0]
            setting = f"{problem['loc'][0]}: " if problem["loc"] else ""
            raise ConfigError(f"{setting}{problem['msg']}") from None
        settings._instance = name
        return settings
