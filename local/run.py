"""`make run`: the stack up, the images in its bucket, one run of the pipeline, its progress, its verdict."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.synthetic import SYNTHETIC_CLASSES, TEXTURE_CLASSES, write_images
from bcc_ops.exceptions import BccError, ConfigError
from bcc_ops.instances import read_instances
from local.airflow_api import AirflowError
from local.images import FolderError, ImageFolder, read_folder, upload
from local.processes import ProcessError
from local.s3_server import ServerError
from local.stack import DAG_ID, USER, VIEWER, LocalStack, StackError, keep_to_ones_own
from local.watch import RunWatcher, describe_failure, describe_verdict, fetch_run

SYNTHETIC_PER_CLASS = 120
SYNTHETIC_PARAMETERS: dict[str, Any] = {"image_size": 128, "epochs": 8}
"""Parameters of a run on synthetic images, unless others are given: a verdict within minutes."""

UI_PORT = 8080
_RUN_WITHIN = 24 * 3600.0
_RUN_ID_TIME = "%Y-%m-%dT%H:%M:%S"


class WrongUse(ValueError):
    """What was asked for is not possible. One line; exit status 2."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class RunRequest:
    """What `make run` was asked to do. `images` is None for synthetic ones, `port` for 8080 or the next free one."""

    home: Path
    images: Path | None = None
    once: bool = False
    port: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    own_s3: bool = True

    @property
    def synthetic(self) -> bool:
        """Whether the images are the generator's: none were named, and the bucket is nobody else's."""
        return self.images is None and self.own_s3

    @property
    def all_parameters(self) -> dict[str, Any]:
        """The parameters that were asked for; synthetic images need fewer epochs and lower floors."""
        return {**(SYNTHETIC_PARAMETERS if self.synthetic else {}), **self.parameters}

    @property
    def bucket(self) -> str:
        """Synthetic images are in a bucket of their own: no real model may ever be trained on them."""
        return f"synthetic-{self.settings.bucket}" if self.synthetic else self.settings.bucket

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> RunRequest:
        """Read IMAGES, ONCE, PRESET, PARAMS, PORT and LOCAL (the folder `.local`), and the `BCC_*` settings.

        Raises:
            WrongUse, ConfigError: a value is invalid.
        """
        settings = Settings.from_environment(environment)
        if any(instance.name for instance in read_instances(environment)):
            raise WrongUse(f"BCC_PARAMETERS={settings.parameters} lists several models, but `make run` is for one")
        images, port = environment.get("IMAGES", "").strip(), environment.get("PORT", "").strip()
        if port and not (port.isdecimal() and 1024 <= int(port) <= 65535):
            raise WrongUse(f"PORT={port} is not a port that may be used here: 1024 to 65535")
        return cls(
            home=Path(environment.get("LOCAL") or ".local").absolute(),
            images=Path(images).expanduser().resolve() if images else None,
            once=_is_yes("ONCE", environment.get("ONCE", "")),
            port=int(port) if port else None,
            parameters=read_parameters(environment.get("PRESET", ""), environment.get("PARAMS", "")),
            settings=settings,
            own_s3=f"AIRFLOW_CONN_{settings.aws_conn_id.upper()}" not in environment,
        )


def read_parameters(preset: str, text: str) -> dict[str, Any]:
    """Read the parameters in `epochs=8 patient_pattern='(\\d+)'`, each of its own type.

    Raises:
        WrongUse: no such parameter, or no `name=value`.
        ConfigError: out of bounds; the message names the parameter and its bounds.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise WrongUse(f"PARAMS={text}: {error}") from None
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise WrongUse(f'PARAMS: {word!r} is not name=value, as in PARAMS="epochs=8 image_size=224"')
        given[name] = value
    if preset:
        given["preset"] = preset
    resolved = RetrainingConfig.resolve(given).model_dump(mode="json")
    return {name: resolved[name] for name in given}


def _is_yes(name: str, value: str) -> bool:
    if value.strip().lower() in ("", "0", "no", "false"):
        return False
    if value.strip().lower() in ("1", "yes", "true"):
        return True
    raise WrongUse(f"{name}={value}: must be 1 or 0")


def say(line: str) -> None:
    """Print a line at once, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


