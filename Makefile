# make demo   train on real MNIST digits and draw the paper's figures 2 and 3
# make test   everything the tests check, slow ones too where SLOW=1
# make lint   formatting, style and types
# make bench  ours against eager PyTorch and torch.compile
# make cuda-report  registers, spills and occupancy of every CUDA kernel; needs nvcc, but no GPU
# Each makes .venv when it is missing and installs again only when the build's inputs changed.

PYTHON ?= python3
# The torch to install; any torch >= 2.10 serves, e.g. make test TORCH=torch
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

# OpenMP threads that spin at a barrier slow each other down tenfold where cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE

# what the installation was made with: it is made again when one of these changes
SETTINGS := $(TORCH) LINEAVAE_CUDA=$(LINEAVAE_CUDA) CUDAARCHS=$(CUDAARCHS)
$(shell mkdir -p $(VENV); echo '$(SETTINGS)' | cmp -s - $(VENV)/settings || echo '$(SETTINGS)' > $(VENV)/settings)

NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cmake')
CPP := $(filter-out %.cmake,$(NATIVE)) $(shell find tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
EMULATOR := build/cuda_emulator

.PHONY: demo test emulator lint bench cuda-report install
install: $(VENV)/installed

# Without build isolation, so that CMake finds its build folder again and compiles only what changed.
$(VENV)/installed: $(VENV)/settings pyproject.toml CMakeLists.txt $(wildcard cmake/*) csrc/build_config.h.in $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" scikit-build-core pybind11 cmake ninja
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/lineavae reproduce latent-dimensions analytic-vs-stochastic --preset quick --resume

# The CUDA kernels on the CPU, then everything else.
test: emulator
	$(BIN)/ctest --test-dir $(EMULATOR) --output-on-failure -j2
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal $(if $(SLOW),,-m "not slow")

emulator: install
	$(BIN)/cmake -G Ninja -S tests/cuda_emulator -B $(EMULATOR) -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/ninja -C $(EMULATOR)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

bench: install
	$(BIN)/pytest -c bench/pytest.ini bench

cuda-report: install
	$(BIN)/python tests/cuda_budget/report.py
