# `make help` lists the targets. Everything is installed into .venv, from Python >= 3.11 and make alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt
SCHNETPACK := schnetpack==2.2.0
RUN ?= $(BIN)/uqbench

# Studies: make reproduce-ammonia SCALE=mini ORACLE=xtb; the same command goes on with one that was interrupted.
SCALE ?= smoke
ORACLE ?= xtb
LAUNCHER ?= joblib
RESULTS ?= outputs/reproduce
METHODS := ensemble,mve,evidential,gmm
SEEDS_smoke := 0
SEEDS_mini := 0,1,2
SEEDS_paper := 0,1,2,3,4
# Methods of which the baselines, random displacements and dynamics, are run too.
BASELINES_smoke := gmm
BASELINES_mini := $(METHODS)
BASELINES_paper := $(METHODS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench reproduce-ammonia clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

AMMONIA := $(RESULTS)/ammonia-$(SCALE)-$(ORACLE)
AMMONIA_RUN = $(RUN) al -m experiment=ammonia_$(SCALE) oracle=$(ORACLE) \
	oracle@evaluations.barrier.evaluation.oracle=$(ORACLE) hydra/launcher=$(LAUNCHER) outputs=$(AMMONIA)
reproduce-ammonia: $(VENV)/.dev $(VENV)/.$(ORACLE) ## active learning of NH3: SCALE=smoke|mini|paper ORACLE=xtb|dft
	$(if $(SEEDS_$(SCALE)),,$(error SCALE=$(SCALE): choose smoke, mini or paper))
	$(AMMONIA_RUN) acquisition=adversarial seed=$(SEEDS_$(SCALE)) uq=$(METHODS) $(ARGS)
	$(AMMONIA_RUN) acquisition=random,md seed=$(SEEDS_$(SCALE)) uq=$(BASELINES_$(SCALE)) $(ARGS)
	$(RUN) report runs=$(AMMONIA)/al output=$(AMMONIA)/report

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

$(VENV)/.xtb $(VENV)/.dft: $(VENV)/.run
	$(PIP) --editable ".[$(subst .,,$(@F))]"
	@touch $@
