"""The pipeline's DAGs. A file in Airflow's DAG folder makes them:

    from bcc_ops.dags import all_dags  # Airflow's DAGs

    globals().update(all_dags())

`bcc_retraining` retrains the classifier when new labelled images arrive:

wait_for_new_images → snapshot_dataset → download_images → check_images → split_dataset
    → train_model (one instance per fold) → combine_folds → evaluate_model → gate_model → approve_model → upload_model
                                                                         ↘ publish_plots

`bcc_set_champion` rolls back to a version, promotes one, or releases the hold.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from bcc_ops.airflow_names import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param  # before what an older Airflow lacks
from bcc_ops.config import DeploymentParameters, Settings, form_fields
from bcc_ops.notifications import failure_notifiers, verdict_notifiers
from bcc_ops.operators.approve_model import ApproveModelOperator
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.operators.combine_folds import CombineFoldsOperator
from bcc_ops.operators.download_images import DownloadImagesOperator
from bcc_ops.operators.evaluate_model import EvaluateModelOperator
from bcc_ops.operators.gate_model import GateModelOperator
from bcc_ops.operators.placement import gpu_placement
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
### Breast-ultrasound retraining

Trains the benign / malignant / normal classifier on the labelled images in S3, one model per fold, and makes one file of them.
Judges it against the model in use by what each fold's model answers about its own fold, and uploads it only if the gate approves.

| you want | do |
|---|---|
| to retrain now | *Trigger*: every parameter has a default; `as_of` picks a past moment |
| a quick look | *Trigger* with `folds` = 1: one training instead of five, and a fifth of the evidence |
| to see whether last night's model is better | the run's **Model report** tab |
| to know why it was not uploaded | the same page, first lines; or the log of `gate_model` |
| versions, the champion, the trend | **Models** in the navigation |
| to roll back | the DAG `bcc_set_champion` |
| a past period again | *Trigger → Backfill*: trains on the images as of each date, leaves the champion alone |

A run that found nothing new is *skipped* and says so; a rejected model is a *success* with a verdict.
Research software, not a medical device.
"""

_SET_CHAMPION_DOC = """
### Choose the model in use

*Trigger* it with a version (the page **Models** lists them) and a reason. The version's file is downloaded, its
sha256 compared, and asked about a few images in a process of its own; only then does the pointer move. A version that
fails this is refused, and the champion stays.

From then on the champion is **held**: a night's best verdict is *needs a person*, and the model that was replaced is refused
whenever its file comes again. Later models are also measured against the version that you chose: it is the **anchor**.
Trigger this DAG with *Release the hold* and a reason to let the nights replace the champion again.

Who asked, when and why stay in the history of the pointer. It also replaces a pointer that is damaged.
"""


def all_dags() -> dict[str, DAG]:
    """Return the pipeline's DAGs by their ids."""
    return {dag.dag_id: dag for dag in (retraining_dag(), set_champion_dag())}


def retraining_dag() -> DAG:
    """Return the DAG that retrains, evaluates, decides and uploads.

    A mistake in the deployment's file of parameters is on the DAG's page and breaks no import.

    Raises:
        ConfigError: a `BCC_...` variable has a value that cannot be.
    """
    settings = Settings.from_environment()
    deployment = DeploymentParameters.read(settings.parameters)
    with DAG(
        "bcc_retraining",
        schedule=AssetOrTimeSchedule(
            timetable=CronTriggerTimetable(settings.schedule, timezone=settings.timezone), assets=[images_asset(settings)]
        ),
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
        },
        on_failure_callback=failure_notifiers(settings),
        params={parameter: Param(default, **schema) for parameter, (default, schema) in form_fields(deployment.values).items()},
        tags=["breast-ultrasound", "retraining"],
        doc_md=f"**No run can start.** {deployment.problem}\n{_RETRAINING_DOC}" if deployment.problem else _RETRAINING_DOC,
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

    check_images = CheckImagesOperator(task_id="check_images", run=run, execution_timeout=timedelta(hours=2))
    checks = check_images.output

    split_dataset = SplitDatasetOperator(task_id="split_dataset", run=run, checks=checks)
    split = split_dataset.output["split"]

    train_model = TrainModelOperator.partial(
        task_id="train_model",
        run=run,
        checks=checks,
        split=split,
        execution_timeout=timedelta(hours=12),
        **gpu_placement(settings),
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
        **made,
        evaluation=evaluation,
        gate=gate,
        trigger_rule="none_failed_min_one_success",
    )

    wait_for_new_images >> snapshot_dataset >> download_images >> check_images >> split_dataset
    split_dataset >> train_model >> combine_folds >> evaluate_model >> gate_model >> approve_model >> upload_model
    gate_model >> upload_model
    evaluate_model >> publish_plots << gate_model


def set_champion_dag() -> DAG:
    """Return the DAG that rolls back to a version, promotes one, or releases the hold."""
    with DAG(
        "bcc_set_champion",
        schedule=None,
        start_date=_BEGIN,
        catchup=False,
        max_active_runs=1,
        default_args={"owner": "ml-platform", "retries": 1, "retry_delay": timedelta(seconds=30)},
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
        tags=["breast-ultrasound", "models"],
        doc_md=_SET_CHAMPION_DOC,
    ) as dag:
        SetChampionOperator(
            task_id="set_champion",
            version="{{ params.version }}",
            release_hold="{{ params.release_hold }}",
            reason="{{ params.reason }}",
            execution_timeout=timedelta(minutes=20),
        )
    return dag
