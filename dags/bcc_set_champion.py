"""Roll back to a version, promote one by hand, or release the hold."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.sdk import DAG, Param

from bcc_ops.operators.set_champion import SetChampionOperator

DOC = """
### Choose the model in use

*Trigger* it with a version (the page **Models** lists them) and a reason. The version's file is downloaded, its
sha256 compared, and asked about a few images in a process of its own; only then does the pointer move. A version that
fails this is refused, and the champion stays.

From then on the champion is **held**: a night's best verdict is *needs a person*, and the model that was replaced is refused
whenever its file comes again. Later models are also measured against the version that you chose: it is the **anchor**.
Trigger this DAG with *Release the hold* and a reason to let the nights replace the champion again.

Who asked, when and why stay in the history of the pointer. It also replaces a pointer that is damaged.
"""

with DAG(
    "bcc_set_champion",
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
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
    doc_md=DOC,
):
    SetChampionOperator(
        task_id="set_champion",
        version="{{ params.version }}",
        release_hold="{{ params.release_hold }}",
        reason="{{ params.reason }}",
        execution_timeout=timedelta(minutes=20),
    )
