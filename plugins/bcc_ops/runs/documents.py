"""The documents that a run leaves behind, and the references by which tasks hand them on.

Each is a frozen pydantic model with a `schema_version`; an unknown field is an error, so that a reader never takes a
newer document for one it understands. NaN and infinity are refused everywhere: a metric that is not available is an
`Estimate` without a value and with a reason.
"""

from __future__ import annotations

import hashlib
import json
import math
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from bcc_ops.config import Origin, RetrainingConfig, parameters_of_sections
from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.upgrade import OLDER_VERSIONS, respelled, upgraded

FOLDS = (1, 2, 3, 4, 5)
"""The parts of a split. A run trains a model for each of the first `folds`, on the images of the four others."""
OLDER_TRAINING = 0
"""Stands for a fold in documents of older releases: images that their one model was trained or tuned on. Those that it
held out are in fold 1."""


def name_fold(fold: int) -> str:
    """Return what people read for a fold, or for what stands in its place in documents of older releases."""
    return "trained on (older release)" if fold == OLDER_TRAINING else f"fold {fold}"


Verdict = Literal["approved", "approved_without_champion", "needs_person", "rejected"]
"""`needs_person`: every rule holds, and a person holds the champion."""
RunKind = Literal["nightly", "event", "manual", "backfill"]


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("is not finite")
    return number


Finite = Annotated[float, AfterValidator(_finite)]


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("has no time zone")
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("is too long ago, or too far ahead") from None


Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""A time that can be compared with any other one: one without a time zone is refused."""


class Part(BaseModel):
    """A piece of a document."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Document(Part):
    """A whole document of a run: one JSON object in the bucket."""

    schema_version: Literal[4] = 4

    def to_json(self) -> bytes:
        """Return the document as it is in the bucket: UTF-8, indented, keys in declaration order, a newline at the end."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


D = TypeVar("D", bound=Document)


def parse_document(kind: type[D], content: bytes, origin: str) -> D:
    """Read a document.

    Args:
        kind: the document's class.
        content: its bytes.
        origin: where they came from, for the message.

    Raises:
        ArtifactError: they are not such a document.
    """
    try:
        return kind.model_validate_json(_in_this_version(kind, content))
    except ValidationError as error:
        problem = error.errors()[0]
        place = " ".join(".".join(map(str, problem["loc"])).split())[:200] or "the whole"  # a field's name may be anything
        raise ArtifactError(f"{origin} is not a {kind.__name__}: {place}: {problem['msg']}") from None


def _in_this_version(kind: type[Document], content: bytes) -> bytes:
    try:
        document = json.loads(content)
        if isinstance(document, dict):
            older = document.get("schema_version") in OLDER_VERSIONS
            read = upgraded(kind.__name__, document) if older else respelled(kind.__name__, document)
            return content if read is document else json.dumps(read).encode()
    except (ValueError, RecursionError):
        pass  # pydantic says what is wrong with it
    return content


def digest_of(value: Any) -> str:
    """Return sha256 over a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


class Reference(Part):
    """Where an object is stored and which content it must have. Goes through XCom as a plain dict.

    The key is relative to the configured bucket, so that a bucket that is restored or replicated under another name works.
    """

    key: str
    sha256: str

    @classmethod
    def of(cls, key: str, content: bytes) -> Reference:
        """Return the reference to `content` at `key`."""
        return cls(key=key, sha256=hashlib.sha256(content).hexdigest())

    def to_xcom(self) -> dict[str, str]:
        """Return a plain dict: pydantic models do not come back from XCom."""
        return {"key": self.key, "sha256": self.sha256}


class RunHandle(Part):
    """The run that a task works for. Goes through XCom as a plain dict, from the first task to all others.

    The two digests pin what the run was asked to do and on which images, so that a file that somebody overwrites in the
    run's folder changes nothing: it is refused.
    """

    folder: str
    """The name of the run's folder: `<as_of>__<run slug>-<digest>`."""
    config: str
    """sha256 of config.json."""
    snapshot: str
    """sha256 of snapshot.json."""

    def to_xcom(self) -> dict[str, str]:
        """Return a plain dict: pydantic models do not come back from XCom."""
        return self.model_dump()


