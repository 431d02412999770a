# SPDX-License-Identifier: Apache-2.0
# The two commands of a newcomer: `make demo` and `make test`. Both need Python 3.11+ and a C++20 compiler and nothing
# else: they make a virtual environment in .venv, build the package into it and run. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# The torch the results were measured with. On Linux without an NVIDIA GPU its CPU build saves gigabytes where pip does
# not find it by itself:  make demo PIP_TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
PIP_TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Python files are used in place (an editable install); only what is compiled or declared asks for a new install.
SOURCES := pyproject.toml CMakeLists.txt $(shell find kernels csrc -type f 2>/dev/null)
CPP_FILES := $(shell find kernels csrc tests examples -name '*.cc' -o -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.PHONY: help demo test test-python test-cpp test-emulated bench lint format clean
.DELETE_ON_ERROR:

help:
	@echo "make demo [QUICK=1] [VOICES=folder|tar] [SEED=n] [FRESH=1] [RUN=runs/demo]   run the recipe on a tiny model"
	@echo "make test                                          every test (Python and C++)"
	@echo "make test-emulated                                 the CUDA kernels from Python, emulated on the CPU"
	@echo "make bench [RESULTS=file] [ARGS=...]               every kernel beside its peers, and the report of it"
	@echo "make lint | make format                            check | tidy the sources"
	@echo "make clean                                         remove $(VENV) and build"

demo: $(VENV)/.installed
	$(BIN)/earnest demo --run $(or $(RUN),runs/demo) $(if $(filter-out 0,$(QUICK)),--quick) \
	  $(if $(VOICES),--voices "$(VOICES)") $(if $(SEED),--seed $(SEED)) $(if $(filter-out 0,$(FRESH)),--fresh) $(ARGS)

# The C++ tests run first: where a kernel is wrong, they say it most plainly.
test: test-cpp test-python

test-python: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --durations=10 $(ARGS)

test-cpp: $(VENV)/.installed-dev
	$(BIN)/cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DEARNEST_TESTS=ON
	$(BIN)/cmake --build build/cpp
	$(BIN)/ctest --test-dir build/cpp --output-on-failure -j $(JOBS)

# The CUDA kernels' tests from Python, with the kernels under their emulator: no GPU, no nvcc.
test-emulated: $(VENV)/.installed-dev
	$(BIN)/cmake -S . -B build/emulated-python -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DEARNEST_PYTHON=ON \
	  -DEARNEST_CUDA=EMULATED -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -Dnanobind_DIR="$$($(BIN)/python -m nanobind --cmake_dir)"
	$(BIN)/cmake --build build/emulated-python --target _native fake_cublaslt
	EARNEST_EMULATED="$$(echo build/emulated-python/_native*.so)" EARNEST_CUBLASLT=$(CURDIR)/build/emulated-python/libfake_cublaslt.so OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) tests/cuda

bench: $(VENV)/.installed-bench
	$(BIN)/earnest bench --peers --json $(or $(RESULTS),bench/results/cpu.jsonl) $(ARGS)
	$(BIN)/earnest bench report $(or $(RESULTS),)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(if $(CPP_FILES),$(BIN)/clang-format --dry-run --Werror $(CPP_FILES))
	$(BIN)/python -m pytest -q tests/test_tree.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(if $(CPP_FILES),$(BIN)/clang-format -i $(CPP_FILES))

clean:
	rm -rf $(VENV) build

# ---- the environment; a stamp file each, newer than what it was made from ----

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --progress-bar off $(PIP_TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) install --quiet --progress-bar off --editable '.[voice]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch $(SOURCES)
	$(PIP) install --quiet --progress-bar off --editable '.[dev,voice]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/.torch $(SOURCES)
	$(PIP) install --quiet --progress-bar off --editable '.[bench]'
	@touch $@ $(VENV)/.installed
