# Two commands do it all: `make run GPU=cpu`, then `make test`. The work itself is `python -m specdec_lib <command>`.
GPU ?= cpu
MINUTES ?= 60
export GPU SET CELL
STUDY := --gpu "$$GPU" $(if $(SET),--set "$$SET")
GIVEN := $(filter-out file,$(origin GPU))

# An active conda environment made from environment.yml is used as it is; otherwise the .venv next to this file. Paths
# here are relative, as make ends a name at a space.
ifeq ($(CONDA_DEFAULT_ENV),specdec)
ifneq ($(word 2,$(CONDA_PREFIX)),)
$(error the conda environment $(CONDA_PREFIX) has a space in its path, which make cannot name: deactivate it, for a .venv)
endif
ENV := $(CONDA_PREFIX)
else
ENV := .venv
endif
BASE_PYTHON ?= python3
PYTHON := $(ENV)/bin/python
CLUSTER_STAMP := $(ENV)/.specdec-cluster
TRITON_STAMP := $(ENV)/.specdec-triton
TOOLS := .venv-tools
SPECDEC := $(PYTHON) -m specdec_lib

# Which build of torch: the one without CUDA where there is no NVIDIA driver; TORCH=cpu|cuda overrules, and has a stamp of
# its own. Not asked, an environment that already has this version of torch, of any build, keeps it.
ASKED := $(TORCH)
TORCH ?= $(if $(shell command -v nvidia-smi 2>/dev/null),cuda,cpu)
STAMP := $(ENV)/.specdec-pins$(ASKED:%=-%)
TORCH_VERSION := $(patsubst torch==%,%,$(shell cat requirements/torch.in))
HAS_TORCH := import importlib.metadata as m, sys; version, _, build = m.version("torch").partition("+"); \
  sys.exit(version != "$(TORCH_VERSION)" or "$(ASKED)" not in ("", "cpu" if build == "cpu" else "cuda"))
PIP_PINS := -m pip install -qq --disable-pip-version-check --require-hashes --no-deps --only-binary :all:
UV_PINS := $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command "make pins"
PINNED := sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p'

.DEFAULT_GOAL := setup
.PHONY: setup help run params certify advise test soak lint lab report compare rerun bench-peers peers cluster triton gpu-check
.PHONY: gpu-rehearsal .rehearsal gpu-first gpu-bundle publish speed draft audit audit-engines pins clean

setup: $(STAMP) help ## install the pinned dependencies once (what plain `make` does), then print this help

help: ## print this help
	@echo "usage: make <target> [GPU=<name or path>] [SET=\"batch_sizes=[1,8] temperatures=[0]\"]    names in params/: $(basename $(notdir $(sort $(wildcard params/*.yaml))))"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

run: $(if $(CLUSTER),$(CLUSTER_STAMP),$(STAMP)) ## run the whole study for GPU=<name>, on the cluster CLUSTER=<address>, if any; prints where the report is
	@$(SPECDEC) run $(STUDY) $(if $(CLUSTER),--cluster $(CLUSTER))

params: $(STAMP) ## print all keys of GPU=<name>, explained; SET="key=value ..." replaces keys, here and in all studies
	@$(SPECDEC) params $(STUDY)

certify: $(STAMP) ## write the certificate of exactness of GPU=<name> alone; THOROUGH=1 takes hours
	@$(SPECDEC) certify $(STUDY) $(if $(THOROUGH),--thorough)

advise: $(STAMP) ## say what to set for GPU=<name>: method, gamma, on or off; measures a profile of a few minutes if there is none
	@$(SPECDEC) advise $(STUDY)

test: $(STAMP) ## run all tests, a small study from papermill to HTML among them
	@$(PYTHON) -m pytest --numprocesses auto --dist loadfile

soak: $(STAMP) ## sweep toys for MINUTES=60 under real faults: nothing may be lost or doubled, and no process may grow
	@$(PYTHON) tests/support/soak.py --minutes $(MINUTES)

speed: $(STAMP) ## time the CPU kernels on random models of 1.5 and 0.5 billion weights, next to memory and transformers
	@$(PYTHON) tests/support/speed.py

lint: $(STAMP) ## check style and formatting with ruff, types with mypy
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

lab: $(STAMP) ## open the notebooks in JupyterLab, at the quickstart
	@$(PYTHON) -m jupyter lab notebooks/00_quickstart.ipynb

report: $(STAMP) ## render the HTML report of GPU=<name, or folder of a run> again from what is on disk
	@$(SPECDEC) report --gpu "$$GPU"

compare: $(STAMP) ## compare all finished runs, or those of GPU="<name> <name>", with predictions for GPUs without one
	@$(SPECDEC) compare $(if $(GIVEN),--gpu $(GPU))

rerun: $(STAMP) ## decode the cell CELL=<id> of the finished run of GPU=<name> again and compare its tokens
	@$(SPECDEC) rerun "$$CELL" --gpu "$$GPU"

bench-peers: $(STAMP) ## time other engines next to ours for GPU=<name>: same weights, prompts and counting
	@$(SPECDEC) bench-peers $(STUDY)

peers: $(STAMP) ## install the other engines that bench-peers knows, each into an environment of its own
	@$(SPECDEC) peers

