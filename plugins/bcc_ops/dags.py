"""The pipeline's DAGs. A file in Airflow's DAG folder makes them:

    from bcc_ops.dags import all_dags  # Airflow's DAGs

    globals().update(all_dags())

`bcc_retraining` retrains the classifier when new labelled images arrive:

wait_for_new_images → snapshot_dataset → download_images → inspect_images (one instance per slice, if many images are new)
    → check_images → split_dataset
    → train_model (one instance per fold) → combine_folds → evaluate_model → gate_model → approve_model → upload_model
                                                                         ↘ publish_plots

`bcc_set_champion` rolls back to a version, promotes one, or releases the hold.

If the deployment's file lists several instances, each has both: `bcc_retraining__<name>` and `bcc_set_champion__<name>`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from bcc_ops.airflow_names import (  # before what an older Airflow lacks
    DAG,
    AirflowFailException,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    Param,
    task,
)
from bcc_ops.config import Settings, form_fields
from bcc_ops.exceptions import ConfigError
from bcc_ops.instances import Instance, find_instance, read_instances
from bcc_ops.notifications import failure_notifiers, verdict_notifiers
from bcc_ops.operators.approve_model import ApproveModelOperator
from bcc_ops.operators.assets import champion_asset
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.operators.combine_folds import CombineFoldsOperator
from bcc_ops.operators.download_images import DownloadImagesOperator
from bcc_ops.operators.evaluate_model import EvaluateModelOperator
from bcc_ops.operators.gate_model import GateModelOperator
from bcc_ops.operators.inspect_images import InspectImagesOperator
from bcc_ops.operators.placement import gpu_placement, training_placement
from bcc_ops.operators.publish_plots import PublishPlotsOperator
from bcc_ops.operators.set_champion import SetChampionOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.operators.split_dataset import SplitDatasetOperator
from bcc_ops.operators.train_model import TrainModelOperator
from bcc_ops.operators.upload_model import UploadModelOperator
from bcc_ops.sensors.events import images_asset
from bcc_ops.sensors.new_images import NewImagesSensor

_BEGIN = datetime(2024, 1, 1, tzinfo=timezone.utc)

_RETRAINING_DOC = """
### {title}: retraining

Trains the {classes} classifier on the labelled images in S3, one model per fold, and makes one file of them.
Judges it against the model in use by out-of-fold predictions, and uploads it only if the gate approves.

| you want | do |
|---|---|
| to retrain now | *Trigger*: every parameter has a default; `as_of` picks a past moment |
| a quick look | *Trigger* with `folds` = 1: one training instead of five, and a fifth of the evidence |
| to see whether last night's model is better | the run's **Model report** tab |
| to know why it was not uploaded | the same page, first lines; or the log of `gate_model` |
| versions, the champion, the trend | **Models** in the navigation |
| to roll back | the DAG `{set_champion}` |
| a past period again | *Trigger → Backfill*: trains on the images as of each date, leaves the champion alone |

A run that found nothing new is *skipped* and says so; a rejected model is a *success* with a verdict.
Research software, not a medical device.
"""

_SET_CHAMPION_DOC = """
### {title}: choose the model in use

*Trigger* it with a version (the page **Models** lists them) and a reason. The version's file is downloaded, its
sha256 is compared, and the model is asked about a few images in a separate process; only then does the pointer move.
A version that fails this is refused, and the champion stays.

From then on the champion is **held**: the best verdict of a night is *needs a person*, and the replaced model is refused
whenever its file turns up again. Later models are also measured against the version that you chose: it is the **anchor**.
Trigger this DAG with *Release the hold* and a reason to let the nights replace the champion again.

The pointer's history keeps who asked, when and why. This DAG also replaces a damaged pointer.
"""


def all_dags() -> dict[str, DAG]:
    """Return the pipeline's DAGs by their ids."""
    return {**retraining_dags(), **set_champion_dags()}


def retraining_dags() -> dict[str, DAG]:
    """Return each instance's DAG that retrains, by its id."""
    return {instance.retraining_dag_id: _retraining_dag(instance) for instance in read_instances()}


