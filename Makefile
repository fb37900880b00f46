# Two commands matter: `make demo` and `make test`. Each does its own set-up and needs nothing running.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The build of torch that is installed first; "torch==2.13.0" lets pip choose the index it is set up for.
TORCH ?= torch==2.13.0
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: help demo test test-full test-gpu chaos bench bench-gpu bench-smoke lint clean
help:
	@echo "make demo       render real photographs through queue, worker and store, and show them"
	@echo "make test       what CI runs"
	@echo "make test-full  the long grids as well"
	@echo "make test-gpu   the tests that need a CUDA device"
	@echo "make chaos      the farm under faults, SECONDS=600 SEED=1"
	@echo "make bench      the engine beside diffusers, on two quiet cores, an hour and a half by estimate; BENCH='B1 B4' or BENCH=farm for some"
	@echo "make bench-gpu  the same on a CUDA device at 512 pixels"

demo: $(VENV)/.demo
	$(BIN)/farm demo --out demo-out

# Two processes, a file at a time, in the order of the folders: the long files of engine and faults first, and last the
# many short ones of unit, so that neither process waits for the other at the end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# JAX takes over a part of torch in its process: nothing compiles or forks beside it.
APART := tests/engine_jax

test: $(VENV)/.dev lint
	$(PYTEST) --ignore $(APART) -m "not full and not gpu"
	$(PYTEST) $(APART) -m "not full and not gpu"

test-full: $(VENV)/.dev lint
	$(PYTEST) --ignore $(APART) -m "not gpu"
	$(PYTEST) $(APART) -m "not gpu"

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest --ignore $(APART) -m gpu

SECONDS ?= 600
SEED ?= 1
chaos: $(VENV)/.dev
	$(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) --seed $(SEED)

BENCH ?=
bench: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks $(BENCH) --out tests/benchmarks

bench-gpu: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks $(BENCH) --gpu --out tests/benchmarks

bench-smoke: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks $(BENCH) --quick

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A bare Debian has python3 without ensurepip.
$(VENV)/.venv:
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); apt-get update -q && apt-get install -y -q python3-venv && $(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/.torch: $(VENV)/.venv
	@echo "Setting up: torch"
	@$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "Setting up: the farm"
	@$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

# The system packages the tests need (a real S3 server, Debian's Redis) install while pip downloads.
$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt tests/servers/install.sh
	@echo "Setting up: the farm, its tests and their servers"
	@tests/servers/install.sh & servers=$$!; $(PIP) install -c constraints.txt -e '.[dev]' && wait $$servers
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo-out build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
