# Every target sets up what it needs in .venv/ and .cache/ of this checkout: Python >= 3.10 with venv, and make, are enough.
#
#   make demo     two real models in a space that holds one (DEMO_ONCE=1 ends it after the answers; PORT=8000)
#   make test     what CI runs: lint first, then the tests, fastest first
#   make lint     ruff, mypy, import-linter
#   make bench    what it costs, measured here
#   make soak     random clusters with faults until MINUTES (5) are over
#   make clean    remove .venv/ and all caches (the models, 350 MB, are fetched again)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PORT ?= 8000
MINUTES ?= 5
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install -qq --disable-pip-version-check --no-input

# Fast directories first, those that start clusters last, the rest between; a new directory is found by itself.
TESTS_FIRST := $(wildcard tests/core tests/test_*.py tests/property tests/config)
TESTS_LAST := $(wildcard tests/integration tests/e2e)
TESTS_ALL := $(patsubst %/,%,$(wildcard tests/*/))
TESTS_BETWEEN := $(filter-out $(TESTS_FIRST) $(TESTS_LAST) %/__pycache__ tests/benchmarks,$(TESTS_ALL))
BENCHMARKS := $(sort $(wildcard tests/benchmarks/bench_*.py))

.PHONY: help demo test lint bench soak models clean

help:
	@sed -n '3,8s/^#   //p' Makefile

test: lint models
	@echo "==> tests"
	@$(PY) -m pytest $(TESTS_FIRST) $(TESTS_BETWEEN) $(TESTS_LAST) $(PYTEST_ARGS)

lint: $(VENV)/.dev
	@echo "==> ruff";        $(PY) -m ruff check
	@echo "==> mypy";        $(PY) -m mypy
	@echo "==> import-linter"; $(VENV)/bin/lint-imports --no-logo

demo: $(VENV)/.demo models
	@exec $(PY) -m deployments.demo --port $(PORT)

bench: $(VENV)/.dev models
	@for program in $(BENCHMARKS); do echo "==> $$program"; $(PY) "$$program"; done

soak: $(VENV)/.dev
	@$(PY) -m tests.simulation.soak --minutes $(MINUTES)

# Checks the sha256 of both files each time (under a second), and fetches what is missing or wrong.
models: $(VENV)/.demo
	@$(PY) -m deployments.demo_models

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

# The stamps are written last, so an installation that was interrupted starts again.
$(VENV)/.demo: pyproject.toml | $(VENV)/.created
	@echo "==> installing rayscheduler and the demo's packages into $(VENV)/ (a minute or two, once)"
	@$(PIP_INSTALL) -e ".[demo]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.created
	@echo "==> installing rayscheduler and its development tools into $(VENV)/ (a minute or two, once)"
	@$(PIP_INSTALL) -e ".[dev]"
	@touch $(VENV)/.demo $@

$(VENV)/.created:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: no '$(PYTHON)' here: install Python 3.10 or newer, or name yours: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $(PYTHON) is $$("$(PYTHON)" -V 2>&1), and Python 3.10 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV) && $(PY) -m pip --version >/dev/null || { \
	  echo "make: $(PYTHON) could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@touch $@