class Estimate(Part):
    """A metric with its 95 % interval, or the reason why there is none.

    Serialised as `{value, low, high}` or `{value: null, reason}`. `low` and `high` are absent for a metric that has
    no interval.
    """

    value: Finite | None
    low: Finite | None = None
    high: Finite | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _value_or_reason(self) -> Estimate:
        if (self.value is None) != (self.reason is not None):
            raise ValueError("has either a value or a reason")
        return self

    @model_serializer
    def _serialise(self) -> dict[str, Any]:
        if self.value is None:
            return {"value": None, "reason": self.reason}
        if self.low is None or self.high is None:
            return {"value": self.value}
        return {"value": self.value, "low": self.low, "high": self.high}

    def __format__(self, spec: str) -> str:
        """Format with a number's format, `.3f` by default: `0.853 (0.801 to 0.902)`, or `not available: <reason>`."""
        spec = spec or ".3f"
        if self.value is None:
            return f"not available: {self.reason}"
        if self.low is None or self.high is None:
            return format(self.value, spec)
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    @classmethod
    def missing(cls, reason: str) -> Estimate:
        """Return a metric that is not available."""
        return cls(value=None, reason=reason)


# config.json ---------------------------------------------------------------------------------------------------------


class ConfigDocument(Document):
    """The run's parameters, resolved, and where each came from."""

    run_id: str
    run_kind: RunKind
    config: RetrainingConfig
    origins: dict[str, Origin]
    digest: str
    """sha256 over what influences training: names a checkpoint together with the snapshot's digest."""

    @property
    def uses_deployment_parameters(self) -> bool:
        """Whether the run decided as the deployment's own runs do: which images it was about may be chosen freely."""
        free = parameters_of_sections("Images", "Promotion")
        return not any(origin == "given" and name not in free for name, origin in self.origins.items())


# snapshot.json -------------------------------------------------------------------------------------------------------


class IgnoredKeys(Part):
    """Keys under the prefix that are not images to train on."""

    reason: str
    count: int
    examples: tuple[str, ...]


class SnapshotChange(Part):
    """What differs from the previous assessed run's snapshot: counts, and some keys of each."""

    added: int
    changed: int
    removed: int
    examples: dict[Literal["added", "changed", "removed"], tuple[str, ...]]

    @property
    def total(self) -> int:
        """Images that are added, changed or removed."""
        return self.added + self.changed + self.removed


class MetadataFinding(Part):
    """What is odd in a metadata table: how often, and some examples (keys of images, numbers of rows, names of columns)."""

    reason: str
    count: int
    examples: tuple[str, ...]


class MetadataColumn(Part):
    """A column of the metadata that is used."""

    name: str
    images: int
    """Images with a value."""
    values: int
    """Different values."""


class MetadataDocument(Part):
    """What the metadata table beside the images says, without what would identify a patient."""

    key: str
    etag: str
    version_id: str
    last_modified: datetime
    size: int
    sha256: str | None = None
    """Of the table's bytes; null if they could not be read."""
    problem: str | None = None
    """Why the table is not used at all; null if it is."""
    rows: int = 0
    images: int = 0
    """Images that a row is about."""
    patients: int = 0
    columns: tuple[MetadataColumn, ...] = ()
    findings: tuple[MetadataFinding, ...] = ()
    salt: str = ""
    """Names the salt of the patients' pseudonyms; it does not tell the salt."""
    table: Reference | None = None
    """`metadata.parquet`: one row per image and column."""


class SnapshotDocument(Document):
    """Which images a run is about: those under the prefix, as of a moment."""

    title: str = "Breast ultrasound"
    """What people call the model, its images and its runs."""
    bucket: str
    prefix: str
    as_of: datetime
    run_id: str
    run_kind: RunKind
    versioned: bool
    as_of_source: Literal["versions", "last_modified"]
    """"versions": exact. "last_modified": what is there now, less what was written after as_of."""
    classes: tuple[str, ...]
    positive_class: str
    counts: dict[str, int]
    digest: str
    """sha256 over (key, etag or version, label), sorted by key."""
    previous_run: str | None
    """Folder of the last run with an earlier as_of whose outcome counts."""
    change: SnapshotChange | None
    """Against `previous_run`; null without one."""
    ignored: tuple[IgnoredKeys, ...]
    images: Reference
    metadata: MetadataDocument | None = None
    """Null if there is no metadata table, and in documents of older releases."""

    @property
    def total(self) -> int:
        """Number of images."""
        return sum(self.counts.values())


