#!/bin/bash
# Bring database, pools and bucket to where this version of the image needs them. Doing it again changes nothing.
set -euo pipefail
umask 077

airflow db migrate
airflow pools set "${BCC_GPU_POOL:-gpu}" "${GPU_SLOTS:?how many GPUs the workers have}" "One slot a GPU: how many trainings at once"
python "$(dirname "$0")/prepare_bucket.py"
