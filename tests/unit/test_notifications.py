"""Who is told what, by notifiers that talk to servers of this test."""

from __future__ import annotations

import email
import email.policy
import json
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from airflow.sdk import DAG
from moto import mock_aws
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.sns.models import sns_backends

from bcc_ops import notifications
from bcc_ops.config import Settings
from bcc_ops.notifications import failure_notifiers, verdict_notifiers
from bcc_ops.runs.documents import GateDocument, Reference
from bcc_ops.runs.object_store import ObjectStore
from tests.services.serving import serving

EVERYWHERE = Settings(
    slack_conn_id="slack_test",
    smtp_conn_id="smtp_test",
    notify_email="ward@example.org",
    sns_topic_arn="arn:aws:sns:eu-central-1:123456789012:models",
)
REASON = "Malignant sensitivity 0.71 is below 0.75 & <lower> than before."


@contextmanager
def slack() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that takes Slack's incoming webhooks; its address and what was sent to it."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/services/", received


def context(**more: Any) -> dict[str, Any]:
    return {"dag": DAG("bcc_retraining", schedule=None), "run_id": "manual__2026-11-22T02:00:00+00:00", **more}


@pytest.fixture
def gated(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The context of a gate that has rejected a model, with its document in the store."""
    gate = GateDocument(
        verdict="rejected",
        reasons=(REASON,),
        rules=(),
        as_of=datetime(2026, 11, 22, tzinfo=timezone.utc),
        synthetic=True,
        champion_version=None,
        champion_etag=None,
        held_out_digest="",
        holdout_reuse=1,
        evaluation=Reference.of("k", b""),
    )
    reference = store.save("artifacts/runs/20261122T020000Z__a/gate.json", gate).to_xcom()
    monkeypatch.setattr(notifications, "open_store", lambda settings: store)
    task = SimpleNamespace(task_id="gate_model", xcom_pull=lambda task_ids: reference if task_ids == "gate_model" else None)
    return context(ti=task)


def test_nobody_is_told_where_no_setting_names_a_way() -> None:
    assert failure_notifiers(Settings()) == []
    assert verdict_notifiers(Settings()) == []


def test_each_setting_adds_its_way() -> None:
    kinds = [type(notifier).__name__ for notifier in failure_notifiers(EVERYWHERE)]
    assert kinds == ["SlackWebhookNotifier", "SmtpNotifier", "SnsNotifier"]
    assert len(verdict_notifiers(EVERYWHERE)) == 3


def test_verdict_reaches_slack_with_reason_and_link(gated: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with slack() as (address, received):
        connection = {"conn_type": "slackwebhook", "host": address, "password": "T0/B0/x"}
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_TEST", json.dumps(connection))
        (tell,) = verdict_notifiers(Settings(slack_conn_id="slack_test"))
        tell(gated)  # type: ignore[arg-type]
    (message,) = received
    assert message["text"].startswith("*bcc_retraining: rejected*\n")
    assert REASON in message["text"] and "(synthetic images)" in message["text"]
    assert message["text"].endswith("/dags/bcc_retraining/runs/manual__2026-11-22T02%3A00%3A00%2B00%3A00")


def test_failure_reaches_slack_with_what_airflow_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with slack() as (address, received):
        connection = {"conn_type": "slackwebhook", "host": address, "password": "T0/B0/x"}
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_TEST", json.dumps(connection))
        (tell,) = failure_notifiers(Settings(slack_conn_id="slack_test"))
        tell(context(reason="task_failure"))
    assert "The run manual__2026-11-22T02:00:00+00:00 failed: task_failure." in received[0]["text"]


class SmtpHandler(socketserver.StreamRequestHandler):
    """As much of SMTP as it takes to receive a mail."""

    def handle(self) -> None:
        self.answer("220 test")
        while line := self.rfile.readline().decode().strip().upper():
            if line == "DATA":
                self.answer("354 go on")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.mails.append(email.message_from_bytes(b"".join(lines), policy=email.policy.default))  # type: ignore[attr-defined]
            self.answer("221 bye" if line == "QUIT" else "250 ok")
            if line == "QUIT":
                return

    def answer(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@contextmanager
def mail_server() -> Iterator[tuple[int, list[email.message.EmailMessage]]]:
    """A mail server; its port and the mails that it received."""
    server = socketserver.TCPServer(("127.0.0.1", 0), SmtpHandler)
    server.mails = []  # type: ignore[attr-defined]
    with serving(server):
        yield server.server_address[1], server.mails  # type: ignore[attr-defined]


def test_verdict_reaches_a_mailbox_as_html_in_which_nothing_of_a_document_is_markup(
    gated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with mail_server() as (port, mails):
        extra = {"from_email": "airflow@example.org", "disable_ssl": True, "disable_tls": True}
        connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_TEST", json.dumps(connection))
        (tell,) = verdict_notifiers(Settings(smtp_conn_id="smtp_test", notify_email="ward@example.org"))
        tell(gated)  # type: ignore[arg-type]
    (mail,) = mails
    assert (mail["To"], mail["Subject"]) == ("ward@example.org", "bcc_retraining: rejected")
    body = mail.get_body(("html",)).get_content()  # type: ignore[union-attr]
    assert "below 0.75 &amp; &lt;lower&gt; than" in body and "<lower>" not in body


def test_verdict_reaches_a_topic(gated: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "extra": {"region_name": "eu-central-1"}}))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        topic = boto3.client("sns", region_name="eu-central-1").create_topic(Name="models")["TopicArn"]
        (tell,) = verdict_notifiers(Settings(sns_topic_arn=topic))
        tell(gated)  # type: ignore[arg-type]
        ((_, message, subject, *_),) = sns_backends[DEFAULT_ACCOUNT_ID]["eu-central-1"].topics[topic].sent_notifications
    assert subject == "bcc_retraining: rejected"
    assert REASON in message
