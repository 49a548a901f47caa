"""What the plugin mounts: the pages, or a page that says that they are closed.

Who may see a page is decided with modules of Airflow that are not public (`airflow_internals`). In an Airflow that they were
not tested with, or that lacks one of them, nobody sees any page, and everything else of Airflow works.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from bcc_ops.airflow_names import AIRFLOW_VERSION
from bcc_ops.installation import airflow_too_new
from bcc_ops.report.page import CONTENT_SECURITY_POLICY, render_message

log = logging.getLogger(__name__)

URL_PREFIX = "/bcc"


def pages_app() -> FastAPI:
    """Return the app to be mounted under `URL_PREFIX`."""
    problem = airflow_too_new(AIRFLOW_VERSION)
    if problem is None:
        try:
            from bcc_ops.web.app import create_app

            return create_app()
        except Exception as error:  # whatever does not fit: no page without its guard, and no API server that does not start
            log.exception("the pages do not fit this Airflow")
            problem = f"the pages do not fit Airflow {AIRFLOW_VERSION} ({type(error).__name__}: {error})"
    log.error("The pages under %s are closed: %s", URL_PREFIX, problem)
    return _closed_app(problem)


def _closed_app(problem: str) -> FastAPI:
    app = FastAPI(title="Models", docs_url=None, redoc_url=None, openapi_url=None)
    sentences = [f"{problem[0].upper()}{problem[1:]}.", "The DAGs work. Reports are in each run's folder of the bucket."]
    page = render_message("These pages are closed", sentences, None)
    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-store"}

    @app.get("/{path:path}")
    async def closed(path: str) -> HTMLResponse:
        """Every address."""
        return HTMLResponse(page, 503, headers)

    return app
