"""Whether a fold's model is trained already, by an attempt that could not report it.

A worker that is lost, or an API server that is away, between a training's last write and its report makes a failed attempt
out of a training that is done. Its retry hands that on instead of spending the hours again.
"""

from __future__ import annotations

import logging

from bcc_ops.config import RetrainingConfig
from bcc_ops.exceptions import ArtifactError, ObjectNotFound
from bcc_ops.runs.documents import FoldDocument, Reference, parse_document
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths, fold_file

log = logging.getLogger(__name__)


def find_completed(
    store: ObjectStore,
    paths: RunPaths,
    fold: int,
    *,
    snapshot_digest: str,
    config_digest: str,
    split: Reference,
    preprocessing: str,
) -> Reference | None:
    """Return the reference to the document of a fold's model; None if it has still to be trained.

    It is trained if the document was made of the same images, parameters and split, its model file does the same besides
    (`describe_preprocessing`: parameters that the file depends on and training does not), and the files that it names are there
    with the content that it promises. Anything else that is there is named in a warning.

    Raises:
        StorageError: the bucket cannot be read.
    """
    key = paths.document(fold_file(fold, "json"))
    try:
        content = store.get(key)
    except ObjectNotFound:
        return None
    reference = Reference.of(key, content)
    try:
        document = parse_document(FoldDocument, content, reference.key)
        made_of = (document.snapshot_digest, document.config_digest, document.split, document.preprocessing)
        if made_of != (snapshot_digest, config_digest, split, preprocessing):
            log.warning("%s is now of other images, parameters or weights than this run's: training again", reference.key)
            return None
        for named in (document.model, document.history, document.answers):
            store.get_referenced(named)
    except (ArtifactError, ObjectNotFound) as error:
        log.warning("an earlier training of this run cannot be used, training again: %s", error)
        return None
    log.info("trained already, by an earlier attempt that could not report it: %s", reference.key)
    return reference


def describe_preprocessing(config: RetrainingConfig) -> str:
    """Say in a sentence what must be done to an image, and what the model file does besides the network that was trained."""
    fitted = "scaled to fit the square, padded evenly with black" if config.keep_aspect else "squeezed to the square"
    sentence = f"before the model: the image is {fitted}; inside the model: it takes raw 0-255 RGB pixels"
    if config.standardize:
        sentence += ", turns them gray, standardizes mean and deviation of what is not black"
    if config.test_time_flip:
        sentence += " and answers the mean over the image and its mirror image"
    return sentence
