# The whole set-up lives in .venv; a stamp says what it already holds, so a second call costs nothing.
#
#   make trial    install what a trial needs, then run one without arguments: a table and a report
#   make test     install what the tests need, then run them
#   make venv     the set-up of `make test` alone
#   make check    format, lint, types, floors
#   make docs     build the documentation into site/
#   make format   write the format and the safe fixes of the linter
#   make bench    install what the scripts in benchmarks/ need beside that
#
# Settings: PYTHON (3.11 or newer), PYTEST_ARGS, TRIAL_ARGS.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
TRIAL_EXTRAS := openvino
TEST_EXTRAS := vision,text,openvino,litert,ray,codecs,detection,dev
BENCH_EXTRAS := $(TEST_EXTRAS),bench

PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile
TRIAL_ARGS ?=

# Only two names that work are of interest; a python3.11 that is a stub of a version manager is passed over.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt

.PHONY: help trial test venv check docs format bench clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python found; wanted 3.11 or newer; install it or say make PYTHON=/path/to/python" >&2; exit 2; }
	@# Debian splits ensurepip off; its own pip can then install pip into the new environment.
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

$(VENV)/.trial-stamp: $(INPUTS) | $(BIN)/python
	@echo "installing seatrial[$(TRIAL_EXTRAS)] into $(VENV) (the first time this downloads up to 3.1 GB)"
	@$(INSTALL) --editable '.[$(TRIAL_EXTRAS)]'
	@touch $@

# What the tests need holds what a trial needs, so this stamp sets the other one too.
$(VENV)/.test-stamp: $(INPUTS) | $(BIN)/python
	@echo "installing seatrial[$(TEST_EXTRAS)] into $(VENV) (the first time this downloads up to 3.4 GB)"
	@$(INSTALL) --editable '.[$(TEST_EXTRAS)]'
	@touch $(VENV)/.trial-stamp $@

$(VENV)/.bench-stamp: $(INPUTS) | $(BIN)/python
	@echo "installing seatrial[$(BENCH_EXTRAS)] into $(VENV)"
	@$(INSTALL) --editable '.[$(BENCH_EXTRAS)]'
	@touch $(VENV)/.trial-stamp $(VENV)/.test-stamp $@

venv: $(VENV)/.test-stamp

bench: $(VENV)/.bench-stamp

trial: $(VENV)/.trial-stamp
	$(BIN)/seatrial trial $(TRIAL_ARGS)

test: $(VENV)/.test-stamp
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.test-stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_floors.py

docs: $(VENV)/.test-stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.test-stamp
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean:
	rm -rf site .pytest_cache .ruff_cache .hypothesis
