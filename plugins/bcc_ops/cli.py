"""`python -m bcc_ops check | evaluate | predict | models | trace | doctor`: the pipeline's parts on folders and files.

Only `doctor` needs Airflow; only `doctor`, `models` and `trace` need S3. Exit status: 0 done, 1 a finding or a failure, told
in one line, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.metadata_table import printable
from bcc_ops.exceptions import BccError, ConfigError, DataError, ModelError, OutOfResources
from bcc_ops.instances import find_instance
from bcc_ops.runs.documents import ChecksDocument, Estimate, EvaluationDocument, ModelDocument, name_fold, parse_document

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bcc_ops.models.classifier import Classifier
    from bcc_ops.models.registry import ModelRegistry
    from bcc_ops.report.trace import OutOfFoldAnswer, Trace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None for the process' own.

    Returns:
        The exit status.
    """
    given = parser().parse_args(arguments)
    try:
        return int(given.command(given))
    except BccError as error:
        _complain(error)
        return 1
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _complain(problem: object) -> None:
    """Say what is wrong, in one line. Names in it may come from others, and must not control the terminal."""
    print(f"error: {printable(str(problem))}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Return the commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m bcc_ops", description="Retraining of an image classifier, on folders and files."
    )
    commands = top.add_subparsers(title="commands", required=True)

    check = commands.add_parser("check", help="check and split a labelled folder, as a run would")
    check.add_argument("folder", type=Path, metavar="DIR", help="a folder with one folder of images per class")
    _json_file(check, "write the result as a document")
    check.add_argument(
        "--sheets",
        type=Path,
        metavar="DIR",
        help="draw contact sheets of doubtful pairs and of content findings into this folder",
    )
    _parameters(check)
    check.set_defaults(command=check_command)

    evaluate = commands.add_parser("evaluate", help="evaluate any model on any labelled folder: an external test")
    evaluate.add_argument("model", type=Path, metavar="MODEL.h5", help="the model; a model.json beside it says what it answers")
    evaluate.add_argument("folder", type=Path, metavar="DIR", help="a folder with one folder of images per class")
    _json_file(evaluate, "write the evaluation as a document")
    _answers_and_input(evaluate)
    _parameters(evaluate)
    _instance(evaluate)
    evaluate.set_defaults(command=evaluate_command)

    predict = commands.add_parser("predict", help="ask a model about images")
    predict.add_argument("model", type=Path, metavar="MODEL.h5", help="the model; a model.json beside it says what it answers")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    predict.add_argument("--json", action="store_true", help="print one JSON object per image, each on a line")
    _answers_and_input(predict)
    _instance(predict)
    predict.set_defaults(command=predict_command)

    models = commands.add_parser("models", help="list the versions and the champion of the configured bucket (BCC_BUCKET, …)")
    models.add_argument("--json", action="store_true", help="print one JSON object")
    _instance(models)
    models.set_defaults(command=models_command)

    trace = commands.add_parser("trace", help="list every place that holds an image: to erase it, or to see what trained on it")
    trace.add_argument("image", metavar="KEY", help="the image's key in the configured bucket, or the sha256 of its content")
    trace.add_argument("--json", action="store_true", help="print one JSON object")
    _instance(trace)
    trace.set_defaults(command=trace_command)

    doctor = commands.add_parser("doctor", help="say what is wrong with this deployment, and which command fixes it")
    _json_file(doctor, "write the checks")
    _instance(doctor)
    doctor.set_defaults(command=doctor_command)
    return top


def _json_file(command: argparse.ArgumentParser, purpose: str) -> None:
    command.add_argument("--json", type=Path, metavar="OUT", help=f"{purpose} (JSON)")


def _answers_and_input(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--classes", metavar="A,B,C", help="the classes in the order of the model's answers, if no model.json names them"
    )
    command.add_argument(
        "--keep-aspect",
        action=argparse.BooleanOptionalAction,
        help="pad images to the square with black, or squeeze them: as the model was trained, if no model.json says it",
    )


def _instance(command: argparse.ArgumentParser) -> None:
    command.add_argument("--instance", default="", metavar="NAME", help="the model, if the deployment's file lists several")


def _parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PARAM=VALUE",
        help="a run's parameter, such as min_side=32; may be repeated",
    )


def _config(given: argparse.Namespace) -> RetrainingConfig:
    pairs = [pair.partition("=") for pair in given.set]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise ConfigError(f"--set {wrong[0]}: PARAM=VALUE is needed")
    return RetrainingConfig.resolve({name: value for name, _, value in pairs})


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


# check ----------------------------------------------------------------------------------------------------------------