audit-engines: $(STAMP) ## put the samplers of ours and other engines to the same test of exactness; ONLY="<name> ..." SECONDS=30
	@$(SPECDEC) audit-engines $(if $(ONLY),--only $(ONLY)) $(if $(SECONDS),--seconds $(SECONDS))

gpu-check: $(STAMP) ## check this machine for GPU=<name> in a minute: device, exactness, a short sweep, telemetry
	@$(SPECDEC) gpu-check $(STUDY)

gpu-rehearsal: ## rehearse GPU=<name> without a GPU: every kind of step at its real size, and the memory it takes
	@[ -e .venv-cuda/bin/python ] || echo "Making .venv-cuda with the CUDA build of PyTorch: 3 GB to fetch, 7 GB of disk, once"
	@$(MAKE) --no-print-directory ENV=.venv-cuda TORCH=cuda .rehearsal

.rehearsal: $(STAMP)
	@$(SPECDEC) gpu-rehearsal $(STUDY)

gpu-first: $(STAMP) ## measure what is worth most in the first MINUTES=12 on a GPU, without internet; on a CPU a rehearsal
	@$(SPECDEC) gpu-first $(STUDY) --minutes $(if $(filter file,$(origin MINUTES)),12,$(MINUTES))

gpu-bundle: $(STAMP) ## pack what gpu-first needs for a machine without a package index into outputs/gpu-bundle
	@$(SPECDEC) gpu-bundle

publish: $(STAMP) ## keep the run of GPU=<name> under outputs/published and in the README's headline
	@$(SPECDEC) publish --gpu "$$GPU"

draft: $(STAMP) ## distil the shipped drafts from nothing (a few hours on 2 cores)
	@$(SPECDEC) draft

cluster: $(CLUSTER_STAMP) ## install Ray, which make run GPU=<name> CLUSTER=<address> needs

triton: $(TRITON_STAMP) ## install Triton next to a PyTorch without CUDA, so that make test interprets and compiles the GPU kernels

audit: $(STAMP) $(TOOLS)/.pins ## look up the pinned dependencies in the database of known vulnerabilities
	@$(TOOLS)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
	  -r requirements.txt -r requirements/torch-cuda.txt -r requirements/cluster.txt

pins: $(TOOLS)/.pins ## write the pins and their hashes anew; UPGRADE=1 takes the newest versions that fit
	$(UV_PINS) requirements/torch.in -c requirements.txt $$($(PINNED) requirements.txt) -o requirements/torch-cuda.txt
	$(UV_PINS) $(if $(UPGRADE),--upgrade) pyproject.toml --group dev -c requirements/torch.in \
	  $$($(PINNED) requirements/torch-cuda.txt) -o requirements.txt
	$(UV_PINS) pyproject.toml --extra cluster -c requirements.txt -c requirements/torch.in \
	  $$($(PINNED) requirements.txt requirements/torch-cuda.txt) -o requirements/cluster.txt
	$(UV_PINS) $(if $(UPGRADE),--upgrade) --group tools -o requirements/tools.txt

clean: ## remove the environments and the caches of tools; outputs/ and the model cache stay
	rm -rf .venv .venv-cuda .venv-tools *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PYTHON):
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: run make BASE_PYTHON=<path to one>" >&2; exit 1; }
	@echo "Making $(ENV) with $$($(BASE_PYTHON) --version)"
	@$(BASE_PYTHON) -m venv $(ENV)

$(STAMP): requirements.txt $(wildcard requirements/torch*) pyproject.toml | $(PYTHON)
	@echo "Installing the pins of requirements.txt into $(ENV) (a few minutes, once)"
	@$(PYTHON) $(PIP_PINS) -r requirements.txt
	@$(PYTHON) -c '$(HAS_TORCH)' 2>/dev/null || \
	  $(PYTHON) $(PIP_PINS) --force-reinstall -r requirements/torch-$(TORCH).txt $(if $(ASKED),,$(if $(filter cpu,$(TORCH)),2>/dev/null || \
	  { echo "No torch without CUDA on this package index: installing the build with it (3 GB)"; \
	  $(PYTHON) $(PIP_PINS) -r requirements/torch-cuda.txt; }))
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(PYTHON) -m pip check --disable-pip-version-check >/dev/null || $(PYTHON) -m pip check
	@rm -f $(ENV)/.specdec-pins-*
	@touch $(ENV)/.specdec-pins $@

$(CLUSTER_STAMP): requirements/cluster.txt $(STAMP)
	@echo "Installing Ray into $(ENV)"
	@$(PYTHON) $(PIP_PINS) -r requirements/cluster.txt
	@touch $@

# The same pin as the CUDA build of torch has.
$(TRITON_STAMP): requirements/torch-cuda.txt $(STAMP)
	@echo "Installing Triton into $(ENV) (200 MB to fetch, 700 MB of disk)"
	@sed -n '/^triton==/,/[^\\]$$/p' requirements/torch-cuda.txt >$@.txt
	@$(PYTHON) $(PIP_PINS) -r $@.txt
	@touch $@

$(TOOLS)/.pins: requirements/tools.txt
	@$(BASE_PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python $(PIP_PINS) -r requirements/tools.txt
	@touch $@
