# `make` alone lists the targets.  Everything runs in .venv, which the first target that needs it creates.

ifneq ($(words $(CURDIR)),1)
$(error Snakemake cannot work in a path with spaces, "$(CURDIR)": move the checkout to a folder without)
endif

# The first of these that runs.
PYTHON ?= $(firstword \
	$(foreach name,python3.11 python3.12 python3.13 python3,$(shell $(name) -c 'print("$(name)")' 2>/dev/null)))
VENV ?= .venv
CORES ?= 2
PORT ?= 5000
GPU_PYTHON ?= python3

export PORT
export PATH := $(abspath $(VENV))/bin:$(PATH)
INSTALLED := $(VENV)/.installed
# Snakemake and caches need a home folder; not every user has one, in containers for example.
export HOME := $(shell test -w "$$HOME" && echo "$$HOME" || echo "$(CURDIR)/scratch/home")

.PHONY: help venv demo test quick same slurm gpu bench claims assets lint ui lock

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

CHECK_PYTHON := 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

venv: $(INSTALLED)  ## create .venv from envs/requirements.lock

$(INSTALLED): envs/requirements.lock
	@$(or $(PYTHON),false) -c $(CHECK_PYTHON) || \
		{ echo "planer needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/of/one"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r envs/requirements.lock
	$(VENV)/bin/python -c 'from planer.kernels.cpp import build; build.available()'  # C++ kernels; does without a compiler
	touch $@

demo: $(INSTALLED)  ## search, train, convert and evaluate a network for half the baseline's latency (CORES=2)
	snakemake --cores $(CORES) results/demo/target_0.5/eval.json results/demo/comparison.parquet \
		--config "default_variants=[baseline, target_0.5]"
	@echo "Networks side by side: results/demo/report.html, results/demo/comparison.parquet"
	@echo "The searched network:  results/demo/target_0.5/eval.json"
	@echo "Every stage in MLflow: make ui"

test: $(INSTALLED)  ## run the tests (CORES=2)
	OMP_NUM_THREADS=1 python -m pytest --numprocesses $(CORES) --dist worksteal

quick: $(INSTALLED)  ## run the unit tests that neither run Snakemake nor train for long; 2 minutes (CORES=2)
	OMP_NUM_THREADS=1 python -m pytest --numprocesses $(CORES) --dist worksteal -m 'not assets and not slow' tests/unit

same: $(INSTALLED)  ## check that a small experiment gives the same bits as before (one kind of processor; 4 minutes)
	OMP_NUM_THREADS=1 PLANER_SAME_BITS=1 python -m pytest -q tests/workflow/test_same_results.py

slurm: $(INSTALLED)  ## run the workflow on a two-node SLURM cluster on this machine (root; 5 to 10 minutes)
	OMP_NUM_THREADS=1 python -m pytest -q tests/slurm

gpu:  ## test and time the kernels on this machine's GPU with its own packages (GPU_PYTHON=python3 GPU_FLAGS=)
	status=0; \
	timeout 200 $(GPU_PYTHON) -m pytest -q tests/gpu \
		$$($(GPU_PYTHON) -c 'import xdist' 2>/dev/null && echo --numprocesses 12 --dist worksteal) || status=$$?; \
	$(GPU_PYTHON) benchmarks/gpu.py $(GPU_FLAGS) || status=$$?; \
	exit $$status

bench: $(INSTALLED)  ## time the kernels on this CPU; leave it alone meanwhile (5 minutes)
	python benchmarks/cpu.py

# NAME is no variable of the environment: some systems keep the machine's name there.
NAME =
export NAME
claims: $(INSTALLED)  ## measure the figures of the README anew, or one table of them (NAME=demo); hours for all
	python benchmarks/claims.py $${NAME:+"$$NAME"}

assets: $(INSTALLED)  ## fetch real networks and data into PLANER_ASSETS, or some by name (NAME="minilm news"); 0.3 GB
	python -m planer.data.assets $$NAME

lint: $(INSTALLED)  ## check style and rules
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint

ui: $(INSTALLED)  ## show the networks and their stages in MLflow on http://127.0.0.1:5000 (PORT=5000)
	@exec python -m planer.workflow.tracking ui results --port "$$PORT"

# The lock must suit machines that know only the ordinary registry: the dry run resolves it there, which downloads 3 GB
# where the registry gives no metadata by itself.
lock:  ## write envs/requirements.lock anew from envs/requirements.in
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet -r envs/requirements.in
	{ echo "# Written by make lock."; $(VENV)-lock/bin/python -m pip freeze | sed '/^\(cuda\|nvidia\)-/d; s/+cpu$$//'; } \
		> $(VENV)-lock/requirements.lock
	PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= PIP_EXTRA_INDEX_URL= $(VENV)-lock/bin/python -m pip install --quiet \
		--dry-run --ignore-installed -r $(VENV)-lock/requirements.lock
	mv $(VENV)-lock/requirements.lock envs/
	rm -rf $(VENV)-lock
