# The commands of the project. `make demo` and `make test` set up everything they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# On a terminal the demo shows its plot and waits; elsewhere pass --exit yourself.
SHELL := /bin/bash
# Write bytecode even where the environment forbids it: uv does not compile what it installs.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help venv demo test test-long test-containers coverage check docs bundle fit-rules bench bench-rules bench-rescue lab fit-risk clean

help:
	@echo "make demo    train, break, rewind, learn on: the whole loop on this machine (ARGS=\"--exit --report FILE --seed N\")"
	@echo "make test    all tests that need no container"
	@echo "make test-long     tests that are long by nature"
	@echo "make test-containers    the services of docker-compose.yml, in real containers"
	@echo "make check   format, lint, types, import layers, spelling"
	@echo "make docs    the documentation site, in build/site"
	@echo "make bundle  a wheelhouse for machines without a network (EXTRAS=collector,dashboard)"
	@echo "make fit-rules  set the constants of the shipped rules on recorded runs (hours; ARGS='--leave-out each --out DIR')"
	@echo "make bench   the benchmarks, printed as ratios against a peer or a limit"
	@echo "make bench-rules  what the rules cost per step, beside a plain EWMA, and the time of a long backtest"
	@echo "make bench-rescue  faults against us and against what is used today, live (ARGS=--smoke: each once)"
	@echo "make fit-risk  fit the risk on the laboratory's runs, a family left out (generates plain runs first; minutes)"
	@echo "make lab     small real runs with computed outcomes, in build/lab; continues where it was (ARGS=--table)"

# What the demo needs; the stamp is newer than what it was installed from.
$(VENV)/.run: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	.ci/install_packages $(BIN)/python -c constraints.txt -e '.[collector,dashboard,trainer]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	.ci/install_packages $(BIN)/python -c constraints.txt -e '.[collector,dashboard,trainer,dev]'
	@touch $(VENV)/.run $@

venv: $(VENV)/.dev

demo: $(VENV)/.run
	$(BIN)/python -m trainer demo $(ARGS)

# Tests commit to disk thousands of times: in memory, where there is a place for it, they take a third.
# A file of tests stays in one process, since its fixtures are dear; one torch thread per process.
TEST_TMP := $(firstword $(wildcard /dev/shm) $(TMPDIR) /tmp)
PYTEST := OMP_NUM_THREADS=1 STABILIZER_STRICT=1 TMPDIR=$(TEST_TMP) $(BIN)/python -m pytest

# A folder to collect from, unless ARGS names one.
FOLDER = $(if $(filter tests/%,$(ARGS)),,$(1))

# Where a mistake costs a run: CI measures the branches that their own tests take, and they have a floor.
# Only these tests are traced, which takes them a third longer.
COVERED := rules protocol agent/control
FLOOR := 95
MEASURED := $(and $(CI),$(if $(ARGS),,yes))
THEIR_TESTS := $(COVERED:%=tests/unit/stabilizer/%)
XDIST := --dist loadfile --no-loadscope-reorder --durations=15

# Three workers on two cores, since end-to-end tests wait for processes that they start. Those come first: see tests/conftest.py.
test: $(VENV)/.dev
	$(BIN)/python tests/browser.py # brings one if there is none, or says why not
ifneq ($(MEASURED),)
	$(PYTEST) $(THEIR_TESTS) -m "not long" -n 2 $(XDIST) $(COVERED:%=--cov=stabilizer/%) --cov-branch --cov-report= --junitxml=build/covered.xml
	@$(MAKE) --no-print-directory coverage
endif
	$(PYTEST) -m "not compose and not long" -n 3 $(XDIST) $(if $(MEASURED),$(THEIR_TESTS:%=--ignore=%)) --junitxml=build/tests.xml $(ARGS)

# Of the last `make test CI=1`.
coverage:
	@set -eo pipefail; for room in $(COVERED); do echo "stabilizer/$$room, branches included:"; \
	  $(BIN)/coverage report --include="stabilizer/$$room/*" --fail-under=$(FLOOR) --skip-covered --sort=cover | tail -n 12; done

# Long by nature: many seeds, many steps. CI runs a smoke of each among the others.
test-long: $(VENV)/.dev
	$(PYTEST) -m long --durations=10 $(ARGS)

# Builds the images and runs the services of docker-compose.yml; needs a container engine.
test-containers: $(VENV)/.dev
	$(PYTEST) $(call FOLDER,tests/integration/compose) -m compose --durations=10 --junitxml=build/compose.xml $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/stabilizer rules check stabilizer/rules/default.yaml trainer/presets/*.policy.yaml
	$(MAKE) --no-print-directory docs

# Strict: a broken link, an unknown page or an undocumented module of the reference fails.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Everything that pip needs to install the project where there is no index.
EXTRAS ?= collector,dashboard,trainer
BUNDLE := build/stabilizer-bundle
bundle: $(VENV)/.run
	rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)/wheels
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check -c constraints.txt -w $(BUNDLE)/wheels '.[$(EXTRAS)]'
	cp constraints.txt LICENSE docs/install.md $(BUNDLE) && echo '$(EXTRAS)' > $(BUNDLE)/EXTRAS
	tar -cf $(dir $(BUNDLE))$$(basename $(BUNDLE)/wheels/stabilizer-*.whl | cut -d- -f1,2)-bundle.tar -C $(dir $(BUNDLE)) stabilizer-bundle
	@ls -sh $(dir $(BUNDLE))*-bundle.tar

fit-rules: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fit_rules --out stabilizer/rules/default.yaml $(ARGS)

bench: $(VENV)/.dev
	@set -e; for file in $$(ls benchmarks/*.py | grep -v -e fit_rules -e fit_risk -e variations); do echo "== $$file"; OMP_NUM_THREADS=1 $(BIN)/python $$file; done

# What the rules cost per step, and a backtest of 35,000 steps; the last line is JSON.
bench-rules: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rules_speed.py $(ARGS)

# Faults of the laboratory, live: unprotected, with what is used today, and with us; one JSON line.
bench-rescue: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.rescue $(ARGS)

# Some two core-hours for all of it; a killed command continues.
lab: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.lab $(ARGS)

# Plain runs of every change are enough; those of `make lab` are used too if they are there.
fit-risk: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.lab --plain --rounds 2 --out build/lab-plain
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fit_risk --write $(ARGS)

clean:
	rm -rf $(VENV) build out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
