"""The FastAPI app behind the *Model report* tab and the *Models* page.

Every route asks `auth.guard` first. Pages are made in threads of their own and within a deadline, so that a store that
is slow or away delays nothing else of the API server and shows in a page. Only files of a run's own folder are served,
by name from a fixed list.

If the deployment has several models, each has pages of its own, and *Models* lists those that a person may read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import GetUserDep
from cachetools import TTLCache, cached
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bcc_ops.config import DeploymentParameters, Settings
from bcc_ops.exceptions import ArtifactError, BccError, ConfigError, StorageUnavailable
from bcc_ops.instances import RETRAINING, Instance, read_instances
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.report.page import (
    CONTENT_SECURITY_POLICY,
    REFRESH_SECONDS,
    InstanceRow,
    RunRow,
    VersionRow,
    render_instances,
    render_message,
    render_models,
    render_report,
)
from bcc_ops.report.progress import RunProgress
from bcc_ops.runs.documents import ConfigDocument, ModelDocument, parse_document
from bcc_ops.runs.history import RunSummary, summarise_run
from bcc_ops.runs.index import find_run, list_runs
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import PICTURES, PLOTS, RunPaths, model_file
from bcc_ops.runs.record import FILES, RUN_DOCUMENTS, read_record
from bcc_ops.web.airflow_internals import may_read
from bcc_ops.web.airflow_metadata import ConnectedStore, find_progress
from bcc_ops.web.audit import NotRecorded, recorded
from bcc_ops.web.auth import guard, sees_pictures
from bcc_ops.web.entry import URL_PREFIX
from bcc_ops.web.run_reader import ContentCache, FolderReader

log = logging.getLogger(__name__)

DEADLINE_SECONDS = 60.0
"""How long a page may take in all, on a busy machine too. A store that is away is noticed long before by its client."""

CACHE_BYTES = 48 * 2**20
RUNS_A_PAGE = 25
RUNS_KNOWN = 10_000
"""Runs whose folder is remembered."""
MOST_VERSIONS = 30
FILE_SECONDS = 5.0
"""How long what the deployment's file says is remembered."""

LONGEST_ID = 250
"""Characters of a DAG's or a run's id, as Airflow's metadata database keeps them."""

T = TypeVar("T")


class PageError(Exception):
    """A page that only says why there is no other."""

    def __init__(self, status: int, heading: str, *sentences: str, refresh: int | None = None) -> None:
        super().__init__(heading)
        self.status, self.heading, self.sentences, self.refresh = status, heading, sentences, refresh


WITHHELD = PageError(
    403, "Not permitted", "Pictures of patients and downloads are for people who may trigger runs (setting BCC_PICTURES)."
)


class SecurityHeaders:
    """Adds to every answer what keeps it from being sniffed, kept, framed elsewhere, or running what is not ours."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and mark the answer's first message."""

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cache-Control"] = "no-store"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        await self.app(scope, receive, send_marked)