# checks.json -----------------------------------------------------------------------------------------------------


class RefusedImage(Part):
    """An image that may not be used."""

    key: str
    reason: str
    detail: str


class ImageGroup(Part):
    """Images that are near-duplicates of one another. Images without a near-duplicate are in no group here."""

    group: str
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    how: tuple[str, ...]
    """How they were found to be alike: "bytes", "pixels", "perceptual", "shifted"."""


class DriftFinding(Part):
    """One two-sample comparison of the new images with the previous snapshot's."""

    label: str
    quantity: str
    statistic: Finite
    p_value: Finite
    images_before: int
    images_new: int
    warning: bool
    sentence: str


class ShortcutFinding(Part):
    """How well some properties of the files predict one class against the rest, without the image's content."""

    properties: str
    """"size and aspect", "border", …"""
    label: str
    auc: Estimate
    """Of grouped cross-validation; missing if it is not known."""
    warning: bool


class ContentFinding(Part):
    """What some images hold besides a scan of the breast."""

    finding: str
    """One of `config.FINDINGS`."""
    action: str
    """One of `config.FINDING_ACTIONS`."""
    images: int
    labels: dict[str, int]
    """Class -> images."""
    keys: tuple[str, ...]
    """Of very many images, the first by key."""


class ChecksDocument(Document):
    """Which images may be used, and why the others may not."""

    snapshot_digest: str
    checked: int
    usable: dict[str, int]
    """Images per class after refusals and conflicts."""
    synthetic: int
    """Images that the project's own generator drew. Where it is not 0, every metric of the run is synthetic."""
    converted: dict[str, int]
    """Colour mode -> images that are converted to 8-bit RGB on reading."""
    dicom: int = 0
    """Images that were read from DICOM files."""
    burned_in: int = 0
    """DICOM images whose file says that text is burned into their pixels."""
    refused: tuple[RefusedImage, ...]
    groups: tuple[ImageGroup, ...]
    conflicts: tuple[ImageGroup, ...]
    """Groups under more than one label: left out altogether."""
    thresholds: dict[str, float]
    drift: tuple[DriftFinding, ...]
    drift_unavailable: str | None = None
    shortcuts: tuple[ShortcutFinding, ...] = ()
    shortcuts_unavailable: str | None = None
    """Why nothing is known about shortcuts; null if there are findings, and in documents of older releases."""
    patients: int | None = None
    """Patients of the usable images, as far as they are known; null if none is."""
    metadata: MetadataDocument | None = None
    """As in snapshot.json."""
    findings: tuple[ContentFinding, ...] = ()
    findings_unavailable: str | None = "written by an older release"
    """Why text was not looked for in the images; null if it was."""
    excluded: dict[str, int] = Field(default_factory=dict)
    """Action -> images that are excluded by their findings."""
    warnings: tuple[str, ...]
    contents: Reference | None
    """`contents.parquet`: one row per image checked."""
    file_metadata: Reference | None = None
    """`file-metadata.parquet`: what DICOM files tell of themselves; null if there are none."""


# split.json --------------------------------------------------------------------------------------------------


class LeftOutImage(Part):
    """A usable image that is in no fold."""

    key: str
    reason: str


class SplitDocument(Document):
    """Counts and weights per class, and how the split came about."""

    classes: tuple[str, ...]
    counts: dict[int, dict[str, int]]
    """Fold -> class -> images. `OLDER_TRAINING` stands for a fold in documents of before version 4."""
    weights: dict[str, Finite]
    """n / (classes x count) over all folds, so that every class weighs the same in the loss."""
    grouping: Literal["near-duplicate group", "patient"]
    salt: str
    carried_forward: int
    """Images that kept the fold that an earlier run gave to their content."""
    previous_run: str | None
    """Folder of the newest run whose assignments were carried forward."""
    left_out: tuple[LeftOutImage, ...]
    held_out_digest: str
    """sha256 over the sorted content digests of the images that this run's models are asked about: names the evidence."""
    table: Reference | None
    """`split.parquet`: one row per image in a fold."""
    assignments: Reference | None = None
    """`assignments.parquet`: one row per content that ever got a fold. Null in documents of before version 3."""
    ancestors: tuple[str, ...] | None = None
    """Folders of the runs whose assignments are in there. Null in documents of before version 3."""
    holdout_reuse: Finite = 0
    """Gate decisions per held-out image, this run's included."""
    made_of: str = ""
    """Digest of what the split was made of: a run that is done again with the same keeps its split."""
    patients_unknown: int = 0
    """Images in a fold whose patient is not known although those of others are."""

    def held_out(self, folds: int) -> list[int]:
        """Return which of the first so many folds are held out in turn: those that have an image. Few groups do not fill five."""
        return [fold for fold in FOLDS[:folds] if any(self.counts.get(fold, {}).values())]