def check_command(given: argparse.Namespace) -> int:
    """Check a folder; exit with 1 if it cannot be split, so that a script notices."""
    from rich.console import Console

    from bcc_ops.dataset.folder_check import check_folder, check_tables

    document = check_folder(given.folder, _config(given), sheets=given.sheets)
    if given.json:
        _write(given.json, document.to_json())
    console = Console()
    for table in check_tables(document):
        console.print(table)
    return 1 if document.split_problem else 0


# evaluate -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownModel:
    """A model file and what is known about it. `document` is its model.json; None if there is none."""

    path: Path
    classes: tuple[str, ...]
    keep_aspect: bool
    document: ModelDocument | None

    @property
    def threshold(self) -> float | None:
        """Return the operating point's threshold; None if it is unknown."""
        return self.document.operating_point.threshold if self.document else None


def known_model(path: Path, classes: str | None, keep_aspect: bool | None, instance: str = "") -> KnownModel:
    """Find out what a model file sees and answers, from the model.json beside it or from `--keep-aspect` and `--classes`.

    Raises:
        ModelError: there is no such file, model.json is about another one, or nothing says how its images become squares.
        ArtifactError: model.json is damaged.
    """
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file")
    beside = path.with_name("model.json")
    named = tuple(name.strip() for name in classes.split(",") if name.strip()) if classes else None
    if not beside.is_file():
        if keep_aspect is None:
            raise ModelError(
                f"no model.json beside {path} says how to fit an image: give --keep-aspect if it was trained on images that "
                "were padded to the square, or --no-keep-aspect if they were squeezed, as in the notebook"
            )
        return KnownModel(path, named or find_instance(instance).settings.classes, keep_aspect, None)
    document = parse_document(ModelDocument, beside.read_bytes(), str(beside))
    if hashlib.sha256(path.read_bytes()).hexdigest() != document.model.sha256:
        raise ModelError(
            f"{beside} is about another file than {path} (sha256 differs); keep the two files of one version together"
        )
    if named and named != document.classes:
        raise ModelError(f"--classes says {', '.join(named)}, but {beside} says {', '.join(document.classes)}")
    if keep_aspect not in (None, document.keep_aspect):
        options = {True: "--keep-aspect", False: "--no-keep-aspect"}
        raise ModelError(f"{beside} says {options[document.keep_aspect]}, not {options[not document.keep_aspect]}: leave it out")
    return KnownModel(path, document.classes, document.keep_aspect, document)


def _load(model: KnownModel) -> Classifier:
    from bcc_ops.models.classifier import load_classifier

    with _native_stderr_closed():
        classifier = load_classifier(model.path, keep_aspect=model.keep_aspect)
    if classifier.classes_count != len(model.classes):
        raise ModelError(
            f"{model.path} answers for {classifier.classes_count} classes, not for {', '.join(model.classes)}; "
            "say which with --classes"
        )
    return classifier


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Suppress what TensorFlow's C++ prints on loading, whatever its log level: an error here is one line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def evaluate_command(given: argparse.Namespace) -> int:
    """Evaluate a model on a labelled folder; images that a run would refuse are refused here too, and counted."""
    from bcc_ops.evaluation.comparison import EvaluationPlan
    from bcc_ops.evaluation.evaluate import evaluate_folder
    from bcc_ops.evaluation.folder import usable_images
    from bcc_ops.evaluation.metrics import Threshold

    config = _config(given)
    model = known_model(given.model, given.classes, given.keep_aspect, given.instance)
    positive = model.document.positive_class if model.document else find_instance(given.instance).settings.positive_class
    if positive not in model.classes:
        raise ConfigError(f"BCC_POSITIVE_CLASS: must be one of {', '.join(model.classes)}, got {positive}")
    point = model.document.operating_point if model.document else None
    reason = None if model.threshold is not None else "no model.json beside the model names a threshold"
    threshold = Threshold(
        model.threshold,
        point.wanted_sensitivity if point else config.wanted_sensitivity,
        point.chosen_on if point else "nothing",
        reason,
    )
    classifier = _load(model)
    found = usable_images(given.folder, config, model.classes)
    plan = EvaluationPlan(
        model.classes, positive, config.wanted_sensitivity, found.grouping, smallest_slice=config.min_subgroup_images
    )
    document = evaluate_folder(
        classifier,
        found.images,
        plan,
        by=found.by,
        synthetic=found.checks.synthetic > 0,
        digest=found.digest,
        threshold=threshold,
    )
    if given.json:
        _write(given.json, document.to_json())
    _print_evaluation(document, found.checks)
    return 0


