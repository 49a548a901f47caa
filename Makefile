# The commands of this project. `make` alone lists them. None needs root.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHON VENV

.DEFAULT_GOAL := help
.PHONY: help setup run format test test-fast check e2e e2e-stories e2e-kinds e2e-verdicts e2e-ui e2e-celery e2e-instances e2e-faults matrix bench stop clean s3 env lock lock-gpu

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## make the environment (.venv) from the locked requirements
	@$(PYTHON) local/set_up.py

run: setup ## run the pipeline here: IMAGES=folder ONCE=1 PRESET=transfer|notebook PARAMS="epochs=8 ..." PORT=8080
	@$(BIN)/python -m local run

test: setup ## the tests, without the end-to-end ones
	@$(BIN)/python -m pytest -m "not e2e" -n 3 --dist loadfile $(PYTEST)

test-fast: setup ## the edit loop, under a minute: the tests that need no S3 server, no metadata database, no TensorFlow
	@$(BIN)/python -m pytest -m "not e2e and not slow and not services and not tensorflow" -n 2 --dist loadfile tests/architecture tests/dags tests/unit $(PYTEST)

format: setup ## format the code and sort its imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --select I --fix .

check: setup ## format, lint, vocabulary, types, contracts, compose file, Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/architecture/vocabulary.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v docker-compose >/dev/null; then \
	  scratch=$$(mktemp -d) && $(BIN)/python -m local.make_env $$scratch >/dev/null && \
	  docker-compose --env-file $$scratch/.env config -q && rm -r $$scratch && echo 'docker-compose config -q: good'; \
	else echo 'docker-compose.yaml is not checked: there is no docker-compose (Debian: apt install docker-compose)'; fi
	$(BIN)/hadolint Dockerfile

FIRST_RUNS := tests/e2e/test_first_run.py tests/e2e/test_make_run.py tests/integration/test_recorded_runs.py
e2e: setup ## the real stack, end to end, on some 90 images
	@$(BIN)/python -m pytest -m e2e -s $(FIRST_RUNS) $(PYTEST)

# e2e-kinds waits for the minutes of its schedule, and leaves the two cores to two others. The files start in this order: by
# their number of tests, as is the default, the longest story would start last. A worker is given its next file two tests before
# it is done with one, so the shortest file comes last.
e2e-stories: setup ## e2e, e2e-kinds, e2e-verdicts, e2e-ui and e2e-celery, three stacks side by side
	@$(BIN)/python -m pytest -m e2e -n 3 --dist loadfile --no-loadscope-reorder $(addprefix tests/e2e/test_,run_kinds.py verdicts.py make_run.py ui.py celery.py first_run.py) tests/integration/test_recorded_runs.py $(PYTEST)

e2e-kinds: setup ## nightly, event, manual and backfill runs over three batches of images
	@$(BIN)/python -m pytest -m e2e -s tests/e2e/test_run_kinds.py $(PYTEST)

e2e-verdicts: setup ## approved, rejected, unanswered and backfilled models, and a roll-back
	@$(BIN)/python -m pytest -m e2e -s tests/e2e/test_verdicts.py $(PYTEST)

e2e-ui: setup ## the UI in a browser: needs Debian's chromium
	@$(BIN)/python -m pytest -m e2e -s tests/e2e/test_ui.py $(PYTEST)

e2e-celery: setup ## the compose file's services as processes: needs PostgreSQL and Redis
	@$(BIN)/python -m pytest -m e2e -s tests/e2e/test_celery.py $(PYTEST)

e2e-instances: setup ## two models in one Airflow: needs Debian's chromium
	@$(BIN)/python -m pytest -m e2e -s tests/e2e/test_two_instances.py $(PYTEST)

e2e-faults: setup ## kill parts of the compose file's services in mid-training; some 20 minutes
	@$(BIN)/python -m pytest -m e2e -s tests/e2e/test_faults.py tests/e2e/test_two_gpus.py $(PYTEST)

matrix: setup ## the wheel in an environment per version of Airflow: MATRIX="3.1.0 3.3.2 --full" chooses; some minutes each
	@$(BIN)/python -m tests.matrix $(MATRIX)

bench: setup ## what is measured, into docs/benchmarks.md
	@$(BIN)/python -m benchmarks

stop: ## end a `make run` that is up, or what a killed one left
	@test -x $(BIN)/python && $(BIN)/python -m local stop

s3: setup ## the S3 server alone, on what earlier runs left in it
	@$(BIN)/python -m local s3

clean: ## remove the environment and everything that runs left (.local)
	@if test -x $(BIN)/python; then $(BIN)/python -m local stop; fi
	rm -rf .venv .local .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

env: setup ## write .env with random secrets for docker compose, or add those that it lacks
	@$(BIN)/python -m local.make_env

lock: setup ## compile requirements*.in to the locked requirements*.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes requirements.in -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes requirements-dev.in -o requirements-dev.txt

lock-gpu: setup ## compile deploy/requirements-gpu.in, what the GPU image adds, for the image's Python
	$(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --only-binary :all: --generate-hashes --custom-compile-command "make lock-gpu" deploy/requirements-gpu.in -o deploy/requirements-gpu.txt
