#!/bin/bash
# Run a component of Airflow (the arguments) so that what it writes is for its own user alone. The image's entry point sets
# another umask, so this one is set after it.
umask 077
exec airflow "$@"
