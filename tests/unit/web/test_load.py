"""How long a large run's report takes, and what 200 of them leave in memory."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

import psutil
import pytest
from fastapi.testclient import TestClient

from bcc_ops.run_paths import PLOTS
from bcc_ops.storage import ObjectStore
from tests.unit.report import samples

IMAGES = 10_000
RUN = f"/bcc/runs/bcc_retraining/{samples.RUN_ID}"


@pytest.fixture
def large_store(store: ObjectStore) -> ObjectStore:
    """A run with 10,000 validation images, of 50,000, with thousands of refused, alike and left-out ones."""
    keys = [f"images/benign/site-0042/patient-{number // 3:06d}/image ({number}).png" for number in range(50_000)]
    refused = tuple({"key": key, "reason": "damaged", "detail": "image file is truncated"} for key in keys[:2500])
    groups = tuple(
        {"group": f"g{n}", "keys": tuple(keys[n : n + 2]), "labels": ("benign",), "how": ("pixels",)} for n in range(0, 10_000, 2)
    )
    left_out = tuple({"key": key, "reason": "near copy of images on both sides"} for key in keys[:1000])
    run = samples.whole_run(
        images=IMAGES,
        validation__json=samples.validation_document(checked=50_000, refused=refused, groups=groups),
        class_weights__json=samples.class_weights_document(left_out=left_out),
        history__csv=samples.history_csv(samples.epochs(200)),
    )
    for name, content in run.items():
        store.put(samples.PATHS.document(name), content)
    for plot in PLOTS:
        store.put(samples.PATHS.plot(plot), os.urandom(300_000))
    return store


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_large_report_opens_within_two_seconds_and_200_of_them_leave_no_trace(
    make_client: Callable[..., TestClient], large_store: ObjectStore
) -> None:
    client = make_client(large_store)

    def open_report() -> float:
        started = time.perf_counter()
        page = client.get(f"{RUN}/report")
        taken = time.perf_counter() - started
        assert page.status_code == 200
        assert page.text.count("<img") == len(PLOTS)
        return taken

    def look_at_it() -> None:
        open_report()
        for plot in PLOTS:
            assert client.get(f"{RUN}/plots/{plot}.png").status_code == 200

    look_at_it()
    warm = min(open_report() for _ in range(3))
    assert warm < 2, f"{warm:.2f} s"
    gc.collect()
    before = psutil.Process().memory_info().rss
    for _ in range(20):
        look_at_it()
    for _ in range(180):
        open_report()
    gc.collect()
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    assert grown < 100, f"{grown:.0f} MiB"
