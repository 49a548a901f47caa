"""Say where the tasks that want a GPU run: a pool that counts the GPUs, a queue, and a pod with a GPU limit.

One answer for every executor. LocalExecutor heeds the pool alone, CeleryExecutor the queue too, KubernetesExecutor the
pod override. Several GPUs are a pool with several slots: one task holds one slot and one GPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from bcc_ops.config import Settings
from bcc_ops.exceptions import ConfigError

GPU_RESOURCE = "nvidia.com/gpu"


def gpu_placement(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for an operator that trains or predicts.

    Args:
        settings: `gpu_pool` names the pool; `gpu_queue`, if set, the Celery queue that GPU workers serve;
            `gpu_limit` above 0 asks the KubernetesExecutor for a pod with that many GPUs.

    Raises:
        ConfigError: a GPU limit is set, but the Kubernetes client is not installed.
    """
    placement: dict[str, Any] = {"pool": settings.gpu_pool}
    if settings.gpu_queue:
        placement["queue"] = settings.gpu_queue
    if settings.gpu_limit:
        placement["executor_config"] = {"pod_override": _gpu_pod(settings.gpu_limit)}
    return placement


def training_placement(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for the operator that trains: if SageMaker does, any worker can ask it, and the pool counts jobs.

    Args:
        settings: as `gpu_placement` says.

    Raises:
        ConfigError: as `gpu_placement` says.
    """
    return {"pool": settings.gpu_pool} if settings.train_on == "sagemaker" else gpu_placement(settings)


def _gpu_pod(gpus: int) -> Any:
    if find_spec("kubernetes") is None:
        raise ConfigError(
            "BCC_GPU_LIMIT is set, but the Kubernetes client is not installed: install "
            "apache-airflow-providers-cncf-kubernetes, or set the limit to 0 outside Kubernetes"
        )
    from kubernetes.client import models as k8s  # type: ignore[import-untyped]

    # A GPU can only be limited, not merely requested; "base" is the container that Airflow runs the task in.
    resources = k8s.V1ResourceRequirements(limits={GPU_RESOURCE: str(gpus)})
    tolerations = [k8s.V1Toleration(key=GPU_RESOURCE, operator="Exists", effect="NoSchedule")]
    return k8s.V1Pod(spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base", resources=resources)], tolerations=tolerations))
