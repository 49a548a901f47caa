"""Whether a run's challenger is trained already, by an attempt that could not report it.

A worker that is lost, or an API server that is away, between a training's last write and its report makes a failed attempt
out of a training that is done. Its retry hands that on instead of spending the hours again.
"""

from __future__ import annotations

import logging

from bcc_ops.config import RetrainingConfig
from bcc_ops.exceptions import ArtifactError, ObjectNotFound
from bcc_ops.runs.documents import Reference, TrainingDocument, parse_document
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths

log = logging.getLogger(__name__)


def find_completed(
    store: ObjectStore,
    paths: RunPaths,
    *,
    snapshot_digest: str,
    config_digest: str,
    split: Reference,
    preprocessing: str,
) -> Reference | None:
    """Return the reference to this run's training.json; None where training has still to be done.

    Training is done where the document was made of the same images, parameters, split and weights, its model file does the same
    besides (`describe_preprocessing`: parameters that the file depends on and training does not), and the model and the history
    that it names are there with the content that it promises. Anything else that is there is named in a warning.

    Raises:
        StorageError: the bucket cannot be read.
    """
    key = paths.document("training.json")
    try:
        content = store.get(key)
    except ObjectNotFound:
        return None
    reference = Reference.of(key, content)
    try:
        document = parse_document(TrainingDocument, content, reference.key)
        made_of = (document.snapshot_digest, document.config_digest, document.split, document.preprocessing)
        if made_of != (snapshot_digest, config_digest, split, preprocessing):
            log.warning("%s is of other images, parameters or weights than this run's by now: training again", reference.key)
            return None
        for named in (document.model, document.history):
            store.get_referenced(named)
    except (ArtifactError, ObjectNotFound) as error:
        log.warning("an earlier training of this run cannot be used, training again: %s", error)
        return None
    log.info("trained already, by an earlier attempt that did not come to report it: %s", reference.key)
    return reference


def describe_preprocessing(config: RetrainingConfig, positive_class: str) -> str:
    """Say in a sentence what the model file does besides the network that was trained."""
    sentence = "inside the model: it takes raw 0-255 RGB pixels"
    if config.test_time_flip:
        sentence += " and answers the mean over the image and its mirror image"
    if config.malignant_odds_factor != 1:
        sentence += f"; its odds of {positive_class} are multiplied by {config.malignant_odds_factor:g}"
    return sentence
