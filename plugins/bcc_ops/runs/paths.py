"""Map the documents of a run to their keys. Pure: names in, keys out."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timezone

AS_OF_FORMAT = "%Y%m%dT%H%M%SZ"
_FOLDER = re.compile(r"(?P<as_of>\d{8}T\d{6}Z)__(?P<slug>[A-Za-z0-9._-]+)")
_LONGEST_SLUG = 80
_DIGEST_DIGITS = 12

PLOTS = (
    "history",
    "class_counts",
    "confusion_matrix",
    "roc",
    "precision_recall",
    "reliability",
    "difference",
    "trend",
    "augmentations",
    "drift",
    "missed_cancers",
    "false_alarms",
    "content_findings",
)
"""Names of the plots that a run may have, without `.png`."""

PICTURES = frozenset({"augmentations", "missed_cancers", "false_alarms", "content_findings"})
"""The plots that show images of patients."""


def run_slug(run_id: str) -> str:
    """Return a run id as part of a key: letters, digits, `.`, `_` and `-`, at most 80 characters.

    It always ends with a digest of the id. Without it, a person who chooses a run id could choose the folder of another run.
    """
    digest = hashlib.sha256(run_id.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_DIGITS]
    slug = re.sub(r"[^A-Za-z0-9._-]", "-", run_id)
    return f"{slug[: _LONGEST_SLUG - _DIGEST_DIGITS - 1]}-{digest}"


def older_run_slug(run_id: str) -> str:
    """Return the slug that releases before 0.1 gave to a run id: with a digest only if the id is not a slug itself."""
    slug = re.sub(r"[^A-Za-z0-9._-]", "-", run_id)
    if slug == run_id and len(slug) <= _LONGEST_SLUG:
        return slug
    digest = hashlib.sha256(run_id.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{slug[: _LONGEST_SLUG - 9]}-{digest}"


@dataclass(frozen=True)
class RunPaths:
    """The keys of one run: `<artifacts_prefix>/runs/<as_of>__<slug>/…`."""

    artifacts_prefix: str
    folder_name: str

    @classmethod
    def of(cls, artifacts_prefix: str, as_of: datetime, run_id: str) -> RunPaths:
        """Return the paths of the run `run_id` about the images as of `as_of` (aware, whole seconds are kept)."""
        moment = as_of.astimezone(timezone.utc).strftime(AS_OF_FORMAT)
        return cls(artifacts_prefix, f"{moment}__{run_slug(run_id)}")

    @classmethod
    def of_key(cls, artifacts_prefix: str, key: str) -> RunPaths:
        """Return the paths of the run that the object `key` belongs to.

        Raises:
            ValueError: it belongs to none.
        """
        root = f"{artifacts_prefix}/runs/"
        name = key[len(root) :].partition("/")[0] if key.startswith(root) else ""
        if not _FOLDER.fullmatch(name):
            raise ValueError(f"{key!r} is not in a run's folder")
        return cls(artifacts_prefix, name)

    @property
    def folder(self) -> str:
        """The run's folder, without a slash at its end."""
        return f"{self.artifacts_prefix}/runs/{self.folder_name}"

    @property
    def as_of(self) -> datetime:
        """The moment in the folder's name."""
        return datetime.strptime(self.folder_name.split("__")[0], AS_OF_FORMAT).replace(tzinfo=timezone.utc)

    @property
    def slug(self) -> str:
        """The run id's slug in the folder's name."""
        return self.folder_name.split("__", 1)[1]

    def document(self, name: str) -> str:
        """Return the key of a document, by its file name: `gate.json`."""
        return f"{self.folder}/{name}"

    def plot(self, name: str) -> str:
        """Return the key of a plot, by its name in `PLOTS`."""
        return f"{self.folder}/plots/{name}.png"


def runs_root(artifacts_prefix: str) -> str:
    """Return the prefix of the runs' folders, with a slash at its end."""
    return f"{artifacts_prefix}/runs/"


def parse_run_folder(artifacts_prefix: str, folder: str) -> RunPaths | None:
    """Return a listed folder as `RunPaths`; None if its name is not a run's."""
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    return RunPaths(artifacts_prefix, name) if _FOLDER.fullmatch(name) else None


def model_file(models_prefix: str, version: str, name: str) -> str:
    """Return the key of one file of a version: `model.h5`, `model.json` and so on."""
    return f"{models_prefix}/{version}/{name}"


def champion_pointer(models_prefix: str) -> str:
    """Return the key of the pointer to the model in use."""
    return f"{models_prefix}/champion.json"


def fold_file(fold: int, ending: str) -> str:
    """Return the name of a file about a fold's model in a run's folder: `fold-2.json`."""
    return f"fold-{fold}.{ending}"


def checkpoint_folder(artifacts_prefix: str, *, snapshot_digest: str, config_digest: str, split_digest: str, fold: int) -> str:
    """Return where an unfinished training keeps its checkpoint: the same images, parameters, split and fold find it again.

    Images and parameters do not say who is in which fold: that is carried forward from the last assessed run, which may be
    another one by the time of a retry.
    """
    return f"{artifacts_prefix}/checkpoints/{snapshot_digest[:16]}-{config_digest[:16]}-{split_digest[:16]}-{fold}"


def inspections_root(artifacts_prefix: str) -> str:
    """Return the prefix under which workers share what the image checks learned, with a slash at its end."""
    return f"{artifacts_prefix}/inspections/"
