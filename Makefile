# Two commands do it all: `make run GPU=cpu`, then `make test`. The work itself is `python -m specdec_lib <command>`.
GPU ?= cpu
MINUTES ?= 60

# An active conda environment made from environment.yml is used as it is; otherwise a .venv beside this file.
ifeq ($(CONDA_DEFAULT_ENV),specdec)
ENV := $(CONDA_PREFIX)
else
ENV := $(CURDIR)/.venv
endif
BASE_PYTHON ?= python3
PYTHON := $(ENV)/bin/python
STAMP := $(ENV)/.specdec-pins
SPECDEC := $(PYTHON) -m specdec_lib

.DEFAULT_GOAL := setup
.PHONY: setup help run certify test soak lint lab report compare bench-peers peers gpu-check publish draft draft-export clean

setup: $(STAMP) help ## install the pinned dependencies once (what plain `make` does), then print this help

help: ## print this help
	@echo "usage: make <target> [GPU=<name>]    GPU is a file in params/: $(basename $(notdir $(sort $(wildcard params/*.yaml))))"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

run: $(STAMP) ## run the whole study for GPU=<name> and print where its HTML report is
	@$(SPECDEC) run --gpu $(GPU)

certify: $(STAMP) ## write the certificate of exactness of GPU=<name> alone; THOROUGH=1 takes hours
	@$(SPECDEC) certify --gpu $(GPU) $(if $(THOROUGH),--thorough)

test: $(STAMP) ## run all tests, a small study from papermill to HTML among them
	@$(PYTHON) -m pytest

soak: $(STAMP) ## sweep toys for MINUTES=60 under real faults: nothing may be lost or doubled, and no process may grow
	@$(PYTHON) tests/soak.py --minutes $(MINUTES)

lint: $(STAMP) ## check style and formatting with ruff, types with mypy
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

lab: $(STAMP) ## open the notebooks in JupyterLab, at the quickstart
	@$(PYTHON) -m jupyter lab notebooks/00_quickstart.ipynb

report: $(STAMP) ## render the HTML report of GPU=<name> again from what is on disk
	@$(SPECDEC) report --gpu $(GPU)

compare: $(STAMP) ## compare all finished runs side by side, with predictions for GPUs without one
	@$(SPECDEC) compare

bench-peers: $(STAMP) ## time other engines beside ours for GPU=<name>: same weights, prompts and counting
	@$(SPECDEC) bench-peers --gpu $(GPU)

peers: $(STAMP) ## install the other engines that bench-peers knows, each into an environment of its own
	@$(SPECDEC) peers

gpu-check: $(STAMP) ## check this machine for GPU=<name> in a minute: device, exactness, a short sweep, telemetry
	@$(SPECDEC) gpu-check --gpu $(GPU)

publish: $(STAMP) ## keep the run of GPU=<name> under outputs/published and in the README's headline
	@$(SPECDEC) publish --gpu $(GPU)

draft: $(STAMP) ## distil the shipped draft from nothing (a few hours on 2 cores)
	@$(SPECDEC) draft

draft-export: $(STAMP) ## write the plain draft as an ordinary Hugging Face checkpoint
	@$(SPECDEC) draft-export

clean: ## remove the environment and the caches of tools; outputs/ and the model cache stay
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PYTHON):
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: run make BASE_PYTHON=<path to one>" >&2; exit 1; }
	@echo "Making .venv with $$($(BASE_PYTHON) --version)"
	@$(BASE_PYTHON) -m venv $(ENV)

$(STAMP): requirements.txt pyproject.toml | $(PYTHON)
	@echo "Installing the pins of requirements.txt into $(ENV) (a few minutes, once)"
	@$(PYTHON) -m pip install -qq --disable-pip-version-check -r requirements.txt
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
