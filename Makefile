# One virtual environment for everything; a second run reuses it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A CUDA build of torch, for tests over fake tensors; nothing runs on it.
CUDA_TORCH ?= .cuda-torch
# Data sets and models that some tests read; they are skipped where there are none.
export ORPO_SHARED ?= $(abspath $(wildcard ../shared))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-timing test-fake-cuda test-oldest test-newest faults gpu check format

help:
	@echo "make demo     set up, then train, evaluate and report on a real small model (about 5 minutes)"
	@echo "make test     set up, check and run the tests"
	@echo "make test-slow    the tests that take minutes each (hours)"
	@echo "make test-timing  bounds on seconds, on a machine with nothing else to do"
	@echo "make test-fake-cuda  the CUDA branch without a GPU (Linux on x86-64; fetches 5 GB once)"
	@echo "make test-oldest, make test-newest  core tests on the lowest versions that are allowed, and on"
	@echo "              the newest that there are (TORCH=2.13.0: with that torch)"
	@echo "make faults   500 kills, full disks and damaged files, chained at random (KILLS=, SEED=)"
	@echo "make gpu      what holds on this machine's NVIDIA GPU, in one table (under 10 minutes)"
	@echo "make check    formatting, lint, types and import contracts"
	@echo "make install  set up $(VENV) only"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
	  f"orpo_dist needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.12 ...")'
	@echo "== setting up $(VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev,quant,ray]'
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --no-build-isolation --editable '.[deepspeed]' # its setup asks torch, so torch comes first
	@touch $@

demo: $(INSTALLED)
	@echo "== demo: SmolLM2-135M-Instruct learns to answer without filler"
	$(BIN)/python examples/demo/demo.py

test: check
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not timing" tests/unit \
	  -n auto --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest -m "not slow and not timing" --ignore tests/unit

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not timing"

test-timing: $(INSTALLED)
	$(BIN)/python -m pytest -m timing

test-fake-cuda: $(INSTALLED) $(CUDA_TORCH)/torch
	ORPO_CUDA_TORCH=$(abspath $(CUDA_TORCH)) $(BIN)/python -m pytest tests/cuda

$(CUDA_TORCH)/torch: | $(INSTALLED)
	@echo "== a CUDA build of torch into $(CUDA_TORCH) (once; 5 GB)"
	$(BIN)/python -m pip install --quiet --no-cache-dir --target $(CUDA_TORCH) torch==2.11.0

# Both ends of the range of versions, in environments of their own; made anew by every call.
TORCH ?=
CORE_TESTS := tests/unit/upstream tests/unit/scoring tests/unit/batching tests/unit/models \
  tests/unit/training tests/invariance

test-oldest test-newest: test-%:
	$(PYTHON) -m venv --clear build/$*
	build/$*/bin/python -m pip install --quiet $$($(PYTHON) tests/ends.py $* $(TORCH))
	DS_BUILD_OPS=0 build/$*/bin/python -m pip install --quiet --no-build-isolation \
	  $$($(PYTHON) tests/ends.py $* --after)
	build/$*/bin/python -m pytest -m "not slow" $(CORE_TESTS)

KILLS ?= 500
SEED ?= 1
faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.campaign --kills $(KILLS) --seed $(SEED)

gpu: # installs nothing; PYTHON=... is one that has torch and transformers
	$(PYTHON) -m benchmarks.gpu --json gpu.json

check: $(INSTALLED)
	@echo "== formatting, lint, types, import contracts"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
