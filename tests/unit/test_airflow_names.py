from __future__ import annotations

import importlib
import sys

import airflow
import pytest

from bcc_ops.exceptions import ConfigError


def test_an_airflow_that_is_too_old_is_named_before_anything_that_it_lacks_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow, "__version__", "2.11.2")
    monkeypatch.setitem(sys.modules, "airflow.sdk", None)  # what Airflow 2 has not
    for name in ("bcc_ops.airflow_names", "bcc_ops.dags"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match=r"this is Airflow 2\.11\.2, and bcc_ops needs 3\.1 to 3\.3: upgrade Airflow"):
        importlib.import_module("bcc_ops.dags")
