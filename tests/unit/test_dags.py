"""The DAGs as the package makes them; what is in them is tested in tests/dags."""

from __future__ import annotations

import pytest

from bcc_ops.dags import all_dags, retraining_dag, set_champion_dag
from bcc_ops.exceptions import ConfigError


def test_a_deployment_with_one_model_has_two_dags_by_their_ids() -> None:
    assert {dag_id: dag.dag_id for dag_id, dag in all_dags().items()} == {
        "bcc_retraining": "bcc_retraining",
        "bcc_set_champion": "bcc_set_champion",
    }


@pytest.mark.parametrize("make", [retraining_dag, set_champion_dag])
def test_a_model_that_the_deployment_does_not_have_is_refused(make) -> None:
    with pytest.raises(ConfigError, match="textures"):
        make("textures")
