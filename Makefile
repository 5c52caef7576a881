# make demo   train on real MNIST digits and draw the paper's figures 2 and 3
# make test   everything the tests check, slow ones too where SLOW=1
# make lint   formatting, style and types
# make bench  ours against eager PyTorch and torch.compile
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

CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint bench install
install: $(VENV)/installed

# Without build isolation, so that CMake finds its build folder again and compiles only what changed.
$(VENV)/installed: $(VENV)/settings pyproject.toml CMakeLists.txt cmake/torch_probe.py csrc/build_config.h.in $(CPP)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" scikit-build-core pybind11 cmake ninja
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/lineavae reproduce latent-dimensions analytic-vs-stochastic --preset quick --resume

test: install
	$(BIN)/pytest $(if $(SLOW),,-m "not slow")

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

bench: install
	$(BIN)/pytest -c bench/pytest.ini bench
