"""The routes of the web app, and an address of each that a viewer may see."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from tests.unit.report import samples

Client = Callable[..., TestClient]
RUN = f"/bcc/runs/bcc_retraining/{samples.RUN_ID}"


def every_route() -> list[APIRoute]:
    """The app's routes, as the framework has them: one that is not an API route would have no guard, and fails here."""
    from bcc_ops.web.app import create_app

    routes = create_app().routes
    strangers = [route for route in routes if not isinstance(route, APIRoute)]
    assert not strangers, f"routes that no guard protects: {strangers}"
    return [route for route in routes if isinstance(route, APIRoute)]


def addresses(route: APIRoute, dag_id: str = "bcc_retraining", run_id: str = samples.RUN_ID) -> list[str]:
    """Addresses of a route that a viewer gets 200 from."""
    names = {"plots": ["roc.png"], "files": ["gate.json", "model.h5", "report.html"]}
    wanted = next((found for part, found in names.items() if f"/{part}/" in route.path), [""])
    return ["/bcc" + route.path.format(dag_id=dag_id, run_id=run_id, name=name) for name in wanted]


ROUTES = [address for route in every_route() if "{instance}" not in route.path for address in addresses(route)]
RUN_ROUTES = [route for route in every_route() if "{dag_id}" in route.path]
