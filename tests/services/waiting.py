"""Run a task that waits to its end at once: on a clock that only its sleeps move, with Airflow's own runner of triggers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor
from airflow.sdk.module_loading import import_string
from airflow.triggers.base import BaseTrigger, TriggerEvent

MOST_SLEEPS = 100


class Clock:
    """The clock of everything that waits for images. It stands still, however long the machine takes, but for sleeps.

    While somebody sleeps, the next of `meanwhile` happens.
    """

    def __init__(self) -> None:
        self._moment = datetime.now(timezone.utc)
        self._meanwhile: list[Callable[[], Any]] = []
        self._sleeps = 0

    def start(self, *meanwhile: Callable[[], Any]) -> None:
        """Set the clock later than everything that has happened, and say what is to happen from now on."""
        self._moment = max(self._moment, datetime.now(timezone.utc)) + timedelta(seconds=1)
        self._meanwhile, self._sleeps = list(meanwhile), 0

    def now(self) -> datetime:
        """The time."""
        return self._moment

    def sleep(self, seconds: float) -> None:
        """Move the clock on."""
        self._sleeps += 1
        assert self._sleeps <= MOST_SLEEPS, "this waits for something that never comes"
        self._moment += timedelta(seconds=seconds)
        if self._meanwhile:
            self._meanwhile.pop(0)()

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return self._moment.timestamp()

    async def sleep_in_the_triggerer(self, seconds: float) -> None:
        """As `sleep`, for a trigger."""
        self.sleep(seconds)

    def rule(self, patch: pytest.MonkeyPatch) -> None:
        """Be the clock of the sensor, of its trigger, and of what both go by."""
        for module in ("dataset.arrivals", "sensors.new_images", "triggers.new_images"):
            patch.setattr(f"bcc_ops.{module}.utc_now", self.now)
        patch.setattr("airflow.sdk.bases.sensor.time", self)
        loop = SimpleNamespace(sleep=self.sleep_in_the_triggerer, to_thread=asyncio.to_thread)
        patch.setattr("bcc_ops.triggers.new_images.asyncio", loop)


def run_to_end(task: Any, context: Any) -> Any:
    """What a task returns, and each of its triggers fires on the way."""
    go_on = partial(task.execute, context)
    while True:
        try:
            return go_on()
        except TaskDeferred as deferred:
            event = fire(deferred.trigger)
            arguments = {**(deferred.kwargs or {}), "event": event.payload}
            go_on = partial(task.resume_execution, deferred.method_name, arguments, context)


def fire(trigger: BaseTrigger) -> TriggerEvent:
    """The event of a trigger, made again from what is stored of it and run as `dag.test` runs it."""
    path, arguments = trigger.serialize()
    again = import_string(path)(**json.loads(json.dumps(arguments)))
    event = InProcessTestSupervisor.run_trigger_in_process(trigger=again, ti=SimpleNamespace(id=uuid4()))
    assert event is not None, "the trigger ended without an event"
    return event
