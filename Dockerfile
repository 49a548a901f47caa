# The image that every Airflow service of docker-compose.yaml runs: `--target cpu` (the default) or `--target gpu`.
#
#   docker build --target cpu -t bcc-retraining:cpu .
#   docker build --target gpu -t bcc-retraining:gpu .
#
# AIRFLOW_VERSION is the version that requirements.txt pins; tests/unit/deploy compares them.
ARG AIRFLOW_VERSION=3.3.2
ARG PYTHON_VERSION=3.11
# "@sha256:…" pins the image that was tested; without it, the tag decides.
ARG AIRFLOW_DIGEST=

# "slim" holds Airflow, the PostgreSQL client, curl and dumb-init, and no compiler; every Python package comes from the lock.
FROM apache/airflow:slim-${AIRFLOW_VERSION}-python${PYTHON_VERSION}${AIRFLOW_DIGEST} AS base

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PYTHONPATH=/opt/airflow/plugins \
    PYTHONDONTWRITEBYTECODE=1 \
    TF_CPP_MIN_LOG_LEVEL=2

# Wheels only: a package that would have to be compiled ends the build here, and no build tool is ever needed.
COPY requirements.txt /opt/airflow/deploy/requirements.txt
RUN pip install --no-cache-dir --only-binary :all: --require-hashes -r /opt/airflow/deploy/requirements.txt

COPY deploy/ /opt/airflow/deploy/
COPY plugins/ /opt/airflow/plugins/
COPY dags/ /opt/airflow/dags/

USER 0
# A new named volume takes over owner and mode of the folder that it is mounted on.
RUN install --directory --owner airflow --group 0 --mode 0700 /opt/airflow/cache /opt/airflow/logins && \
    # All configuration comes from the environment. Without this file Airflow would write one, and the containers are read-only.
    install --owner airflow --group 0 --mode 0600 /dev/null /opt/airflow/airflow.cfg
USER 50000

# The default backbone's ImageNet weights come with a locked package; a worker fetches nothing from a hub. That they are
# there and whole is checked now and not in the first night.
RUN python /opt/airflow/deploy/check_image.py

HEALTHCHECK --interval=30s --timeout=30s --start-period=120s --retries=3 CMD ["/opt/airflow/deploy/healthcheck.sh"]

FROM base AS gpu
# TensorFlow's CUDA libraries, as wheels; the driver is the host's, passed in by the NVIDIA container toolkit.
RUN pip install --no-cache-dir --only-binary :all: --require-hashes -r /opt/airflow/deploy/requirements-gpu.txt

# For Amazon SageMaker, which mounts /opt/ml for root and starts the training itself: docs/cloud.md.
FROM gpu AS sagemaker
# hadolint ignore=DL3002
USER 0

FROM base AS cpu