def _print_evaluation(document: EvaluationDocument, checks: ChecksDocument) -> None:
    from rich.console import Console
    from rich.table import Table

    from bcc_ops.dataset.folder_check import metadata_tables, warning_lines

    model = document.challenger
    console = Console()
    refused, conflicts = len(checks.refused), sum(len(group.keys) for group in checks.conflicts)
    counted = f"{model.images} images in {model.groups} {document.grouping}s"
    table = Table(title=f"{counted}, {refused} refused, {conflicts} left out as near-duplicates under two labels")
    for column in ("metric", "value", "95 % interval"):
        table.add_column(column)
    point = model.operating_point
    rows = {
        "balanced accuracy": model.balanced_accuracy,
        "accuracy": model.accuracy,
        "macro AUC": model.macro_auc,
        f"{document.positive_class} sensitivity at the threshold": point.sensitivity,
        f"{document.positive_class} specificity at the threshold": point.specificity,
        **{f"{name} sensitivity": of_class.sensitivity for name, of_class in model.per_class.items()},
        "calibration slope": model.calibration.slope,
    }
    for name, estimate in rows.items():
        table.add_row(name, *_cells(estimate))
    console.print(table)
    console.print(_subgroup_table(document))
    for told in (*(metadata_tables(checks.metadata) if checks.metadata else ()), *warning_lines(checks)):
        console.print(told)


def _subgroup_table(document: EvaluationDocument) -> RenderableType:
    from rich.table import Table
    from rich.text import Text  # plain text: brackets in a value are not markup

    if document.slices_unavailable:
        return Text(f"subgroups: {document.slices_unavailable}")
    positive, groups = document.positive_class, f"{document.grouping}s"
    table = Table("by", "value", "images", f"{positive} {groups}", "sensitivity", "specificity", title="Subgroups")
    for part in document.slices:
        cells = (f"{part.positive_sensitivity:.2f}", f"{part.positive_specificity:.2f}")
        table.add_row(Text(part.by), Text(part.value), str(part.images), str(part.positive_groups), *cells)
    return table


def _cells(estimate: Estimate) -> tuple[str, str]:
    if estimate.value is None:
        return "-", str(estimate.reason)
    interval = "" if estimate.low is None or estimate.high is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
    return f"{estimate.value:.3f}", interval


# predict --------------------------------------------------------------------------------------------------------------


def predict_command(given: argparse.Namespace) -> int:
    """Ask a model about images. Report files that are not images, answer for the others; 1 if there was such a file."""
    from bcc_ops.dataset.decoding import decode_rgb

    model = known_model(given.model, given.classes, given.keep_aspect, given.instance)
    readable: list[Path] = []
    for path in given.images:
        try:
            decode_rgb(path)
            readable.append(path)
        except DataError as error:
            _complain(f"{path}: {error}")
        except OutOfResources as error:  # names the file
            _complain(error)
    if readable:
        for path, probabilities in zip(readable, _load(model).predict(readable)):
            _print_answer(answer(model, path, probabilities), given.json)
    return 0 if len(readable) == len(given.images) else 1


def answer(model: KnownModel, path: Path, probabilities: Sequence[float]) -> dict[str, Any]:
    """Return what a model says about one image, as plain JSON values."""
    by_class = {name: round(float(value), 6) for name, value in zip(model.classes, probabilities)}
    found: dict[str, Any] = {
        "image": str(path),
        "class": max(by_class, key=lambda name: by_class[name]),
        "probabilities": by_class,
    }
    document = model.document
    if document and document.operating_point.threshold is not None:
        found["threshold"] = document.operating_point.threshold
        found[f"called_{document.positive_class}"] = by_class[document.positive_class] >= document.operating_point.threshold
    if document:
        found["version"] = document.version
        found["synthetic"] = document.synthetic
    return found


