"""Who may see a page, and who may see pictures of patients."""

from __future__ import annotations

import pytest

from bcc_ops.config import Settings
from bcc_ops.runs.object_store import ObjectStore
from tests.unit.report import samples
from tests.unit.web.routes import ROUTES, RUN, Client


@pytest.mark.parametrize("address", ROUTES)
def test_every_route_asks_for_a_login(make_client: Client, shared_store: ObjectStore, address: str) -> None:
    assert make_client(shared_store, role=None).get(address).status_code == 401
    stranger = make_client(shared_store, role=None, Authorization="Bearer made.up.token")
    assert stranger.get(address).status_code in (401, 403)


@pytest.mark.parametrize("address", ROUTES)
def test_every_route_asks_for_permission_on_the_dag(make_client: Client, shared_store: ObjectStore, address: str) -> None:
    assert make_client(shared_store, role="none").get(address).status_code == 403


def test_a_reader_without_pictures_sees_the_report_and_neither_pictures_nor_downloads(
    make_client: Client, filled_store: ObjectStore, settings: Settings
) -> None:
    filled_store.put(samples.PATHS.plot("missed_cancers"), b"\x89PNG\r\n\x1a\n")
    closed = Settings(bucket="bucket", pictures="triggerers")
    viewer, user = (make_client(filled_store, role=role, settings=closed) for role in ("viewer", "user"))
    page = viewer.get(f"{RUN}/report").text
    assert "Pictures of patients and downloads are left out" in page
    assert "plots/roc.png" in page and "missed_cancers.png" not in page and "files/" not in page
    for address in (f"{RUN}/plots/missed_cancers.png", f"{RUN}/files/gate.json", f"{RUN}/files/report.html"):
        assert viewer.get(address).status_code == 403
        assert user.get(address).status_code == 200
    assert "missed_cancers.png" in user.get(f"{RUN}/report").text
