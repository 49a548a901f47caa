"""What the project's operators share: the store, the settings, the run, and how errors become Airflow's.

Permanent errors fail immediately, transient errors are retried, and a run without news is skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk import BaseOperator

from bcc_ops import metrics
from bcc_ops.airflow_names import AirflowFailException, AirflowSkipException
from bcc_ops.config import DeploymentParameters, RetrainingConfig, Settings
from bcc_ops.exceptions import ArtifactError, BccError, NothingNew
from bcc_ops.installation import INSTALL_WORKER
from bcc_ops.instances import Instance, find_instance
from bcc_ops.runs.documents import ConfigDocument, D, PromotionDocument, Reference, RunHandle, RunKind, SnapshotDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.record import DOCUMENT_FILES

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bcc_ops.dataset.image_cache import ImageCache
    from bcc_ops.dataset.pseudonyms import Pseudonyms
    from bcc_ops.dataset.sync import Counts, LocalImage
    from bcc_ops.runs.rows import ImageRow

log = logging.getLogger(__name__)


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Turn the project's errors into what Airflow acts on; the message stays the one clear line that it was."""
    try:
        yield
    except NothingNew as error:
        raise AirflowSkipException(str(error)) from None
    except BccError as error:
        if error.retryable:
            raise
        raise AirflowFailException(f"{type(error).__name__}: {error}") from None
    except ModuleNotFoundError as error:
        brings = f"{INSTALL_WORKER} brings what tasks need"
        raise AirflowFailException(f"this worker lacks the package {error.name}: {brings}") from error


def open_store(settings: Settings, **client: Any) -> ObjectStore:
    """Return the configured bucket, through the configured Airflow connection; `client` goes to the hook."""
    return ObjectStore(S3Hook(aws_conn_id=settings.aws_conn_id, **client).get_conn(), settings.bucket)


def run_kind(context: Context) -> RunKind:
    """Return which kind of run this is. A reprocessed run keeps its `scheduled__…` id: only its type tells."""
    run = context["dag_run"]
    run_type = getattr(run.run_type, "value", run.run_type)
    kinds: dict[str, RunKind] = {
        "scheduled": "nightly",
        "asset_triggered": "event",
        "manual": "manual",
        # These two ask for a run, as a person does in the UI; they do not only announce images.
        "operator_triggered": "manual",
        "asset_materialization": "manual",
        "backfill": "backfill",
    }
    return kinds[run_type]


def logical_moment(context: Context) -> datetime:
    """Return the run's logical date; manual and event runs may have none, and then it is when they were made."""
    moment: datetime = context.get("logical_date") or context["dag_run"].run_after
    return moment


@dataclass(frozen=True)
class Run:
    """The run that a task works for: its paths, parameters and images, each as its handle pins it."""

    paths: RunPaths
    config: RetrainingConfig
    config_document: ConfigDocument
    snapshot: SnapshotDocument
    references: Mapping[str, Reference]
    """Of the two documents that the handle pins: "config" and "snapshot"."""

    @classmethod
    def load(cls, store: ObjectStore, artifacts_prefix: str, handle: Mapping[str, str] | None) -> Run:
        """Load the run that a handle (a plain dict from XCom) names.

        Raises:
            ArtifactError: a document is missing, damaged, or not the one that the handle pins.
        """
        if not handle:
            raise ArtifactError("snapshot_dataset handed on no run: if it was marked successful by hand, clear it")
        pinned = RunHandle.model_validate(dict(handle))
        paths = RunPaths(artifacts_prefix, pinned.folder)
        references = {
            name: Reference(key=paths.document(f"{name}.json"), sha256=sha256)
            for name, sha256 in (("config", pinned.config), ("snapshot", pinned.snapshot))
        }
        document = store.load(ConfigDocument, references["config"])
        snapshot = store.load(SnapshotDocument, references["snapshot"])
        return cls(paths, document.config, document, snapshot, references)

    def require_own(self, name: str, reference: Reference) -> None:
        """Make sure that a reference from XCom is to this run's own document.

        Raises:
            ArtifactError: it is to a file somewhere else.
        """
        if reference.key != self.paths.document(name):
            raise ArtifactError(
                f"a task of this run handed on {reference.key}, which is not the run's own {name}: clear the task that writes it"
            )


