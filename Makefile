# `make run` trains on the embedded set, `make test` runs the tests; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is made when a module is first imported: of most that are installed, never.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
# A process per core; each takes whole files as long as it can, so that their fixtures are made once.
SPREAD := -n auto --maxprocesses 8 --dist worksteal

.PHONY: run test test-slow test-cluster bench-check check gpu gpu-wheels clean

run: $(VENV)/run.stamp
	$(BIN)/python -m tvjax.main --config=configs/lunet_bilevel.py

test: check
	$(BIN)/python -m pytest $(SPREAD) --durations=20

test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow $(SPREAD)

test-cluster: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m cluster

# Ratios of small benchmarks against their bounds, in two minutes; never part of the tests.
bench-check: $(VENV)/test.stamp
	$(BIN)/python -m experiments.benchmarks --check

# By the machine's own Python and JAX, without .venv and without network; see launch/gpu.sh.
gpu:
	launch/gpu.sh $(FLAGS)

gpu-wheels:
	launch/wheels.sh

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable ".[test]"
	touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
