# `make` alone says what there is. Everything runs in .venv, which the first target that needs it
# makes: Python 3.10 or newer and make are all that has to be there.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
ARGS ?=
# How many tests run at once: those of whole systems mostly wait, and the others compute.
JOBS ?=
# The tests of a file share servers and workers; tests/conftest.py puts the files in order.
SPREAD := --dist loadfile --no-loadscope-reorder
STAMP = $(VENV)/.stamp
# Tests start hundreds of processes: each would compile all of the library again.
export PYTHONDONTWRITEBYTECODE :=
DECLARED := setup.cfg setup.py pyproject.toml Makefile

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-unit ecosystem fuzz chaos model mutants lint format types docs matrix build clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)-demo ## Plain Celery and IdempotentTask side by side, under faults
	@$(BIN)/python -m examples.demo $(ARGS)

test: $(STAMP)-test ## Every test; ARGS="-k chord" goes to pytest, JOBS=0 runs one at a time
	@$(BIN)/python -m pytest -n $(or $(JOBS),8) $(SPREAD) --durations=30 $(ARGS)

test-unit: $(STAMP)-test ## The tests that need no worker, no broker and no server of databases
	@$(BIN)/python -m pytest -m unit -n $(or $(JOBS),3) $(SPREAD) $(ARGS)

ecosystem: $(STAMP)-venv ## Beside other packages, each group in an environment of its own; ALL=1 K=sentry
	@$(BIN)/python -m tests.ecosystem $(if $(ALL),--all) $(if $(K),-k $(K)) $(ARGS)

fuzz: $(STAMP)-test ## Random schedules of deliveries, and histories of every store; MINUTES=60 SEED=1
	@$(BIN)/python -m tests.fuzz $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(SCHEDULE),--schedule $(SCHEDULE)) $(ARGS)

chaos: $(STAMP)-test ## Thousands of calls under kills, stops and restarts; MINUTES=3 SEED=1
	@$(BIN)/python -m tests.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

model: ## The protocol as a formal model: every property under every fault, with spin
	@tests/model/run.sh

mutants: $(STAMP)-test ## Take each guard out of the code: the tests have to notice
	@$(BIN)/python -m tests.mutants $(ARGS)

lint: $(STAMP)-lint ## Check with ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP)-lint ## Put rules and format right with ruff
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(STAMP)-lint $(STAMP)-test ## Check with mypy --strict
	@$(BIN)/mypy --strict celery_idempotent examples/demo tests/typing benchmarks/speed

docs: $(STAMP)-docs ## The documentation, into docs/_build/html
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(STAMP)-bench ## Every goal of speed with its figure; QUICK=1 takes about two minutes
	@$(BIN)/python -m benchmarks.speed $(if $(QUICK),--quick) $(ARGS)

matrix: $(STAMP)-test $(STAMP)-matrix ## Tests under every Python on this machine, with Celery 5.5 to 5.7
	@.ci/matrix

build: $(STAMP)-venv ## The wheel, into dist
	@$(BIN)/python -m pip -qq --disable-pip-version-check wheel --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean: ## Remove what the other targets made
	rm -rf $(VENV) .ecosystem .tox build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# An interpreter counts if it runs, is new enough and can make environments: a name on PATH may be a
# stub that only prints an error.
$(STAMP)-venv:
	@for python in $(PYTHON) python3.11 python3 python3.14 python3.13 python3.12 python3.10; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python -V) ..."; \
	    $$python -m venv --clear $(VENV) && touch $@ && exit 0; \
	    exit 1; \
	  fi; \
	done; \
	echo "No Python 3.10 or newer that has venv was found (on Debian: apt install python3-venv)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; \
	exit 1

$(STAMP)-%: $(STAMP)-venv $(DECLARED)
	@echo "Installing what '$*' needs into $(VENV) (once, a minute or less) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[$*]"
	@touch $@
