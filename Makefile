# `make help` lists the targets. Everything is installed into .venv, from Python >= 3.11 and make alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt
SCHNETPACK := schnetpack==2.2.0

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.dev ## install uqbench with everything needed for its tests and benchmarks

demo: $(VENV)/.run ## train an ensemble on the embedded data, score it, show the table
	$(BIN)/uqbench train

test: $(VENV)/.dev ## run all tests
	$(BIN)/python -m pytest -m ""

lint: $(VENV)/.dev ## check style and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.dev ## measure speed against schnetpack
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/metrics.py

clean: ## remove the environment (runs under outputs/ stay)
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "uqbench needs Python >= 3.11; choose one with make PYTHON=python3.x" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Stamps make a second call quick. torch first and alone: the constraint chooses its build.
$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable ".[dev]"
	# Its metadata asks for Python >= 3.12, but it runs on 3.11; its dependencies are in the extra `peers`.
	$(PIP) --no-deps --ignore-requires-python $(SCHNETPACK)
	@touch $@
