"""What Airflow has in different places from 3.1 to 3.3, from one place. An Airflow that is too old is reported first."""

from __future__ import annotations

from airflow import __version__ as AIRFLOW_VERSION

from bcc_ops.installation import require_suitable

require_suitable(AIRFLOW_VERSION)  # before the imports below, which an older Airflow does not have

from airflow.sdk import DAG, Asset, Param, task  # noqa: E402

try:  # 3.2
    from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, conf
    from airflow.sdk.bases.branch import BranchMixIn
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
    from airflow.sdk.observability import stats

    if not hasattr(stats, "timing"):  # 3.2 has a class in that module, and no functions yet
        stats = stats.Stats
except ImportError:  # 3.1
    from airflow.configuration import conf  # type: ignore[no-redef]
    from airflow.exceptions import AirflowFailException, AirflowSkipException
    from airflow.providers.standard.operators.branch import BranchMixIn
    from airflow.stats import Stats as stats
    from airflow.timetables.assets import AssetOrTimeSchedule
    from airflow.timetables.trigger import CronTriggerTimetable

__all__ = [
    "AIRFLOW_VERSION",
    "DAG",
    "AirflowFailException",
    "AirflowSkipException",
    "Asset",
    "AssetOrTimeSchedule",
    "BranchMixIn",
    "CronTriggerTimetable",
    "Param",
    "conf",
    "stats",
    "task",
]