def set_champion_dags() -> dict[str, DAG]:
    """Return each instance's DAG that moves the champion, by its id."""
    return {instance.set_champion_dag_id: _set_champion_dag(instance) for instance in read_instances()}


def retraining_dag(instance: str = "") -> DAG:
    """Return the DAG that retrains, evaluates, decides and uploads.

    A mistake in the deployment's file is shown on the DAG's page and breaks no import.

    Args:
        instance: its name, if the deployment has several.

    Raises:
        ConfigError: a `BCC_...` variable is invalid, or there is no such instance.
    """
    return _retraining_dag(find_instance(instance))


def set_champion_dag(instance: str = "") -> DAG:
    """Return the DAG that rolls back to a version, promotes one, or releases the hold. Arguments as `retraining_dag`."""
    return _set_champion_dag(find_instance(instance))


def _retraining_dag(instance: Instance) -> DAG:
    return _unless_refused(instance, instance.retraining_dag_id, "wait_for_new_images", _make_retraining_dag)


def _set_champion_dag(instance: Instance) -> DAG:
    return _unless_refused(instance, instance.set_champion_dag_id, "set_champion", _make_set_champion_dag)


def _unless_refused(instance: Instance, dag_id: str, first_task: str, make: Callable[[Instance], DAG]) -> DAG:
    """Return an instance's DAG; if its settings cannot be used, one whose only task says why.

    One instance's mistake thus stops no other, and is noticed: the night fails, and the notifiers say so.
    """
    if not instance.name:
        return make(instance)
    try:
        return make(instance)
    except ConfigError as error:
        return _refusing_dag(dag_id, first_task, str(error))


def _refusing_dag(dag_id: str, first_task: str, problem: str) -> DAG:
    settings = Settings.from_environment()
    with DAG(
        dag_id,
        schedule=CronTriggerTimetable(settings.schedule, timezone=settings.timezone) if first_task != "set_champion" else None,
        start_date=_BEGIN,
        catchup=False,
        max_active_runs=1,
        default_args={"owner": "ml-platform"},
        on_failure_callback=failure_notifiers(settings),
        doc_md=f"**No run can start.** {problem}",
    ) as dag:

        @task(task_id=first_task, execution_timeout=timedelta(minutes=5))  # type: ignore[untyped-decorator]
        def refuse() -> None:
            raise AirflowFailException(problem)

        refuse()
    return dag


def timetable_of(settings: Settings) -> CronTriggerTimetable:
    """Return when the nightly runs start.

    Raises:
        ConfigError: the schedule or the time zone is invalid.
    """
    try:
        ZoneInfo(settings.timezone)
        timetable = CronTriggerTimetable(settings.schedule, timezone=settings.timezone)
        timetable.validate()
    except Exception as error:  # Airflow and the libraries below it each raise their own
        where = f"{settings.schedule!r} in the time zone {settings.timezone!r}"
        raise ConfigError(f"schedule: {where} is invalid: {error}") from None
    return timetable


def _make_retraining_dag(instance: Instance) -> DAG:
    settings, deployment = instance.settings, instance.deployment
    fields = form_fields(deployment.values, settings.positive_class)
    doc = _RETRAINING_DOC.format(
        title=settings.title, classes=" / ".join(settings.classes), set_champion=instance.set_champion_dag_id
    )
    with DAG(
        instance.retraining_dag_id,
        schedule=AssetOrTimeSchedule(timetable=timetable_of(settings), assets=[images_asset(settings)]),
        start_date=_BEGIN,
        catchup=False,
        max_active_runs=1,
        default_args={
            "owner": "ml-platform",
            "retries": 2,
            "retry_delay": timedelta(seconds=30),
            "retry_exponential_backoff": True,
            "max_retry_delay": timedelta(minutes=10),
            "execution_timeout": timedelta(minutes=30),
            "instance": instance.name,
        },
        on_failure_callback=failure_notifiers(settings),
        params={parameter: Param(default, **schema) for parameter, (default, schema) in fields.items()},
        tags=[settings.tag, "retraining"],
        doc_md=f"**No run can start.** {deployment.problem}\n{doc}" if deployment.problem else doc,
    ) as dag:
        _retraining_tasks(settings)
    return dag


