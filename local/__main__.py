"""python -m local run | stop | s3 | images: what `make run`, `make stop` and `make s3` call."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from bcc_ops.dataset.synthetic import SYNTHETIC_CLASSES, TEXTURE_CLASSES, write_images
from local.processes import PRIVATE, Supervisor, stop_owner
from local.run import RunRequest, WrongUse, main, run, say
from local.stack import LocalStack, keep_to_ones_own


def _home() -> Path:
    return Path(os.environ.get("LOCAL") or ".local").absolute()


def _run() -> int:
    os.umask(PRIVATE)
    return run(RunRequest.from_environment(os.environ))


def _stop() -> int:
    home = _home()
    ended = stop_owner(home) if home.exists() else []
    print(f"Ended: {', '.join(ended)}." if ended else "Nothing was running.")
    return 0


def _s3() -> int:
    """Return the S3 server alone, until a signal."""
    os.umask(PRIVATE)
    request = RunRequest.from_environment(os.environ)
    keep_to_ones_own(os.environ, own_s3=True)
    stack = LocalStack(request.home, bucket=request.settings.bucket, say=say)
    stack.supervisor = Supervisor(request.home, say)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        stack.start_store()
        buckets = [bucket["Name"] for bucket in stack.s3.client().list_buckets()["Buckets"]]
        say(f"{stack.s3.endpoint} with the buckets {', '.join(buckets)}; its keys are in {request.home / 'secrets.json'}.")
        for name, value in {**stack.s3.aws_variables, "AIRFLOW_CONN_AWS_DEFAULT": stack.s3.airflow_connection}.items():
            print(f"export {name}={shlex.quote(value)}", flush=True)  # without the time, to be pasted into a shell
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        stack.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="the stack, and one run; reads IMAGES, ONCE, PRESET, PARAMS and PORT from the environment")
    commands.add_parser("stop", help="end a run that is up, or what a killed one left")
    commands.add_parser("s3", help="the S3 server alone, on what earlier runs left in it")
    images = commands.add_parser("images", help="write synthetic images into one folder per class")
    images.add_argument("folder", type=Path)
    images.add_argument("--per-class", type=int, default=30, help="images of each class (30)")
    images.add_argument(
        "--classes", default=",".join(SYNTHETIC_CLASSES), help=f"others are drawn too: {','.join(TEXTURE_CLASSES)}"
    )
    images.add_argument("--seed", type=int, default=20261122, help="the same seed draws the same images")
    return parser


if __name__ == "__main__":
    arguments = _parser().parse_args()

    def _images() -> int:
        classes = [name.strip() for name in arguments.classes.split(",") if name.strip()]
        try:
            files = write_images(arguments.folder, arguments.per_class, arguments.seed, classes)
        except ValueError as error:
            raise WrongUse(str(error)) from None
        print(f"{len(files)} synthetic images in {arguments.folder}")
        return 0

    commands = {"run": _run, "stop": _stop, "s3": _s3, "images": _images}
    sys.exit(main(commands[arguments.command], f"make {arguments.command}"))
