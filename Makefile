# Each target is a line that a person could type; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= .data
# Tests wait more than they work, and what CI says should not depend on what runs beside it.
WORKERS ?= $(if $(CI),2,4)
ARGS ?=
# One resolution for every Python and platform, with hashes and without any address.
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.PHONY: help install run test test-all newer-engine check lint types imports migrations openapi-check openapi events \
	permissions migrate doctor lock format bench fuzz torture clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.run ## make .venv with exactly what is pinned (PYTHON=… for another interpreter)

run: $(VENV)/.run ## serve both APIs on http://127.0.0.1:8080 with data in .data (DATA=…, ARGS='--port 9000 …')
	@exec $(BIN)/python -m quazzar --data-dir $(DATA) $(ARGS)

test: $(VENV)/.dev ## run the tests but the slow ones (ARGS='tests/core -k …', WORKERS=…)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope $(ARGS)

test-all: $(VENV)/.dev ## run the slow ones too, as CI does: campaigns, fuzz, swarm, faults of the engine
	CI=true $(MAKE) test

newer-engine: $(VENV)/.dev ## run the promise of a container runtime on a newer engine (API 1.45), unpacked into .engine
	.ci/newer_engine .engine
	QUAZZAR_COMPONENT_PATH=$(CURDIR)/.engine/engine:$(CURDIR)/.engine/compose \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope \
		tests/instance/apps/runtimes/test_conformance.py tests/instance/apps/runtimes/test_volumes.py \
		tests/instance/apps/test_docker_portability.py $(ARGS)

check: lint types imports migrations openapi-check ## everything that is judged without running the tests

lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy --strict

imports: $(VENV)/.dev ## who may import whom (.importlinter)
	$(BIN)/lint-imports

migrations: $(VENV)/.dev ## the migrations give the schema that the models describe
	$(BIN)/python .ci/check_migrations.py

openapi-check: $(VENV)/.dev ## the packaged API documents are those of the code
	$(BIN)/python -m quazzar openapi --mode=all --check

events: $(VENV)/.dev ## write the page of all events anew
	$(BIN)/python -m quazzar events --output docs/events.md

permissions: $(VENV)/.dev ## write the page of who may do what on the panel anew
	$(BIN)/python -m quazzar permissions --output docs/permissions.md

openapi: $(VENV)/.dev ## write the packaged API documents anew
	$(BIN)/python -m quazzar openapi --mode=all --output quazzar/reference/documents

format: $(VENV)/.dev ## let ruff mend and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

migrate: $(VENV)/.run ## bring the database of .data to this release's schema
	$(BIN)/python -m quazzar --data-dir $(DATA) migrate

doctor: $(VENV)/.run ## say what this machine lacks
	$(BIN)/python -m quazzar --data-dir $(DATA) doctor

lock: $(VENV)/.run ## pin again after a change in pyproject.toml (UPGRADE=1 for newer releases of everything)
	$(COMPILE) -o requirements.lock pyproject.toml
	$(COMPILE) --group dev -o requirements-dev.lock pyproject.toml
	echo uv | $(COMPILE) --no-annotate -o requirements-uv.lock -

bench: $(VENV)/.dev ## measure what the README says about speed (some minutes; needs wrk)
	$(BIN)/python -m benchmarks $(ARGS)

fuzz: $(VENV)/.dev ## schemathesis over both APIs, long
	QUAZZAR_FUZZ_EXAMPLES=$${QUAZZAR_FUZZ_EXAMPLES:-20000} $(BIN)/python -m pytest -m fuzz --timeout 0 $(ARGS)

torture: $(VENV)/.dev ## kill -9 and failing components, the whole campaign
	QUAZZAR_TORTURE=full $(BIN)/python -m pytest -m torture --timeout 0 $(ARGS)

clean: ## remove .venv and all caches; data stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find quazzar migrations tests benchmarks -name __pycache__ -type d -exec rm -rf {} +

# What the tests need contains what running needs, so a .venv for tests is never cut back.
$(VENV)/.run: requirements.lock requirements-dev.lock $(VENV)/.uv
	@echo 'Installing the pinned packages into $(VENV)'
	@lock=requirements.lock; if [ -f $(VENV)/.dev ]; then lock=requirements-dev.lock; fi; \
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python $$lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.uv
	@echo 'Installing the pinned packages into $(VENV)'
	@$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python requirements-dev.lock
	@touch $@ $(VENV)/.run

$(VENV)/.uv: requirements-uv.lock deploy/venv.sh
	@sh deploy/venv.sh '$(PYTHON)' $(VENV) requirements-uv.lock
	@touch $@