def _retraining_tasks(settings: Settings) -> None:
    wait_for_new_images = NewImagesSensor(task_id="wait_for_new_images", deferrable=True, execution_timeout=timedelta(hours=25))

    snapshot_dataset = SnapshotDatasetOperator(
        task_id="snapshot_dataset", arrivals=wait_for_new_images.output, inlets=[images_asset(settings)]
    )
    run = snapshot_dataset.output

    download_images = DownloadImagesOperator(task_id="download_images", run=run, execution_timeout=timedelta(hours=3))

    inspect_images = InspectImagesOperator.partial(
        task_id="inspect_images", run=run, execution_timeout=timedelta(hours=2)
    ).expand(part=download_images.output)

    check_images = CheckImagesOperator(
        task_id="check_images",
        run=run,
        execution_timeout=timedelta(hours=2),
        trigger_rule="none_failed_min_one_success",  # without slices, inspect_images is skipped
    )
    checks = check_images.output

    split_dataset = SplitDatasetOperator(task_id="split_dataset", run=run, checks=checks)
    split = split_dataset.output["split"]

    train_model = TrainModelOperator.partial(
        task_id="train_model",
        run=run,
        checks=checks,
        split=split,
        execution_timeout=timedelta(hours=12),
        **training_placement(settings),
    ).expand(fold=split_dataset.output)

    combine_folds = CombineFoldsOperator(task_id="combine_folds", run=run, split=split, folds=train_model.output)
    made = {"run": run, "checks": checks, "split": split, "training": combine_folds.output}

    evaluate_model = EvaluateModelOperator(
        task_id="evaluate_model",
        **made,
        execution_timeout=timedelta(hours=2),
        **gpu_placement(settings),
    )
    evaluation = evaluate_model.output

    gate_model = GateModelOperator(
        task_id="gate_model",
        run=run,
        split=split,
        evaluation=evaluation,
        approve_task_id="approve_model",
        upload_task_id="upload_model",
        always=["publish_plots"],
        on_success_callback=verdict_notifiers(settings),
    )
    gate = gate_model.output

    publish_plots = PublishPlotsOperator(task_id="publish_plots", **made, evaluation=evaluation, gate=gate)

    approve_model = ApproveModelOperator(task_id="approve_model", run=run, gate=gate, execution_timeout=None)

    upload_model = UploadModelOperator(
        task_id="upload_model",
        outlets=[champion_asset(settings)],
        **made,
        evaluation=evaluation,
        gate=gate,
        trigger_rule="none_failed_min_one_success",
    )

    wait_for_new_images >> snapshot_dataset >> download_images >> [inspect_images, check_images]
    inspect_images >> check_images >> split_dataset
    split_dataset >> train_model >> combine_folds >> evaluate_model >> gate_model >> approve_model >> upload_model
    gate_model >> upload_model
    evaluate_model >> publish_plots << gate_model


def _make_set_champion_dag(instance: Instance) -> DAG:
    settings = instance.settings
    with DAG(
        instance.set_champion_dag_id,
        schedule=None,
        start_date=_BEGIN,
        catchup=False,
        max_active_runs=1,
        default_args={"owner": "ml-platform", "retries": 1, "retry_delay": timedelta(seconds=30), "instance": instance.name},
        params={
            "version": Param(
                "",
                type="string",
                title="Version",
                description="For example 20261122T020000Z-1a2b3c4d5e6f. Empty: only release the hold.",
            ),
            "release_hold": Param(
                False,
                type="boolean",
                title="Release the hold",
                description="Let runs replace the champion again. Without a version, the champion stays and only the hold ends.",
            ),
            "reason": Param("", type="string", title="Reason", description="Kept in the pointer's history.", maxLength=1000),
        },
        tags=[settings.tag, "models"],
        doc_md=_SET_CHAMPION_DOC.format(title=settings.title),
    ) as dag:
        SetChampionOperator(
            task_id="set_champion",
            outlets=[champion_asset(settings)],
            version="{{ params.version }}",
            release_hold="{{ params.release_hold }}",
            reason="{{ params.reason }}",
            execution_timeout=timedelta(minutes=20),
        )
    return dag