# python -m bcc_ops check --json ------------------------------------------------------------------------------------------


class CheckDocument(Document):
    """What a labelled folder is worth, without a run: its image checks and its split."""

    classes: tuple[str, ...]
    ignored: tuple[IgnoredKeys, ...]
    checks: ChecksDocument
    split: SplitDocument | None
    """Null if there is no split."""
    folds: dict[str, int]
    """Path below the folder -> fold."""
    split_problem: str | None
    """Why there is no split; null if there is one."""


# fold-<n>.json and training.json -------------------------------------------------------------------------------------


class _TrainedAs(Document):
    """What is said of the training both of a fold's model and of the model made from all of them."""

    preset: str
    architecture: str
    weights: str
    classes: tuple[str, ...]
    image_size: int
    keep_aspect: bool = False
    """Whether images were padded with black to the square; otherwise squeezed to it, as in every older document."""
    preprocessing: str
    parameters: int
    seed: int
    deterministic: bool
    determinism_note: str | None
    mixed_precision: bool
    xla: str
    versions: dict[str, str]
    devices: tuple[str, ...]
    host: str
    """The worker; of several, comma-separated."""
    epochs: int
    seconds: Finite
    """Spent on epochs; of several models, their sum."""
    peak_memory_mb: Finite
    snapshot_digest: str
    config_digest: str
    split: Reference | None = None
    """The split and the weights that it was trained with."""
    synthetic: bool
    model: Reference


class SageMakerJobs(Part):
    """The jobs of Amazon SageMaker that a fold took, those that left no model included."""

    jobs: int
    instance_types: tuple[str, ...]
    billed_seconds: int
    saved_seconds: int
    """That they ran on spot instances and are not billed."""
    without_bill: int
    """Jobs of which AWS tells no seconds: they got no instance, or it has not counted yet."""


class FoldDocument(_TrainedAs):
    """How one fold's model was trained: on the images of the other folds."""

    fold: int
    images: int
    """That it was trained on."""
    resumed_after_epochs: tuple[int, ...]
    """For each time that training was taken up again: how many epochs were done by then."""
    seconds_per_epoch: Finite
    images_per_second: Finite
    history: Reference
    """`fold-<n>.csv`: one row per epoch."""
    answers: Reference
    """`fold-<n>.parquet`: what it answers about the images of its fold."""
    sagemaker: SageMakerJobs | None = None
    """None if a worker trained it, and in documents of older releases."""


class FoldSummary(Part):
    """What the run's training.json says of one fold's model."""

    fold: int
    images: int
    held_out: int
    """Images of the fold, which it answered about."""
    epochs: int
    seconds: Finite
    resumed_after_epochs: tuple[int, ...]
    host: str
    model: Reference
    sagemaker: SageMakerJobs | None = None
    """As in the fold's document."""


class TrainingDocument(_TrainedAs):
    """How the challenger was trained: the folds' models, and the file made from all of them."""

    folds: tuple[FoldSummary, ...] = ()
    """Empty in documents of before version 4, which had one model."""
    images: int
    """That the file has learned from: those of every fold if it is made from several models."""
    combined: str = "one model"
    """How the file was made from the folds' models."""
    answers: Reference | None = None
    """`out_of_fold.parquet`: for every image, the answer of the model that did not train on its fold."""
    warm_started_from: str | None = None
    """The version whose weights training started with; only in documents of before version 4."""


class EpochRow(Part):
    """One row of a history. `epoch` counts from 1."""

    fold: int = 1
    epoch: int
    loss: Finite
    accuracy: Finite
    held_out_loss: Finite
    held_out_accuracy: Finite
    held_out_balanced_accuracy: Finite
    learning_rate: Finite
    seconds: Finite
    images_per_second: Finite


# evaluation.json -----------------------------------------------------------------------------------------------------


