"""Where the GPU tasks run, and that it survives the serialisation on its way to a Kubernetes executor."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from airflow.sdk import DAG, BaseOperator
from airflow.serialization.serialized_objects import DagSerialization

from bcc_ops.config import Settings
from bcc_ops.exceptions import ConfigError
from bcc_ops.operators import placement
from bcc_ops.operators.placement import gpu_placement, training_placement

REPOSITORY = Path(__file__).resolve().parents[3]


def test_one_machine_needs_the_pool_alone() -> None:
    assert gpu_placement(Settings(gpu_pool="gpu")) == {"pool": "gpu"}


def test_celery_gets_the_queue_too() -> None:
    assert gpu_placement(Settings(gpu_pool="a100", gpu_queue="gpu")) == {"pool": "a100", "queue": "gpu"}


def test_a_task_that_lets_sagemaker_train_needs_no_gpu_and_its_pool_counts_jobs() -> None:
    settings = Settings(gpu_pool="a100", gpu_queue="gpu", gpu_limit=1)
    assert training_placement(settings) == gpu_placement(settings)
    assert training_placement(settings.model_copy(update={"train_on": "sagemaker"})) == {"pool": "a100"}


# Airflow itself still uses a name that pathspec has deprecated.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_pod_override_survives_serialisation_with_its_gpu_limit() -> None:
    with DAG("serialised", schedule=None) as dag:
        BaseOperator(task_id="train_model", **gpu_placement(Settings(gpu_limit=2)))

    restored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    pod = restored.get_task("train_model").executor_config["pod_override"].to_dict()

    (container,) = pod["spec"]["containers"]
    assert (container["name"], container["resources"]["limits"]) == ("base", {"nvidia.com/gpu": "2"})
    assert pod["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_gpu_limit_without_the_kubernetes_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="apache-airflow-providers-cncf-kubernetes"):
        gpu_placement(Settings(gpu_limit=1))


def test_helm_values_set_what_the_code_reads_and_ask_for_a_gpu() -> None:
    values = yaml.safe_load((REPOSITORY / "deploy" / "helm-values.yaml").read_text())
    environment = {variable["name"]: variable["value"] for variable in values["env"]}
    ours = {name for name in environment if name.startswith("BCC_")}
    assert ours <= {f"BCC_{name.upper()}" for name in Settings.model_fields}
    placement = gpu_placement(Settings.from_environment(environment))
    assert placement["executor_config"]["pod_override"].spec.containers[0].resources.limits == {"nvidia.com/gpu": "1"}
    assert values["airflowVersion"] == version("apache-airflow")
    mounted = {mount["mountPath"] for mount in values["volumeMounts"]}
    assert environment["BCC_CACHE_DIR"] in mounted
