#!/bin/bash
# Is the Airflow service in this container at work? The service is named by the argument or, without one, by the
# command that the container runs. Exit status 0: yes.
#
# `airflow jobs check` and Airflow's own Celery application take seconds of a core to import at each look. The same is
# asked here of the API server, which reads the same heartbeats, and of the broker.
set -euo pipefail

component=${1:-}
if [[ -z "$component" ]]; then
    command_line=$(tr '\0' ' ' </proc/1/cmdline)
    for candidate in api-server scheduler dag-processor triggerer worker; do
        [[ "$command_line" == *"$candidate"* ]] && component=$candidate
    done
fi

get() {
    curl --fail --silent --show-error --max-time 20 "$1"
}

heartbeat() {
    get "${AIRFLOW__CORE__EXECUTION_API_SERVER_URL%/execution/}/api/v2/monitor/health" | python -c '
import json, sys
state = json.load(sys.stdin)[sys.argv[1]]
print(state)
sys.exit(state["status"] != "healthy")' "$1"
}

case "$component" in
api-server) get "http://localhost:${AIRFLOW__API__PORT:-8080}/api/v2/version" ;;
scheduler) get "http://localhost:${AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT:-8974}/health" ;;
dag-processor) heartbeat dag_processor ;;
triggerer) heartbeat triggerer ;;
# A ping that names the node is answered by this worker and by no other one. The broker's URL holds its password: as an
# argument it would show in the host's process list.
worker) BROKER_URL="$AIRFLOW__CELERY__BROKER_URL" celery inspect ping --timeout 10 --destination "${CELERY_NODE:?names the Celery node}@${HOSTNAME}" ;;
*)
    echo "healthcheck.sh: no service is named, and the container's command names none" >&2
    exit 2
    ;;
esac
