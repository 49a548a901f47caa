"""Tell people when a run failed, and what the gate decided: by Airflow's own notifiers, to wherever a setting names.

Nothing is sent unless a setting asks for it, and a message that cannot be sent fails no task: Airflow logs it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from airflow.sdk import BaseNotifier

from bcc_ops.airflow_names import conf
from bcc_ops.config import Settings
from bcc_ops.operators.base import open_store
from bcc_ops.runs.documents import GateDocument

if TYPE_CHECKING:
    from airflow.sdk import Context

_FAILURE = ("{{ dag.dag_id }} failed", "The run {{ run_id }} failed{{ ': ' ~ reason if reason }}.")
_VERDICT = (
    "{{ dag.dag_id }}: {{ gate.verdict }}",
    "The gate's verdict on the run {{ run_id }} is {{ gate.verdict }}{{ ' (synthetic images)' if gate.synthetic }}. "
    "{{ gate.reasons | join(' ') }}",
)


def failure_notifiers(settings: Settings) -> list[BaseNotifier]:
    """Return a DAG's `on_failure_callback`: one notifier for each way that the settings name."""
    return _notifiers(settings, *_FAILURE)


def verdict_notifiers(settings: Settings) -> list[Callable[[Context], None]]:
    """Return the gate's `on_success_callback`: the verdict and its reasons, in each way that the settings name.

    They belong on the task whose XCom is the reference to `gate.json`.
    """
    # One callback per notifier: Airflow runs them separately, so one that fails does not silence the next.
    return [partial(_tell_verdict, settings, notifier) for notifier in _notifiers(settings, *_VERDICT)]


def _tell_verdict(settings: Settings, notifier: BaseNotifier, context: Context) -> None:
    task = context["ti"]
    gate = open_store(settings).load(GateDocument, task.xcom_pull(task_ids=task.task_id))
    notifier({**context, "gate": gate})


def _notifiers(settings: Settings, subject: str, sentence: str) -> list[BaseNotifier]:
    base_url = conf.get("api", "base_url", fallback="http://localhost:8080").rstrip("/")
    link = f"{base_url}/dags/{{{{ dag.dag_id }}}}/runs/{{{{ run_id | urlencode }}}}"
    text = f"{sentence} {link}"
    notifiers: list[BaseNotifier] = []
    if settings.slack_conn_id:
        from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier

        notifiers.append(SlackWebhookNotifier(slack_webhook_conn_id=settings.slack_conn_id, text=f"*{subject}*\n{text}"))
    if settings.smtp_conn_id and settings.notify_email:
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        body = f'<p>{{% filter escape %}}{sentence}{{% endfilter %}}</p><p><a href="{link}">{link}</a></p>'
        notifiers.append(
            SmtpNotifier(smtp_conn_id=settings.smtp_conn_id, to=settings.notify_email, subject=subject, html_content=body)
        )
    if settings.sns_topic_arn:
        from airflow.providers.amazon.aws.notifications.sns import SnsNotifier

        notifiers.append(
            SnsNotifier(aws_conn_id=settings.aws_conn_id, target_arn=settings.sns_topic_arn, subject=subject, message=text)
        )
    return notifiers
