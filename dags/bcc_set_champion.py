"""Roll back to a version, or promote one by hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.sdk import DAG, Param

from bcc_ops.operators.set_champion import SetChampionOperator

DOC = """
### Choose the model in use

*Trigger* it with a version (the page **Models** lists them) and a reason. The version's file is downloaded, its
sha256 compared, and asked about a few images in a process of its own; only then does the pointer move. A version that
fails this is refused, and the champion stays.

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
        "version": Param("", type="string", title="Version", description="For example 20261122T020000Z-1a2b3c4d5e6f."),
        "reason": Param("", type="string", title="Reason", description="Kept in the pointer's history.", maxLength=1000),
    },
    tags=["breast-ultrasound", "models"],
    doc_md=DOC,
):
    SetChampionOperator(
        task_id="set_champion",
        version="{{ params.version }}",
        reason="{{ params.reason }}",
        execution_timeout=timedelta(minutes=20),
    )
