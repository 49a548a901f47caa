"""What the reports of large runs leave in the API server's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable

import psutil
import pytest
from fastapi.testclient import TestClient

from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import PLOTS
from tests.factories.runs import put_large_run
from tests.unit.report import samples

WARM_UP, TIMES = 5, 25
MOST_GROWN = 0.5
"""MiB a look: a run's documents are larger once they are read."""
RUN = f"/bcc/runs/bcc_retraining/{samples.RUN_ID}"


@pytest.fixture
def large_store(store: ObjectStore) -> ObjectStore:
    """A bucket with one large run."""
    put_large_run(store)
    return store


@pytest.mark.slow
def test_reports_of_large_runs_leave_no_trace(make_client: Callable[..., TestClient], large_store: ObjectStore) -> None:
    client = make_client(large_store)

    def look_at_it(times: int) -> float:
        """Open the report and all its plots; how much memory the process has afterwards."""
        for _ in range(times):
            page = client.get(f"{RUN}/report")
            assert page.status_code == 200
            assert page.text.count("<img") == len(PLOTS)
            for plot in PLOTS:
                assert client.get(f"{RUN}/plots/{plot}.png").status_code == 200
        gc.collect()
        return psutil.Process().memory_info().rss / 2**20

    before = look_at_it(WARM_UP)
    grown = look_at_it(TIMES) - before
    assert grown < TIMES * MOST_GROWN, f"{grown:.0f} MiB"