class ClassEvaluation(Part):
    """One class against the rest. `support` is the number of images that truly belong to it."""

    support: int
    sensitivity: Estimate
    specificity: Estimate
    precision: Estimate
    f1: Estimate
    auc: Estimate


class OperatingPoint(Part):
    """The threshold on the positive class' probability that the file is shipped with, and what it achieves.

    It is chosen on all out-of-fold answers. What it achieves is cross-fitted: each fold's images are judged by the threshold that
    the other folds' answers give.
    """

    threshold: Finite | None
    wanted_sensitivity: Finite
    chosen_on: str
    sensitivity: Estimate
    specificity: Estimate


class ReliabilityBin(Part):
    """One equal-mass bin of the reliability diagram."""

    images: int
    confidence: Finite
    accuracy: Finite


class Calibration(Part):
    """How far the probabilities can be trusted, as they are and after temperature scaling."""

    slope: Estimate = Estimate.missing("written by an older release")
    """1 if calibrated, below 1 if overconfident."""
    error: Estimate
    """Root mean square error over equal-mass bins, less what chance alone adds; without an interval."""
    brier: Estimate
    temperature: Finite | None
    """Fitted on all out-of-fold answers; the metrics after scaling are cross-fitted, like the operating point's."""
    slope_scaled: Estimate = Estimate.missing("written by an older release")
    error_scaled: Estimate
    bins: tuple[ReliabilityBin, ...]


class ModelEvaluation(Part):
    """One model's metrics on one set of images."""

    images: int
    groups: int
    loss: Estimate
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    macro_auc: Estimate
    per_class: dict[str, ClassEvaluation]
    operating_point: OperatingPoint
    calibration: Calibration
    confusion_matrix: tuple[tuple[int, ...], ...]
    """Rows true, columns predicted, in the order of `classes`."""


class Comparison(Part):
    """The challenger and another version on the same images, each held out from whichever model answers about it."""

    champion_version: str
    """The version compared with."""
    champion_as_of: datetime
    champion_synthetic: bool
    left_out: dict[str, int]
    """Why images are left out of the comparison -> how many."""
    recorded: int = 0
    """Images about which the version's own out-of-fold answers are used."""
    asked: int = 0
    """Images that are new since, about which its file was asked."""
    challenger: ModelEvaluation | None
    champion: ModelEvaluation | None
    differences: dict[str, Estimate]
    """Challenger minus the other, paired: balanced_accuracy, macro_auc, accuracy, malignant_sensitivity, …"""
    positive_groups: int = 0
    """Groups with an image of the positive class that both are compared on."""
    problem: str | None
    """Why it could not be compared; null if it was."""
    caution: str | None = None
    """What the comparison may have missed; null if there is nothing to say."""


class ExternalDuplicate(Part):
    """An image from elsewhere that is left out, since it shows what an own image shows."""

    key: str
    own: str | None
    """Key of that own image; null if only the champion or the anchor has seen it."""


class ExternalEvaluation(Part):
    """The model file, and those of champion and anchor beside it, on one external test set."""

    name: str
    prefix: str = ""
    note: str | None = None
    """A sentence for people: which images there are, and which are left out."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Images by class, left-out ones not counted."""
    left_out: dict[str, int] = Field(default_factory=dict)
    """Why images are left out -> how many."""
    near_duplicates: tuple[ExternalDuplicate, ...] = ()
    """The first of those that are left out as near-duplicates of own images."""
    compared: int = 0
    """Pairs of an own image and one of this set whose pixels were compared."""
    challenger: ModelEvaluation | None
    """Null if the set has no image that can be used."""
    champion: ModelEvaluation | None = None
    differences: dict[str, Estimate] = Field(default_factory=dict)
    """Challenger minus champion, paired."""
    positive_groups: int = 0
    """Groups (patients, if they are known) with an image of the positive class."""
    problem: str | None = None
    """Why the champion could not be asked; null if it was, or if there is none."""
    anchor: ModelEvaluation | None = None
    """Null if there is none, if it is the champion, or if it could not be asked."""
    anchor_differences: dict[str, Estimate] = Field(default_factory=dict)
    """Challenger minus anchor, paired."""
    anchor_problem: str | None = None


