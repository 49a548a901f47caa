#!/bin/bash
# Is the Airflow service in this container at work? The service is named by the argument or, without one, by the
# command that the container runs. Exit status 0: yes.
set -euo pipefail

component=${1:-}
if [[ -z "$component" ]]; then
    command_line=$(tr '\0' ' ' </proc/1/cmdline)
    for candidate in api-server scheduler dag-processor triggerer worker; do
        [[ "$command_line" == *"$candidate"* ]] && component=$candidate
    done
fi

case "$component" in
api-server) curl --fail --silent --show-error --output /dev/null "http://localhost:${AIRFLOW__API__PORT:-8080}/api/v2/version" ;;
scheduler) curl --fail --silent --show-error --output /dev/null "http://localhost:${AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT:-8974}/health" ;;
dag-processor) airflow jobs check --local --job-type DagProcessorJob ;;
triggerer) airflow jobs check --local --job-type TriggererJob ;;
# A ping that names the node is answered by this worker and by no other one.
worker) celery --app airflow.providers.celery.executors.celery_executor.app inspect ping --timeout 20 \
    --destination "${2:-${CELERY_NODE:?names the Celery node}}@${HOSTNAME}" ;;
*)
    echo "healthcheck.sh: no service is named, and the container's command names none" >&2
    exit 2
    ;;
esac
