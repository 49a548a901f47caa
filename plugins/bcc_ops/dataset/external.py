"""The external test sets of a run: labelled images from elsewhere, a prefix of the bucket each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from bcc_ops.config import ExternalSet, RetrainingConfig
from bcc_ops.dataset.arrivals import describe_ignored
from bcc_ops.dataset.snapshot import ImageRules, Listing, list_images
from bcc_ops.exceptions import ConfigError
from bcc_ops.runs.object_store import ObjectStore


def list_external_set(
    store: ObjectStore, external: ExternalSet, classes: Sequence[str], config: RetrainingConfig, as_of: datetime | None
) -> Listing:
    """List the images of a set as of a moment, by the rules of the run's own; None: as they are now."""
    max_bytes = config.max_file_mb * 1_000_000
    return list_images(store, ImageRules(external.prefix, tuple(classes), config.ignored_names, max_bytes), as_of)


def require_external_images(store: ObjectStore, classes: Sequence[str], config: RetrainingConfig, as_of: datetime) -> list[str]:
    """Look at a run's external test sets before hours are spent on training.

    Args:
        store: the bucket.
        classes: of the deployment.
        config: the run's parameters.
        as_of: the run's moment.

    Returns:
        A sentence per set that the run can only use in part: a class is missing, or nothing of it was there yet.

    Raises:
        ConfigError: a set is empty, as of the run's moment and now.
    """
    warnings = []
    for external in config.external_sets:
        listing = list_external_set(store, external, classes, config, as_of)
        if listing.images:
            missing = lacking(classes, Counter(image.label for image in listing.images))
            warnings += [f"The external test set {external.name} {missing}"] if missing else []
            continue
        now = list_external_set(store, external, classes, config, None)
        if not now.images:
            folders = ", ".join(f"{external.prefix}/{name}/" for name in classes)
            raise ConfigError(
                f"external_prefixes: the set {external.name!r} is empty: it has no image in {folders}."
                f"{describe_ignored(now.ignored)} Upload its images, or correct the parameter"
            )
        warnings.append(
            f"The external test set {external.name} had no image on {as_of:%Y-%m-%d %H:%M:%S} UTC: the run does without it."
        )
    return warnings


def lacking(classes: Sequence[str], counts: Counter[str]) -> str:
    """Say, as the end of a sentence, which classes a set has no image of; "" if it has all."""
    missing = [name for name in classes if not counts[name]]
    if not missing:
        return ""
    return f"has no {' and no '.join(missing)} image: metrics that need one are missing."
