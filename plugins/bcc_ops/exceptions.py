"""Everything that this project raises on purpose.

BccError                          one clear line that names the thing and the way out
├── ConfigError                   a parameter or a setting is wrong
├── StorageError                  the object store refused or failed
│   ├── StorageUnavailable    *   no answer, a time-out, 5xx, SlowDown
│   │   └── WriteConflict     *   another conditional write to the same object was in progress
│   ├── BucketNotFound
│   ├── AccessDenied
│   ├── ObjectNotFound
│   ├── ObjectChanged             the object is no longer the one that the snapshot lists
│   ├── PreconditionFailed        a conditional write lost
│   └── UnsafeStore               it ignores the conditions of conditional writes: nothing may be promoted in it
├── CacheError                *   the local cache cannot hold what it must (most often a full disk)
├── OutOfResources            *   this machine has too little memory or disk just now
├── ArtifactError                 a document is missing, damaged or of another schema
├── DataError                     these images cannot be trained on
│   ├── NoImages
│   ├── DatedInTheFuture          an object is dated after now: somebody's clock is wrong
│   ├── ImageRefused              one image cannot be used; carries the reason
│   ├── TooManyRefused
│   ├── TooManyRemoved            a large part of the previous run's images is gone
│   ├── MetadataProblem           the metadata table beside the images cannot be used as it is
│   ├── SnapshotChanged           the images of a past moment are not those that the sensor saw
│   └── SplitError
├── TrainingError
│   ├── DivergedError             NaN, or a loss that explodes
│   ├── OutOfMemory
│   ├── GpuMissing                a GPU was asked for and is not there
│   ├── WeightsUnavailable        the backbone's weights are not available, or are not the expected ones
│   ├── TrainingInterrupted   *   stopped from outside; the checkpoint is kept
│   ├── TrainingStopped           a person stopped the job that trains; the checkpoint is kept
│   ├── TrainingUnavailable   *   SageMaker takes no job now: no instance, a quota, no answer
│   └── TrainingFailed        *   the training process ended without giving a reason
├── ModelError                    a model file is damaged, unsafe or not the one that was promised
├── PromotionLost                 another run moved the champion first
├── ApprovalMissing               the run needs an approval, and nobody has given it
└── NothingNew                    no image is new: a skip, not a failure

* trying again may help
"""

from __future__ import annotations

from typing import Any


class BccError(Exception):
    """Base of the project's errors. `retryable` says whether the same call may succeed later."""

    retryable = False


class ConfigError(BccError):
    """A parameter is out of its bounds, or a setting is missing."""


class StorageError(BccError):
    """The object store refused a call or failed at it."""


class StorageUnavailable(StorageError):
    """The store did not answer, or said that it cannot right now."""

    retryable = True


class BucketNotFound(StorageError):
    """The bucket does not exist."""


class AccessDenied(StorageError):
    """The credentials are wrong or do not allow this."""


class ObjectNotFound(StorageError):
    """There is no such object, or no such version of it."""


class ObjectChanged(StorageError):
    """An object is no longer the one that the snapshot lists. A fresh snapshot helps, a retry does not."""


class PreconditionFailed(StorageError):
    """A conditional write found the object there already, or changed."""


class WriteConflict(StorageUnavailable):
    """Another conditional write to the same object was in progress. Nothing was written; the same call may succeed."""


class UnsafeStore(StorageError):
    """The store ignores the conditions of conditional writes, so that two promotions at once would both seem to win."""


class CacheError(BccError):
    """The local cache cannot hold what it must."""

    retryable = True


class OutOfResources(BccError):
    """This machine has too little memory or disk just now. This says nothing about the image that was being read."""

    retryable = True


class ArtifactError(BccError):
    """A document is missing, damaged, of another schema, or not the one that was referred to."""


class DataError(BccError):
    """The images of this snapshot cannot be trained on."""


class NoImages(DataError):
    """The snapshot holds no image."""


class DatedInTheFuture(DataError):
    """An object is dated further ahead than clocks differ. A model as of then would block every later one."""


class ImageRefused(DataError):
    """One image may not be used. `reason` is a few words from a fixed set, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TooManyRefused(DataError):
    """More images were refused than `max_refused_fraction` allows."""


class TooManyRemoved(DataError):
    """More of the previous run's images are gone than `max_removed_fraction` allows."""


class MetadataProblem(DataError):
    """The metadata table beside the images cannot be used as it is. Fails a run only if `require_metadata` is on."""


class SnapshotChanged(DataError):
    """The images of a past moment are no longer those that the sensor saw, and the bucket keeps no versions."""


class SplitError(DataError):
    """A class would have no image to train on, or none held out."""


class TrainingError(BccError):
    """Training ended without a model."""


class DivergedError(TrainingError):
    """The loss became NaN or exploded."""


class OutOfMemory(TrainingError):
    """A batch does not fit into the accelerator's memory."""


class GpuMissing(TrainingError):
    """`require_gpu` is on and there is none."""


class WeightsUnavailable(TrainingError):
    """The backbone's weights are not available, or are not the expected ones."""


class TrainingInterrupted(TrainingError):
    """Training was stopped from outside; its progress is in its checkpoint."""

    retryable = True


class TrainingStopped(TrainingError):
    """A person stopped the job that trains. A retry would spend what that person meant to save."""


class TrainingUnavailable(TrainingError):
    """SageMaker cannot start or continue a job now: it has no instance, a quota is used up, or it gives no answer."""

    retryable = True


class TrainingFailed(TrainingError):
    """The training process ended unexpectedly: most often killed for its memory."""

    retryable = True


class ModelError(BccError):
    """A model file is damaged, unsafe to load, or not the one that was promised."""


class PromotionLost(BccError):
    """Another run moved the champion between this run's comparison and its upload."""

    document: Any = None
    """The promotion.json that says so; None if the run is not known where this is raised."""


class ApprovalMissing(BccError):
    """The run needs an approval, and no person has approved this verdict."""


class NothingNew(BccError):
    """Nothing differs from the last assessed run: the run is skipped."""