def _print_answer(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    probabilities = ", ".join(f"{name} {value:.3f}" for name, value in found["probabilities"].items())
    called = next(
        (f"; {name.replace('_', ' ')}: {'yes' if value else 'no'}" for name, value in found.items() if "called_" in name), ""
    )
    synthetic = " (a model of synthetic images)" if found.get("synthetic") else ""
    print(printable(f"{found['image']}: {found['class']} ({probabilities}){called}{synthetic}"))


# models ---------------------------------------------------------------------------------------------------------------


def models_command(given: argparse.Namespace) -> int:
    """List the versions of the configured bucket, and which is the champion."""
    from bcc_ops.models.registry import ModelRegistry

    settings = find_instance(given.instance).settings
    registry = ModelRegistry(_store(settings), settings.models_prefix)
    pointer = registry.read_pointer()
    champion = pointer.champion if pointer else None
    listed = [_listed(registry, version) for version in registry.versions()]
    if given.json:
        document = champion.model_dump(mode="json") if champion else None
        print(json.dumps({"champion": document, "versions": listed}, indent=2, ensure_ascii=False))
    else:
        _print_models(listed, champion.version if champion else None)
    if pointer and pointer.problem:
        _complain(pointer.problem)
        return 1
    return 0


def _store(settings: Settings) -> Any:
    import boto3

    from bcc_ops.runs.object_store import ObjectStore

    store = ObjectStore(boto3.client("s3"), settings.bucket)
    store.check()
    return store


def _listed(registry: ModelRegistry, version: str) -> dict[str, Any]:
    try:
        document = registry.model(version)
        evaluation = registry.store.load(EvaluationDocument, document.evaluation)
    except BccError as error:
        return {"version": version, "problem": str(error)}
    return {
        "version": version,
        "as_of": document.as_of.isoformat(),
        "run": document.run,
        "architecture": document.architecture,
        "synthetic": document.synthetic,
        "balanced_accuracy": evaluation.challenger.balanced_accuracy.value,
        "sensitivity": evaluation.challenger.operating_point.sensitivity.value,
    }


def _print_models(listed: Sequence[dict[str, Any]], champion: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not listed:
        print("There are no versions yet.")
        return
    table = Table()
    for column in ("", "version", "architecture", "balanced accuracy", "sensitivity", ""):
        table.add_column(column, no_wrap=column == "version", min_width=8 if not column else None)
    for version in reversed(listed):
        metrics = (version.get("balanced_accuracy"), version.get("sensitivity"))
        note = version.get("problem") or ("synthetic" if version["synthetic"] else "")
        table.add_row(
            "champion" if version["version"] == champion else "",
            Text(printable(version["version"])),
            Text(printable(version.get("architecture", "-"))),
            *("-" if metric is None else f"{metric:.3f}" for metric in metrics),
            Text(printable(note)),
        )
    Console().print(table)


# trace ----------------------------------------------------------------------------------------------------------------


def trace_command(given: argparse.Namespace) -> int:
    """List every place that holds an image; 1 if there is none, so that a script sees that nothing is left."""
    from bcc_ops.report.trace import trace_image

    settings = find_instance(given.instance).settings
    trace = trace_image(_store(settings), settings, given.image)
    if given.json:
        print(json.dumps(trace.to_json(), indent=2, ensure_ascii=False))
    elif trace.found:
        _print_trace(trace)
    if not trace.found:
        print(printable(f"neither s3://{settings.bucket} nor this worker's cache has a trace of {given.image}"), file=sys.stderr)
    return 0 if trace.found else 1


def _print_trace(trace: Trace) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(printable(f"{trace.wanted}: {len(trace.digests)} content(s) {', '.join(sorted(trace.digests))}")))
    tables: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = {
        "In the bucket": (
            ("key", "version", "written", "bytes"),
            [
                (o.key, o.version_id or "-", f"{o.written:%Y-%m-%d %H:%M:%S}", "deleted" if o.delete_marker else str(o.size))
                for o in trace.objects
            ],
        ),
        "Runs": (
            ("run", "fold", "out-of-fold answer", "predicted", "pictured in (and in report.html)", "checkpoints", ""),
            [
                (
                    *(run.folder, "\n".join(name_fold(fold) for fold in run.folds) or "-"),
                    *("\n".join(map(_spoken_answer, run.answers)) or "-", "yes" if run.predicted else "-"),
                    *(", ".join(run.pictures) or "-", str(len(run.checkpoints)), run.problem or ""),
                )
                for run in trace.runs
            ],
        ),
        "Models": (("version", "how", ""), [(m.version, m.how, "champion" if m.champion else "") for m in trace.models]),
        "What workers share of the image checks": (("key", "version"), [*trace.shards]),
        "In this worker's cache": (("file",), [(path,) for path in trace.cached]),
    }
    for title, (columns, rows) in tables.items():
        if rows:
            table = Table(*columns, title=title, title_justify="left")
            for row in rows:
                table.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
            console.print(table)
    console.print("docs/security.md says how to erase each of these.")


def _spoken_answer(answer: OutOfFoldAnswer) -> str:
    return ", ".join(f"{name} {probability:.3f}" for name, probability in answer.probabilities.items())


# doctor ---------------------------------------------------------------------------------------------------------------


def doctor_command(given: argparse.Namespace) -> int:
    """Check the deployment from where this runs; 1 if something stops a run."""
    from bcc_ops.doctor import examine, has_problem

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # what matters of Airflow's log is one of the checks
        from bcc_ops.deployment_facts import gather

        facts = gather(given.instance)
    checks = examine(facts)
    problem = has_problem(checks)
    if given.json:
        told = {"instance": given.instance, "problem": problem, "checks": [check.to_json() for check in checks]}
        _write(given.json, json.dumps(told, indent=2, ensure_ascii=False).encode())
    for check in checks:
        print(f"{check.state:<12} {check.name:<22} {check.sentence}")
        if check.command:
            print(f"{'':<35} > {check.command}")
    return 1 if problem else 0