class _Signals:
    """SIGINT and SIGTERM end the run once; while everything is being stopped, further ones change nothing."""

    def __init__(self) -> None:
        self._armed = True

    def disarm(self) -> None:
        """From here on, everything is being stopped."""
        self._armed = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._armed:
            self._armed = False
            raise Interrupted(number)
        say("Everything is being stopped; a few seconds more.")


@contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    # set and not inherited: a shell starts what it puts into the background with SIGINT ignored
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(request: RunRequest) -> int:
    """Do what was asked for and return the exit status: whether the run succeeded."""
    folder = None if request.synthetic or request.images is None else _read_images(request, request.images)
    drawn = (*SYNTHETIC_CLASSES, *TEXTURE_CLASSES)
    if request.synthetic and not set(request.settings.classes) <= set(drawn):
        raise WrongUse(f"synthetic images exist for {', '.join(drawn)} only: name a folder, IMAGES=…")
    keep_to_ones_own(os.environ, own_s3=request.own_s3)
    variables = {name: value for name, value in os.environ.items() if name.startswith("BCC_")}
    variables.setdefault("BCC_PARAMETERS", str(_write_parameters(request)))
    stack = LocalStack(
        request.home,
        bucket=request.bucket,
        own_s3=request.own_s3,
        variables=variables,
        ui_ports=[request.port] if request.port else range(UI_PORT, UI_PORT + 50),
        wait=False,
        say=say,
    )
    status: int | None = None
    with _signals() as signals:
        try:
            say(f"Starting Airflow and {'an S3 server' if request.own_s3 else 'looking into the bucket'} …")
            with stack:
                try:
                    if request.port is None and stack.port != UI_PORT:
                        say(f"Port {UI_PORT} is taken, so the UI will be on {stack.port}.")
                    _bring_images(request, stack, folder)
                    stack.wait_until_ready()
                    say(f"The UI is up: {stack.address}  (login: {login(stack, USER)})")
                    status = _one_run(request, stack)
                    if not request.once:
                        _stay_up(stack)
                finally:
                    signals.disarm()
                    _pause(stack)
                    say("Stopping …")
        except Interrupted as interruption:
            say("Stopped; nothing is lost, and `make run` goes on from here.")
            return 128 + interruption.number if status is None else status
    return 0 if status is None else status


def _write_parameters(request: RunRequest) -> Path:
    """Make the requested parameters this deployment's own, so that the nights after this run have them too."""
    path = request.home / "parameters.yaml"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lasting = {name: value for name, value in request.all_parameters.items() if name != "as_of"}
    path.write_text(json.dumps(lasting, indent=2) + "\n")  # a JSON object is YAML too
    return path


def _read_images(request: RunRequest, images: Path) -> ImageFolder:
    folder = read_folder(images, request.settings.classes)
    ignored = RetrainingConfig.resolve(request.parameters).ignored_names
    counts = folder.counts(ignored)
    masks = len(folder.files) - sum(counts.values())
    say(
        f"{images}: {', '.join(f'{count} {label}' for label, count in counts.items())}"
        + (f"; {masks} files like {', '.join(ignored)} are uploaded too, but not trained on" if masks else "")
    )
    for reason, count in folder.left_out.items():
        say(f"  left out: {count} x {reason}")
    return folder


def _bring_images(request: RunRequest, stack: LocalStack, folder: ImageFolder | None) -> None:
    if request.synthetic:
        say(
            f"No IMAGES given: {SYNTHETIC_PER_CLASS} synthetic images of each class, in a bucket of their own. "
            "No metric of this run says anything about real ones."
        )
        root = request.home / "synthetic_images"
        write_images(root, SYNTHETIC_PER_CLASS, classes=request.settings.classes)
        folder = read_folder(root, request.settings.classes)
    if folder is None:
        return
    done = upload(stack.store, stack.settings.images_prefix, folder, say)
    where = stack.store.uri(stack.settings.images_prefix)
    sent = f"{done.sent} files ({done.sent_bytes / 1e6:.0f} MB) in {done.seconds:.0f} s" if done.sent else "nothing"
    say(f"Uploaded {sent} to {where}; {done.kept} were there already.")
    if done.elsewhere:
        say(f"  {done.elsewhere} images are there that this folder does not have; they count too.")


