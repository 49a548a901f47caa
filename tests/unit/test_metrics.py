"""What goes to StatsD, as a StatsD server receives it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
from airflow.sdk.observability import stats

from bcc_ops import metrics
from bcc_ops.runs.documents import GateDocument, Reference, RuleResult


class StatsdServer:
    """Listens on a port of loopback and hands out the datagrams that came, as text."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(5)

    def received(self, count: int) -> list[str]:
        return sorted(self.socket.recv(4096).decode() for _ in range(count))


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[StatsdServer]:
    from airflow.sdk._shared.observability.metrics import stats as backend
    from airflow.sdk._shared.observability.metrics.statsd_logger import SafeStatsdLogger
    from statsd import StatsClient

    server = StatsdServer()
    client = StatsClient("127.0.0.1", server.socket.getsockname()[1], prefix="airflow")
    monkeypatch.setattr(backend, "_backend", SafeStatsdLogger(client))
    yield server
    client.close()
    server.socket.close()


def gate(verdict: str, metric: float | None) -> GateDocument:
    rule = RuleResult(rule="balanced_accuracy", passed=True, applies=True, value=metric, threshold=0.7, sentence="…")
    return GateDocument(
        verdict=verdict,  # type: ignore[arg-type]
        reasons=(),
        rules=(rule,),
        as_of=datetime(2026, 11, 22, tzinfo=timezone.utc),
        synthetic=False,
        champion_version=None,
        champion_etag=None,
        held_out_digest="",
        holdout_reuse=1,
        evaluation=Reference.of("k", b""),
    )


def test_verdict_is_counted_and_its_figures_reported(statsd: StatsdServer) -> None:
    metrics.verdict(gate("approved", 0.8125))
    assert statsd.received(2) == ["airflow.bcc.gate.balanced_accuracy:0.8125|g", "airflow.bcc.verdict.approved:1|c"]


def test_missing_figure_is_not_reported_as_nought(statsd: StatsdServer) -> None:
    metrics.verdict(gate("rejected", None))
    metrics.new_images({"images": 7, "change": None})
    assert statsd.received(2) == ["airflow.bcc.new_images:7|g", "airflow.bcc.verdict.rejected:1|c"]


def test_new_images_are_those_that_differ(statsd: StatsdServer) -> None:
    metrics.new_images({"images": 100, "change": {"added": 3, "changed": 1, "removed": 2, "examples": {}}})
    assert statsd.received(1) == ["airflow.bcc.new_images:6|g"]


def test_an_instance_has_metrics_of_its_own(statsd: StatsdServer) -> None:
    metrics.verdict(gate("approved", None), "textures")
    metrics.new_images({"images": 7, "change": None}, "textures")
    assert statsd.received(2) == ["airflow.bcc.textures.new_images:7|g", "airflow.bcc.textures.verdict.approved:1|c"]


def test_stage_is_timed_even_where_it_fails(statsd: StatsdServer) -> None:
    with pytest.raises(ZeroDivisionError), metrics.stage("train_model"):
        _ = 1 / 0
    (line,) = statsd.received(1)
    assert line.startswith("airflow.bcc.stage.train_model:") and line.endswith("|ms")


def test_metrics_go_nowhere_where_none_are_switched_on() -> None:
    stats.incr("bcc.verdict.approved")
    metrics.verdict(gate("approved", 0.5))
