"""Decides as of which moment a run looks at the images, and whether there is anything new to look at."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseSensorOperator, PokeReturnValue

from bcc_ops import exceptions
from bcc_ops.dataset.arrivals import ArrivalCheck, ArrivalWatch, utc_now
from bcc_ops.operators.base import BccOperator, airflow_errors, logical_moment, run_kind
from bcc_ops.triggers.new_images import NewImagesTrigger, queued_runs

if TYPE_CHECKING:
    from airflow.sdk import Context

TRIGGERER_LATENESS = timedelta(minutes=15)
"""How long after the end of the waiting time the triggerer may answer before the task fails."""

GAVE_WAY = "Nothing is new, and another run was waiting to start: this one gave way."


class NewImagesSensor(BccOperator, BaseSensorOperator):
    """Wait for new images, by the rules of the run's kind.

    A nightly run waits until the images differ from those of the last assessed run and have settled. It is skipped if
    that does not happen within `wait_for_images_minutes`, or if nothing is new while another run is queued: only one run goes
    at a time, and a person who asked for one should not wait for images that may never come. A run that an event started
    waits only for them to settle. A manual run takes the images as of its `as_of` or now, a backfill those as of its
    logical date; neither waits for images, a backfill only for the backfills of earlier dates that are running.

    Pushes what it saw: `{as_of, images, digest, change, sentence}`.

    Args:
        deferrable: wait in the triggerer, without a worker; otherwise by poking.
        poke_interval: seconds between two looks. While nothing is new, the pauses grow; see `ArrivalWatch.pause`.
    """

    def __init__(self, *, deferrable: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable

    def work(self, context: Context) -> Any:
        """Look, and wait if the run's kind does."""
        kind = run_kind(context)
        arrivals = self._arrival_check(context).saved(context["run_id"])
        if arrivals is None and kind == "manual":
            arrivals = self._arrival_check(context).on_request(self.parameters_of(context).as_of)
        elif arrivals is None and kind == "backfill":
            self._let_earlier_days_end(context)
            arrivals = self._arrival_check(context).for_backfill(logical_moment(context))
        if arrivals is not None:
            self.log.info(arrivals.sentence)
            return arrivals.to_xcom()
        self._watch = self._arrival_check(context).begin(patient=kind == "nightly", poke_interval=self.poke_interval)
        if self.deferrable:
            return self._look_or_defer(context, self._watch)
        return BaseSensorOperator.execute(self, context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once."""
        another_run_waits = self._watch.idle and queued_runs(self.dag_id) > 0
        if another_run_waits:
            self._watch.hurry()
        arrivals = self._arrival_check(context).advance(self._watch)
        if arrivals is None and self._watch.idle and not self._watch.failures and another_run_waits:
            raise exceptions.NothingNew(GAVE_WAY)
        return PokeReturnValue(arrivals is not None, arrivals and arrivals.to_xcom())

    def resume(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Resume after the trigger: look again, since the trigger only says that it is worth it."""
        with airflow_errors():
            if "error" in event:
                raise getattr(exceptions, event["error"], exceptions.StorageError)(event["message"])
            if event.get("gives_way"):
                raise exceptions.NothingNew(GAVE_WAY)
            return self._look_or_defer(context, ArrivalWatch.from_dict(event["watch"]))

    def resume_backfill(self, context: Context, event: Any) -> Any:
        """Look whether the backfill of the earlier date has ended."""
        with airflow_errors():
            return self.work(context)

    def _let_earlier_days_end(self, context: Context) -> None:
        """Airflow runs the days of a backfill side by side, but each day is compared with the assessed one before it."""
        while (earlier := context["ti"].get_previous_dagrun(state="running")) and earlier.run_type == "backfill":
            self.log.info("Waiting for the end of %s, the backfill of an earlier date", earlier.run_id)
            if self.deferrable:
                # Look again now and then: a run that is deleted meanwhile never ends.
                pause = TimeDeltaTrigger(timedelta(seconds=self.poke_interval))
                timeout = timedelta(seconds=self.poke_interval) + TRIGGERER_LATENESS
                self.defer(trigger=pause, method_name="resume_backfill", timeout=timeout)
            time.sleep(self.poke_interval)

    def _look_or_defer(self, context: Context, watch: ArrivalWatch) -> Any:
        arrival_check = self._arrival_check(context)
        arrivals = arrival_check.advance(watch)
        if arrivals is not None:
            self.log.info(arrivals.sentence)
            return arrivals.to_xcom()
        left = max(watch.deadline - utc_now(), timedelta())
        self.log.info("Waiting in the triggerer until %s", f"{watch.deadline:%Y-%m-%d %H:%M:%S} UTC at the latest")
        return self.defer(
            trigger=NewImagesTrigger(
                aws_conn_id=self.settings.aws_conn_id,
                bucket=self.settings.bucket,
                rules=[list(part) if isinstance(part, tuple) else part for part in arrival_check.rules],
                versioned=self.store.is_versioned(),
                gives_way_in=self.dag_id,
                watch=watch.to_dict(),
            ),
            method_name="resume",
            timeout=left + TRIGGERER_LATENESS,
        )

    def _arrival_check(self, context: Context) -> ArrivalCheck:
        return ArrivalCheck(self.store, self.settings, self.parameters_of(context))
