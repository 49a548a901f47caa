"""The pipeline's own metrics, sent wherever Airflow's go: StatsD or OpenTelemetry, switched on in Airflow's settings.

bcc.new_images          gauge    images that were added, changed or removed since the last assessed run
bcc.stage.<stage>       timing   how long a task's work took, however it ended
bcc.verdict.<verdict>   counter  decisions of the gate
bcc.gate.<rule>         gauge    the metric that a rule of the gate looked at

"bcc" comes after Airflow's own prefix: `airflow.bcc.new_images`. If the deployment has several models, the instance comes after
it: `airflow.bcc.textures.new_images`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

from bcc_ops.airflow_names import stats
from bcc_ops.runs.documents import GateDocument

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_.-]")


def _name(instance: str, metric: str) -> str:
    return f"bcc.{instance}.{metric}" if instance else f"bcc.{metric}"


@contextmanager
def stage(name: str, instance: str = "") -> Iterator[None]:
    """Time a task's work, however it ends.

    Args:
        name: the stage, as its task is called.
        instance: whose; "" for the only one.
    """
    begin = monotonic()
    try:
        yield
    finally:
        stats.timing(_name(instance, f"stage.{name}"), (monotonic() - begin) * 1000)


def new_images(arrivals: Mapping[str, Any], instance: str = "") -> None:
    """Report how many images differ from the last assessed run's: all of them if there was none.

    Args:
        arrivals: the sensor's XCom, with `images` and `change`.
    """
    change = arrivals["change"]
    differing = arrivals["images"] if change is None else sum(change[kind] for kind in ("added", "changed", "removed"))
    stats.gauge(_name(instance, "new_images"), differing)


def verdict(gate: GateDocument, instance: str = "") -> None:
    """Count a decision of the gate, and report each metric that it looked at; a missing metric is not reported."""
    stats.incr(_name(instance, f"verdict.{gate.verdict}"))
    for rule in gate.rules:
        if rule.value is not None:
            stats.gauge(_name(instance, f"gate.{_NOT_IN_NAMES.sub('_', rule.rule)}"), rule.value)