class FileCheck(Part):
    """Whether the model file keeps what its folds' models promise: log loss of the file less their mean, on the same images."""

    images: int
    external: bool
    """Whether the images are from elsewhere. If there are none, the folds' models have trained on most of the images."""
    file_loss: Finite
    folds_loss: Finite
    difference: Estimate
    agreement: Finite
    """How often the file names the same class as the mean of the folds' answers about own images: the mean over the classes."""
    calls_agreement: Finite = 1.0
    """How often both call an own image positive at the shipped threshold, or both not: the mean of the two shares."""
    passed: bool


class SliceEvaluation(Part):
    """The challenger on part of the held-out images, and the champion beside it on those of them that both are compared on."""

    by: str
    """"image size", "new images", "armpit", "key pattern", or a column of the metadata."""
    value: str
    images: int
    balanced_accuracy: Estimate
    positive_sensitivity: Estimate
    """At the operating point."""
    positive_specificity: Estimate = Estimate.missing("written by an older release")
    groups: int = 0
    positive_groups: int = 0
    compared: int = 0
    """Images that both are compared on; 0 if they are too few, or if there is no champion."""
    compared_positive_groups: int = 0
    champion_sensitivity: Estimate | None = None
    """At its own operating point, on the images compared on."""
    champion_specificity: Estimate | None = None
    differences: dict[str, Estimate] = Field(default_factory=dict)
    """Challenger minus champion, paired, by some of the names that `Comparison.differences` has."""


class EvaluationWithout(Part):
    """The challenger on the held-out images without those that a content finding is about: what these weigh in its metrics."""

    finding: str
    """One of `config.FINDINGS`."""
    images: int
    """Left out; each metric is of the others."""
    balanced_accuracy: Estimate
    macro_auc: Estimate
    positive_auc: Estimate


class FollowedShortcut(Part):
    """How much the challenger's answers follow some properties of the files within the true classes."""

    properties: str
    """As in `ShortcutFinding`."""
    correlation: Estimate
    """Spearman's, of the positive class' probability with that by these properties alone; from -1 to 1."""
    warning: bool


class EvaluationDocument(Document):
    """The challenger by its out-of-fold answers, beside the champion and the anchor."""

    classes: tuple[str, ...]
    positive_class: str
    as_of: datetime | None
    """Null for an evaluation outside a run (`python -m bcc_ops evaluate`)."""
    synthetic: bool
    held_out_digest: str
    challenger: ModelEvaluation
    """On every image with an out-of-fold answer."""
    comparison: Comparison | None
    """With the champion; null if there is none."""
    anchor: Comparison | None = None
    """With the anchor; null if there is none, or if it is the champion."""
    slices: tuple[SliceEvaluation, ...]
    slices_unavailable: str | None
    without: tuple[EvaluationWithout, ...] = ()
    """One per content finding that enough images have, in the order of `config.FINDINGS`; empty outside a run."""
    external: tuple[ExternalEvaluation, ...] = ()
    """One per external test set, in the order of `external_prefixes`."""
    file_check: FileCheck | None = None
    """Null if there is one model, and outside a run."""
    grouping: str
    """Which images count as one piece of evidence."""
    shortcuts: tuple[FollowedShortcut, ...] = ()
    """Empty if nothing is known, outside a run, and in documents of older releases."""
    warm_start_note: str | None = None
    """What the champion that training started from had seen; only in documents of before version 4."""
    model: Reference | None
    predictions: Reference | None


# gate.json -----------------------------------------------------------------------------------------------------------


class RuleResult(Part):
    """One rule of the gate: what it looked at, what it asked for, and a sentence for people."""

    rule: str
    passed: bool
    applies: bool
    """False if the rule has nothing to decide (no champion, say): it neither passes nor fails the model."""
    value: Finite | None
    threshold: Finite | None
    sentence: str


class GateDocument(Document):
    """May the challenger replace the champion?"""

    verdict: Verdict
    reasons: tuple[str, ...]
    rules: tuple[RuleResult, ...]
    as_of: datetime
    synthetic: bool
    champion_version: str | None
    champion_etag: str | None
    """The pointer as it was when the models were compared: promotion requires that it still is."""
    held_out_digest: str
    holdout_reuse: Finite
    """Gate decisions per held-out image, this one included: how often the same images have decided."""
    becomes_anchor: bool = False
    """Whether the model, if it comes into use, is what later ones are measured against: it is better with confidence, or the
    first."""
    anchor_version: str | None = None
    """The anchor that it was compared with; null if the champion was the anchor, or stood in for it."""
    evaluation: Reference
    split: Reference | None = None
    """The run's split.json, which names its split: what the next run carries forward. Null in older documents."""


