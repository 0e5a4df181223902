# make demo: synthetic data, training on two ranks (or all GPUs), evaluation, plots
# make test: lint, types, tests
# make lint: lint and types
# make docs: documentation with the API reference, in site/
# make clean: delete the demo and build files; keeps the environment in .venv
#
# PYTHON=...       interpreter for .venv (default: the first in the list below that works)
# TORCH_INDEX=...  additional package index for torch, for example of builds without CUDA

.DEFAULT_GOAL := test
.DELETE_ON_ERROR:
.PHONY: demo test lint style types unit-tests docs clean

# Each one is run, because version managers put commands on the path that fail when called.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1 && { echo "$$python"; break; }; done)
TORCH_INDEX ?=
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)

BIN := .venv/bin
# Compiling every installed module takes longer than installing them; Python compiles those that it imports.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
NATIVE_SOURCES := $(shell find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cu')
BUILD_INPUTS := pyproject.toml setup.py constraints.txt CMakeLists.txt $(shell find csrc -type f)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 with venv found: install one, or use make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed-train: $(BIN)/python $(BUILD_INPUTS)
	@echo "Installing slap-fast with the packages for training into .venv (minutes the first time)"
	$(PIP_INSTALL) -e ".[train]"
	@touch $@

.venv/.installed-test: $(BIN)/python $(BUILD_INPUTS)
	@echo "Installing slap-fast with the packages for its tests into .venv (minutes the first time)"
	$(PIP_INSTALL) -e ".[train,test,dali,docs]"
	@touch .venv/.installed-train .venv/.installed-docs $@

.venv/.installed-docs: $(BIN)/python $(BUILD_INPUTS)
	@echo "Installing slap-fast with the packages for its documentation into .venv (minutes the first time)"
	$(PIP_INSTALL) -e ".[docs]"
	@touch $@

lint: style types

style: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES)
	$(BIN)/typos

types: .venv/.installed-test
	$(BIN)/mypy

# Types beside the tests: mypy takes minutes on one core, and tests that wait for a process leave a fifth of two idle.
test: style
	$(MAKE) --no-print-directory --jobs 2 types unit-tests

# Two workers, because most tests use one core. Tests of one file run in one worker, to share fixtures. The number of
# workers of GPU tests follows from the GPU memory; a worker that loses the GPU is replaced (tests/_lost_device.py).
unit-tests: .venv/.installed-test
	$(BIN)/python -m pytest -q -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder
	$(if $(GPU),$(BIN)/python -m pytest -q -m gpu -n auto --max-worker-restart 200 -rs)

# All GPUs, or two ranks on the CPU. A free port, so that two demos can run at the same time.
demo: .venv/.installed-train
	$(BIN)/slap-fast prepare --synthetic --out demo/data
	port=$$($(BIN)/python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') && \
	PATH="$(CURDIR)/$(BIN):$$PATH" $(if $(GPU),,DS_ACCELERATOR=cpu) \
	$(BIN)/deepspeed -q --master_port $$port $(if $(GPU),,--num_accelerators 2) slap_fast/train.py recipe=quickstart \
		data.train=demo/data/train training.output=demo/run
	$(BIN)/slap-fast evaluate demo/run/model demo/data/validation --out demo/evaluation --log demo/run/log.jsonl
	@echo
	@echo "model             demo/run/model"
	@echo "logs              demo/run/log.jsonl, demo/run/tensorboard"
	@echo "scores and plots  demo/evaluation"
	@ls demo/evaluation | sed 's/^/                  /'
	@echo
	@echo "search it in a browser:"
	@echo '    $(BIN)/pip install -c constraints.txt -e ".[train,app]"'
	@echo "    $(BIN)/slap-fast index demo/library --model demo/run/model demo/data/validation"
	@echo "    $(BIN)/slap-fast app demo/library"

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "documentation  site/index.html"

clean:
	rm -rf demo site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -f .venv/.installed-*