class Pages:
    """What the routes do for one instance: read its bucket and render.

    Args:
        read_settings: gives the place this runs in.
        open_store: gives its bucket.

    Both are asked in a thread and may raise: a wrong setting shows in a page and does not stop the API server.
    """

    def __init__(self, read_settings: Callable[[], Settings], open_store: Callable[[], ObjectStore]) -> None:
        self.read_settings = read_settings
        self.open_store = open_store
        self.cache = ContentCache(CACHE_BYTES)
        self._known: dict[str, RunPaths] = {}
        self.makers = ThreadPoolExecutor(8, thread_name_prefix="bcc-page")
        self.fetchers = ThreadPoolExecutor(16, thread_name_prefix="bcc-fetch")

    @property
    def settings(self) -> Settings:
        """The place this runs in."""
        return self.read_settings()

    async def within_deadline(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread and wait for it as long as a page may take.

        Raises:
            PageError: the store or a document did not allow it, or the page took too long.
        """
        waiting = asyncio.get_running_loop().run_in_executor(self.makers, work)
        try:
            return await asyncio.wait_for(waiting, DEADLINE_SECONDS)
        except asyncio.TimeoutError:
            log.warning("a page was not ready within %s s", DEADLINE_SECONDS)
            sentence = f"It was not ready within {DEADLINE_SECONDS:.0f} seconds. This machine or the object store is busy."
            again = f"The page tries again every {REFRESH_SECONDS} seconds."
            raise PageError(504, "This page takes too long", sentence, again, refresh=REFRESH_SECONDS) from None
        except StorageUnavailable as error:
            log.warning("a page had no answer from the store: %s", error)
            sentence = "The object store that holds the runs' documents did not answer in time."
            mends = f"The run itself is not affected. The page tries again every {REFRESH_SECONDS} seconds."
            raise PageError(503, "The store does not answer", sentence, mends, refresh=REFRESH_SECONDS) from None
        except BccError as error:
            raise PageError(503, "The store cannot be read", str(error)) from None
        except PageError:
            raise
        except Exception as error:  # the last resort of a page: a bug here must not become a bare 500
            log.exception("a page failed")
            sentence = f"{type(error).__name__}. The API server's log has the details."
            raise PageError(500, "This page failed", sentence) from None

    def folder(self, store: ObjectStore, folder: str) -> FolderReader:
        """Return the files of a folder, through the shared cache."""
        return FolderReader(store, folder, self.cache, self.fetchers)

    def _find(self, store: ObjectStore, run_id: str) -> tuple[RunPaths, FolderReader] | None:
        """Return the folder of a run; None if it has none yet. Where a run's snapshot is never changes, so it is looked for once.

        Raises:
            ArtifactError: the folder holds the documents of another run.
        """
        paths = self._known.get(run_id)
        if paths is not None:
            folder = self.folder(store, paths.folder)
            config = folder.read("config.json")
            if "snapshot.json" in folder.files and config is not None:
                named = parse_document(ConfigDocument, config, store.uri(paths.document("config.json")))
                if named.run_id == run_id:
                    return paths, folder
        paths = find_run(store, self.settings.artifacts_prefix, run_id)
        if paths is None:
            return None
        folder = self.folder(store, paths.folder)
        if "snapshot.json" in folder.files:
            if len(self._known) >= RUNS_KNOWN:
                self._known.clear()
            self._known[run_id] = paths
        return paths, folder

    def run_folder(self, store: ObjectStore, run_id: str) -> tuple[RunPaths, FolderReader]:
        """Return the folder of a run.

        Raises:
            PageError: the run left none.
        """
        found = self._find(store, run_id)
        if found is None:
            raise PageError(404, "No such file", "This run has left nothing in the bucket (yet).")
        return found

    def report(self, progress: RunProgress, ui: str, pictures: bool) -> str:
        """Return the report of a run, however far it is; without `pictures`, no image of a patient and no download is in it."""
        store = self.open_store()
        found = self._find(store, progress.run_id)
        if found is None:
            return render_report(
                read_record(lambda _: None), run_id=progress.run_id, plots={}, files={}, progress=progress, ui=ui
            )
        paths, folder = found
        run = read_record(folder.reader(RUN_DOCUMENTS))
        card = self._model_card(store, run.promotion.version) if run.promotion else None
        return render_report(
            run,
            run_id=progress.run_id,
            folder=store.uri(paths.folder),
            plots={
                name: f"plots/{name}.png"
                for name in PLOTS
                if f"plots/{name}.png" in folder.files and (pictures or name not in PICTURES)
            },
            files={name: (f"files/{name}", folder.files[name].size) for name in FILES if pictures and name in folder.files},
            withheld=not pictures,
            progress=progress,
            model_card=card,
            ui=ui,
        )

    def _model_card(self, store: ObjectStore, version: str) -> str | None:
        content = self.folder(store, f"{self.settings.models_prefix}/{version}").read("model_card.md")
        return content.decode("utf-8", errors="replace") if content else None

    def plot(self, run_id: str, name: str, pictures: bool) -> bytes:
        """Return a plot of a run, by its file name.

        Raises:
            PageError: there is none of that name, or it shows patients and this person may not see `pictures`.
        """
        if not pictures and name.removesuffix(".png") in PICTURES:
            raise WITHHELD
        content = None
        if name.removesuffix(".png") in PLOTS and name.endswith(".png"):
            content = self.run_folder(self.open_store(), run_id)[1].read(f"plots/{name}")
        if content is None:
            raise PageError(404, "No such plot", "This run has no plot of that name.")
        return content

    def download(self, run_id: str, name: str) -> tuple[int, Iterator[bytes]]:
        """Return the size and content of a file of a run, in pieces.

        Raises:
            PageError: there is none of that name.
        """
        if name not in FILES:
            raise PageError(404, "No such file", "Only the files that a report lists can be downloaded.")
        store = self.open_store()
        listed = self.run_folder(store, run_id)[1].files.get(name)
        if listed is None:
            raise PageError(404, "No such file", f"This run has no {name}.")
        pieces = store.stream(listed.key, if_etag=listed.etag)
        first = next(pieces, b"")
        return listed.size, _again(first, pieces)

    def models(self, instance: Instance, before: str | None, ui: str) -> str:
        """Return the page about all runs and versions; `before` is a run's folder, and only older ones are listed."""
        here, above = (instance.name, "../") if instance.name else ("models", "")
        store, settings = self.open_store(), self.settings
        folders = [paths for paths in list_runs(store, settings.artifacts_prefix) if before is None or paths.folder_name < before]
        shown = folders[: -RUNS_A_PAGE - 1 : -1]
        summaries = self.fetchers.map(lambda paths: self._summary(store, paths), shown)
        registry = ModelRegistry(store, settings.models_prefix)
        names = registry.versions()[::-1]
        versions = self.fetchers.map(lambda name: self._version(store, name), names[:MOST_VERSIONS])
        pointer = registry.read_pointer()
        champion = pointer.champion if pointer else None
        return render_models(
            champion=champion,
            champion_uri=store.uri(model_file(settings.models_prefix, champion.version, "model.h5")) if champion else None,
            runs=[RunRow(summary, _report_path(above, instance, summary.run_id)) for summary in summaries],
            versions=list(versions),
            versions_more=max(0, len(names) - MOST_VERSIONS),
            positive_class=settings.positive_class,
            older=f"{here}?before={quote(shown[-1].folder_name)}" if len(folders) > len(shown) else None,
            paged=before is not None,
            set_champion_href=f"{ui}/dags/{instance.set_champion_dag_id}",
            title=settings.title,
            problems=[pointer.problem] if pointer and pointer.problem else [],
        )

    def _summary(self, store: ObjectStore, paths: RunPaths) -> RunSummary:
        folder = self.folder(store, paths.folder)
        return summarise_run(paths, lambda key: folder.read(key.rsplit("/", 1)[-1]))

    def _version(self, store: ObjectStore, name: str) -> VersionRow:
        try:
            content = self.folder(store, f"{self.settings.models_prefix}/{name}").read("model.json")
            if content is None:
                return VersionRow(name, None, "no model.json: its upload was not finished")
            return VersionRow(name, parse_document(ModelDocument, content, f"{name}/model.json"), None)
        except ArtifactError as error:
            return VersionRow(name, None, str(error))


def _again(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _report_path(above: str, instance: Instance, run_id: str | None) -> str | None:
    return f"{above}runs/{instance.retraining_dag_id}/{quote(run_id, safe='')}/report" if run_id else None


class Instances:
    """The models of the deployment, and the pages of each. The deployment's file may change while the API server runs."""

    def __init__(self, read: Callable[[], Sequence[Instance]], open_store: Callable[[], ObjectStore] | None) -> None:
        self.read = read
        self._open_store = open_store
        self._pages: dict[str, Pages] = {}
        self._lock = Lock()

    def of_request(self, request: Request) -> Instance | None:
        """Return the instance that a path names, by its DAG or by its name; the only one if it names none.

        None if there is no such instance, or several and none is named.
        """
        try:
            instances = self.read()
        except ConfigError:  # `_find` says so in a page
            return None
        path = request.path_params
        if "dag_id" in path:
            return next((one for one in instances if one.retraining_dag_id == path["dag_id"]), None)
        if "instance" in path:
            return next((one for one in instances if one.name and one.name == path["instance"]), None)
        return instances[0] if len(instances) == 1 and not instances[0].name else None

    def dag_ids(self, request: Request) -> Sequence[str]:
        """Return the DAGs of which a person must be allowed to read one."""
        named = self.of_request(request)
        if named is not None:
            return [named.retraining_dag_id]
        try:
            return [one.retraining_dag_id for one in self.read()]
        except ConfigError:
            return [RETRAINING]

    def readable(self, request: Request, user: Any) -> list[Instance]:
        """Return those that a person may read."""
        return [one for one in self.read() if may_read(user, one.retraining_dag_id)]

    def pages(self, instance: Instance) -> Pages:
        """Return the pages of an instance."""
        with self._lock:
            if instance.name not in self._pages:

                def settings() -> Settings:
                    return next((one for one in self.read() if one.name == instance.name), instance).settings

                self._pages[instance.name] = Pages(settings, self._open_store or ConnectedStore(settings))
            return self._pages[instance.name]


def _find(request: Request) -> Instance | None:
    """Return the instance that a path names, as `Instances.of_request`.

    Raises:
        PageError: the settings cannot be read.
    """
    instances: Instances = request.app.state.instances
    try:
        instances.read()
    except ConfigError as error:
        raise PageError(503, "The settings cannot be used", str(error)) from None
    return instances.of_request(request)


def _instance(request: Request) -> Instance:
    """Return the instance that a path names.

    Raises:
        PageError: there is none, or the settings cannot be read.
    """
    found = _find(request)
    if found is None:
        raise PageError(404, "No such model", "This deployment has no model of that name.")
    return found


def _list_instances(instances: Sequence[Instance], ui: str) -> str:
    rows = [
        InstanceRow(
            name=one.retraining_dag_id,
            title=one.title,
            classes=one.given_settings.classes if one.given_settings else (),
            href=f"models/{one.name}",
            dag_href=f"{ui}/dags/{one.retraining_dag_id}",
            problem=one.problem or one.deployment.problem,
        )
        for one in instances
    ]
    return render_instances(rows)


def _known_run(request: Request, dag_id: str, run_id: str) -> RunProgress:
    """Return the run that a path names.

    Raises:
        PageError: another DAG, no such run, or the settings cannot be read.
    """
    if _find(request) is None:
        raise PageError(404, "No model report", "This DAG belongs to no model of this deployment.")
    # PostgreSQL raises on a NUL character instead of finding nothing.
    progress = find_progress(dag_id, run_id) if "\0" not in run_id and len(run_id) <= LONGEST_ID else None
    if progress is None:
        raise PageError(404, "No such run", f"Airflow knows no run of {dag_id} with this id.")
    return progress


KnownRun = Annotated[RunProgress, Depends(_known_run)]
KnownInstance = Annotated[Instance, Depends(_instance)]


def _ui(request: Request) -> str:
    """Return the path of Airflow's UI: where this app is mounted, less its own prefix."""
    return str(request.scope.get("root_path", "")).removesuffix(URL_PREFIX)


def create_app(settings: Settings | None = None, open_store: Callable[[], ObjectStore] | None = None) -> FastAPI:
    """Return the app, to be mounted under `URL_PREFIX`.

    Args:
        settings: read from the environment if None is given.
        open_store: the configured connection's if None is given.
    """
    read: Callable[[], Sequence[Instance]] = cached(TTLCache(1, FILE_SECONDS), lock=Lock())(read_instances)
    if settings is not None:
        only = (Instance("", DeploymentParameters(), settings),)
        read = lambda: only  # noqa: E731 - a function of one line, and mypy wants one type
    instances = Instances(read, open_store)
    app = FastAPI(title="Models", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[guard(instances.dag_ids)])
    app.state.instances = instances
    app.add_middleware(SecurityHeaders)

    @app.exception_handler(PageError)
    async def _say(request: Request, error: PageError) -> HTMLResponse:
        return HTMLResponse(render_message(error.heading, error.sentences, error.refresh), error.status)

    @app.exception_handler(NotRecorded)
    async def _refuse(request: Request, error: NotRecorded) -> HTMLResponse:
        sentence = "Each view is recorded in Airflow's audit log, and that could not be written. Try again later."
        return HTMLResponse(render_message("This view could not be recorded", [sentence], None), 503)

    allowed = sees_pictures(instances.of_request)

    @app.get("/models", response_class=HTMLResponse, dependencies=[recorded("bcc_view_models", after=lambda: None)])
    async def models(request: Request, user: GetUserDep, before: str | None = None) -> HTMLResponse:
        """All runs and versions; if there are several models, the list of them."""
        ui = _ui(request)
        only = _find(request)
        if only is not None:
            pages = instances.pages(only)
            return HTMLResponse(await pages.within_deadline(lambda: pages.models(only, before, ui)))
        return HTMLResponse(await asyncio.to_thread(lambda: _list_instances(instances.readable(request, user), ui)))

    @app.get(
        "/models/{instance}",
        response_class=HTMLResponse,
        dependencies=[recorded("bcc_view_models", after=_instance)],
    )
    async def models_of(request: Request, found: KnownInstance, before: str | None = None) -> HTMLResponse:
        """All runs and versions of one of several models."""
        ui = _ui(request)
        pages = instances.pages(found)
        return HTMLResponse(await pages.within_deadline(lambda: pages.models(found, before, ui)))

    @app.get(
        "/runs/{dag_id}/{run_id}/report",
        response_class=HTMLResponse,
        dependencies=[recorded("bcc_view_report", after=_known_run)],
    )
    async def report(request: Request, run: KnownRun, found: KnownInstance, pictures: bool = allowed) -> HTMLResponse:
        """One run."""
        ui = _ui(request)
        pages = instances.pages(found)
        return HTMLResponse(await pages.within_deadline(lambda: pages.report(run, ui, pictures)))

    @app.get("/runs/{dag_id}/{run_id}/plots/{name}", dependencies=[recorded("bcc_view_plot", after=_known_run)])
    async def plot(run: KnownRun, found: KnownInstance, name: str, pictures: bool = allowed) -> Response:
        """One plot of a run."""
        pages = instances.pages(found)
        return Response(await pages.within_deadline(lambda: pages.plot(run.run_id, name, pictures)), media_type="image/png")

    @app.get("/runs/{dag_id}/{run_id}/files/{name}", dependencies=[recorded("bcc_download", after=_known_run)])
    async def download(run: KnownRun, found: KnownInstance, name: str, pictures: bool = allowed) -> StreamingResponse:
        """One file of a run, never opened in the browser."""
        if not pictures:
            raise WITHHELD
        pages = instances.pages(found)
        size, pieces = await pages.within_deadline(lambda: pages.download(run.run_id, name))
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Length": str(size)}
        return StreamingResponse(pieces, media_type=FILES[name][1], headers=headers)

    return app