# approval.json -------------------------------------------------------------------------------------------------------


class ApprovalDocument(Document):
    """What a person answered when asked for an approval; only there if the run asked."""

    approved: bool | None
    """Null if the question was asked again: the earlier answer no longer counts, and there is no other yet."""
    by: str
    at: datetime
    timed_out: bool
    """Nobody answered in time, which rejects."""
    gate: str | None = None
    """sha256 of the gate.json that the question was about. An answer to another verdict, or without one, does not count."""


# promotion.json ------------------------------------------------------------------------------------------------------


class PromotionDocument(Document):
    """What became of an approved challenger."""

    version: str
    model: Reference
    promoted: bool
    """Whether the champion's pointer moved."""
    reason: str
    """If it did not move, this also says whether the version was uploaded."""
    previous_champion: str | None
    approved_by: str
    at: datetime


# models/<version>/model.json and models/champion.json ----------------------------------------------------------------


class SmokeTestImage(Part):
    """An image of the bucket, as a row of images.parquet has it, and what the trained model answered about it."""

    key: str
    label: str
    size: int
    etag: str
    version_id: str
    last_modified: datetime
    probabilities: tuple[Finite, ...]


class ModelDocument(Document):
    """What a user of the `.h5` must know. It takes raw 0-255 RGB pixels and answers probabilities in this order."""

    version: str
    classes: tuple[str, ...]
    positive_class: str
    image_size: int
    keep_aspect: bool = False
    """Whether an image must be padded with black to the square (README.md, "The model file"). If not, or if it is not
    here, it must be squeezed to the square."""
    preprocessing: str
    architecture: str
    operating_point: OperatingPoint
    temperature: Finite | None
    synthetic: bool
    as_of: Moment
    run: str
    """Folder of the run that trained it."""
    warm_started_from: str | None = None
    """The version whose weights training started with; only in versions of before version 4."""
    snapshot_digest: str
    folds: tuple[int, ...] = (1,)
    """The folds that its models held out. With one, its file was not trained on that fold; with several, it was on all."""
    split: Reference
    """The version's own copy of the split that it was trained with. In older versions, the run's."""
    answers: Reference | None = None
    """`out_of_fold.parquet`: its out-of-fold answers, with the images' digests, folds and groups. Null in older versions."""
    smoke_test: tuple[SmokeTestImage, ...] = ()
    """The images that the file is tested with before it comes into use. Empty in older versions."""
    model: Reference
    evaluation: Reference


class ChampionMove(Part):
    """One entry of the pointer's history."""

    version: str
    sha256: str
    as_of: Moment
    synthetic: bool
    run: str
    at: Moment
    by: str
    reason: str


class Hold(Part):
    """A person moved the champion: no run replaces it without a person."""

    by: str
    at: Moment
    reason: str


class Anchor(Part):
    """The version that challengers are measured against besides the champion, so that small losses cannot add up."""

    version: str
    sha256: str
    since: datetime
    by: str
    reason: str


class ChampionDocument(Document):
    """The pointer to the model in use: the only object that is ever overwritten with another meaning."""

    version: str
    sha256: str
    as_of: Moment
    synthetic: bool
    run: str
    at: Moment
    by: str
    reason: str
    history: tuple[ChampionMove, ...] = Field(default=())
    """Earlier champions, newest first; those before are in `older`."""
    older: Reference | None = None
    """A `HistoryDocument` with the moves before `history`; null if there are none."""
    anchor: Anchor | None = None
    """The best version so far by its evidence. A run moves it to a model that is better with confidence; otherwise only a person
    moves it, by choosing a champion. Null in older pointers: the champion is the anchor then."""
    hold: Hold | None = None
    """Set when a person moves the champion, and kept until a person releases it."""
    withdrawn: tuple[str, ...] = ()
    """sha256 of the model files that a person replaced. They come into use again only if a person chooses that version."""
    replaced: str | None = None
    """Key of a copy of the pointer before this one, if that could not be read."""


class HistoryDocument(Document):
    """Moves of the champion that the pointer no longer lists itself. Written once."""

    moves: tuple[ChampionMove, ...]
    """Newest first."""
    older: Reference | None