class BccOperator(BaseOperator):
    """Base of the pipeline's operators.

    Subclasses implement `work`; a reference to a document is a plain dict, templated, so that another
    task's output can be handed in.

    Args:
        instance: name of the model that this is for, if the deployment has several. A DAG's `default_args` hand it to all.
    """

    ui_color = "#e6f0f7"

    def __init__(self, *, instance: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.instance = instance

    def execute(self, context: Context) -> Any:
        """Do the task's work, with the project's errors turned into Airflow's."""
        with airflow_errors(), metrics.stage(self.task_id, self.instance):
            return self.work(context)

    def work(self, context: Context) -> Any:
        """Return the task itself, in terms of the core."""
        raise NotImplementedError

    @cached_property
    def settings(self) -> Settings:
        """The place this runs in."""
        return self._found.settings

    @cached_property
    def deployment(self) -> DeploymentParameters:
        """The parameters of the deployment's own runs."""
        return self._found.deployment

    @cached_property
    def _found(self) -> Instance:
        return find_instance(self.instance)

    @cached_property
    def store(self) -> ObjectStore:
        """The configured bucket."""
        return open_store(self.settings)

    def parameters_of(self, context: Context) -> RetrainingConfig:
        """Return the parameters that a run is started with, resolved.

        Raises:
            ConfigError: as `DeploymentParameters.resolve` and `Settings.require_apart` say.
        """
        config = self.deployment.resolve(context["params"])
        self.settings.require_apart(config)
        return config

    def load_run(self, handle: Mapping[str, str] | None, context: Context) -> Run:
        """Load the run that the handle from `snapshot_dataset` names.

        Raises:
            ArtifactError: as in `Run.load`, or the handle is another run's.
        """
        run = Run.load(self.store, self.settings.artifacts_prefix, handle)
        if run.config_document.run_id != context["run_id"]:
            raise ArtifactError(
                f"{run.paths.folder} is the folder of the run {run.config_document.run_id!r} and not of this run, "
                f"{context['run_id']!r}: clear snapshot_dataset, which hands on this run's own"
            )
        return run

    def load_document(self, kind: type[D], run: Run, reference: Mapping[str, str] | None) -> D:
        """Load the run's own document that a reference (a plain dict from XCom) promises.

        Raises:
            ArtifactError: it is not there with that content, is not this run's, or an earlier task handed on no reference.
        """
        if reference is not None:
            run.require_own(DOCUMENT_FILES[kind], Reference.model_validate(dict(reference)))
        return self.store.load(kind, reference)

    def promoted(self, paths: RunPaths) -> Reference | None:
        """Return the reference to the run's promotion.json if its model came into use.

        Doing such a run again changes none of the documents that record how that came about: its verdict would be about the
        champion of today, which may be this very model.
        """
        key = paths.document("promotion.json")
        document = self.store.find(PromotionDocument, key)
        if document is None or not document.promoted:
            return None
        self.log.info("This run's model came into use as version %s: the records of that are kept as they are", document.version)
        return self.store.reference(key)

    def local_images(
        self,
        snapshot: SnapshotDocument,
        *,
        part: slice = slice(None),
        without: Collection[str] = (),
        reread: bool = False,
        counts: Counts | None = None,
        unreadable: dict[str, str] | None = None,
    ) -> list[LocalImage]:
        """Return the files of the snapshot's images, in its order; what is missing on this worker is fetched.

        Args:
            snapshot: names the images.
            part: positions in the snapshot of the images that are needed.
            without: keys of images that are not needed.
            reread, counts, unreadable: as in `sync_images`.
        """
        from bcc_ops.dataset.snapshot import read_images

        rows = [row for row in read_images(self.store, snapshot)[part] if row.key not in without]
        return self.fetch_images(rows, reread=reread, counts=counts, unreadable=unreadable)

    def fetch_images(self, rows: Sequence[ImageRow], **how: Any) -> list[LocalImage]:
        """Return the files of images, from this worker's cache or the bucket; arguments are those of `sync_images`.

        Patients whom DICOM files name get the deployment's pseudonyms, whatever the images are fetched for: the cache and what is
        learned of a content outlast the task.
        """
        from bcc_ops.dataset.sync import sync_images

        return sync_images(self.store, rows, self.image_cache, pseudonyms=lambda: self.pseudonyms, **how)

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """The deployment's pseudonyms of patients. Ask only if there are patients: the first to ask makes a salt."""
        from bcc_ops.dataset.pseudonyms import pseudonyms_of

        return pseudonyms_of(self.settings, self.store)

    @cached_property
    def image_cache(self) -> ImageCache:
        """This worker's cache. As long as this is held, no image of the run is evicted."""
        from bcc_ops.dataset.image_cache import ImageCache

        return ImageCache(self.settings.cache_dir, round(self.settings.cache_budget_gb * 1e9))
