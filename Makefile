# The commands of the project. `make demo` and `make test` set up everything they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# On a terminal the demo shows its plot and waits; elsewhere pass --exit yourself.
SHELL := /bin/bash

.PHONY: help venv demo test check bench clean

help:
	@echo "make demo    train, break, rewind, learn on: the whole loop on this machine (ARGS=\"--exit --report FILE --seed N\")"
	@echo "make test    all tests that need no container"
	@echo "make check   format, lint, types, import layers, spelling"
	@echo "make bench   the benchmarks, printed as ratios against a peer or a limit"

# What the demo needs; the stamp is newer than what it was installed from.
$(VENV)/.run: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[collector,trainer]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[collector,trainer,dev]'
	@touch $@

venv: $(VENV)/.dev

demo: $(VENV)/.run
	$(BIN)/python -m trainer demo $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 STABILIZER_STRICT=1 $(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/stabilizer rules check stabilizer/rules/default.yaml trainer/presets/*.policy.yaml

bench: $(VENV)/.dev
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; OMP_NUM_THREADS=1 $(BIN)/python $$file; done

clean:
	rm -rf $(VENV) build out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