def _one_run(request: RunRequest, stack: LocalStack) -> int:
    conf = request.all_parameters
    run_id = _take_up(stack, conf)
    if run_id is None:
        run_id = stack.api.trigger(DAG_ID, conf, run_id=f"local__{datetime.now(timezone.utc).strftime(_RUN_ID_TIME)}")
        given = ", ".join(f"{name}={value}" for name, value in conf.items()) or "all by default"
        say(f"Run {run_id}; parameters: {given}")
    # after the trigger: a run of a paused DAG only queues, so that it is there before a missed night's is synthetic for
    stack.api.set_paused(DAG_ID, False)
    prefixes = stack.settings
    watcher = RunWatcher(stack.api, DAG_ID, run_id, store=stack.store, artifacts_prefix=prefixes.artifacts_prefix, say=say)

    def watch() -> None:
        stack.supervisor.check()
        watcher()

    began = time.monotonic()
    ended = stack.api.wait_for_run(DAG_ID, run_id, _RUN_WITHIN, watch)
    watcher()
    say(f"The run ended after {(time.monotonic() - began) / 60:.1f} minutes: {ended['state']}")
    paths = watcher.paths
    if paths is not None:
        if stack.store.head(paths.document("gate.json")):
            for line in describe_verdict(stack.store, paths, prefixes.models_prefix):
                say(line)
        copy = fetch_run(stack.store, paths, request.home / "runs")
        say(f"Model, plots, report and documents: {copy}")
        say(f"  in the bucket: {stack.store.uri(paths.folder)}/")
    if ended["state"] != "success":
        for line in describe_failure(stack.api, DAG_ID, run_id, stack.airflow_home / "logs"):
            say(line)
    say(f"In the UI: {stack.address}/dags/{DAG_ID}/runs/{run_id}")
    return 0 if ended["state"] == "success" else 1


def _take_up(stack: LocalStack, conf: Mapping[str, Any]) -> str | None:
    """Return the run that an earlier start left unfinished, if it was asked for the same; another one is given up."""
    for left in stack.api.runs(DAG_ID, state=["queued", "running"]):
        run_id = str(left["dag_run_id"])
        if not run_id.startswith("local__"):
            continue
        if dict(left["conf"] or {}) == dict(conf):
            say(f"Taking up {run_id}, which was under way when the last start ended.")
            return run_id
        stack.api.call("PATCH", f"/dags/{DAG_ID}/dagRuns/{run_id}", json={"state": "failed"})
        say(f"{run_id} was under way with other parameters when the last start ended; it is given up.")
    return None


def _stay_up(stack: LocalStack) -> None:
    """Keep everything up until a signal; name runs that end meanwhile (nightly ones, or those started in the UI)."""
    say(f"It stays up until Ctrl-C. {login(stack, VIEWER)} is a read-only login.")
    told = {run["dag_run_id"]: run["state"] for run in stack.api.runs(DAG_ID)}
    while True:
        time.sleep(5)
        stack.supervisor.check()
        with suppress(AirflowError):  # the API server may be starting again
            for other in reversed(stack.api.runs(DAG_ID)):
                run_id, state = other["dag_run_id"], other["state"]
                if told.get(run_id) != state:
                    told[run_id] = state
                    say(f"{run_id}: {state}")


def _pause(stack: LocalStack) -> None:
    """Let the next start's run queue before the scheduler makes up for missed nights."""
    stack.api.patience = 0  # everything is about to end; a server that does not answer now need not
    with suppress(AirflowError):
        stack.api.set_paused(DAG_ID, True)


def login(stack: LocalStack, user: str) -> str:
    """Return a user and their password, for a person at a terminal; in a log, where the password is stored."""
    if sys.stdout.isatty():
        return f"{user} / {stack.passwords[user]}"
    return f"{user}, password in {stack.home / 'passwords.json'}"


def main(command: Callable[[], int], name: str) -> int:
    """Run a command; what goes wrong is one line, with exit status 1, and wrong use with 2."""
    try:
        return command()
    except (WrongUse, FolderError, ConfigError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (StackError, ProcessError, ServerError, AirflowError, BccError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = ": the disk is full; make room, or `make clean`" if full else f": {error.strerror}"
        print(f"{name}: {error.filename or 'writing'}{hint}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Interrupted):
        return 130
