# make demo   train on real MNIST digits and draw the paper's figures 2 and 3
# make test   everything the tests check, slow ones too where SLOW=1; where nvcc is, it compiles the GPU's programs
# make lint   formatting, style and types
# make docs   the site of docs/, with the reference from the docstrings: build/site/index.html
# make bench  ours against eager PyTorch, torch.compile and, by bench/peers.txt, other packages
# make lower-bounds  every dependency but torch at its lower bound, and kernels for AVX2: the docs' examples, the
#   commands, some tests
# make browser  a headless Chromium, if there is no browser, where apt-get may install one: tests of reports open it
# make frameworks  scvi-tools, pythae, diffusers and JAX in an environment of their own: their posteriors, analysed
# make contract  what depends on torch's version; TORCH and VENV choose one, WHEEL a wheel built with another
# make package  the sdist, a wheel of it, and tests of both away from here: build/package/dist
# make sanitize  native code under GCC's sanitizers: of addresses and undefined behaviour, and of threads
# make cuda-report  registers, spills, occupancy and instructions of every CUDA kernel; needs nvcc, but no GPU
# Each makes .venv when it is missing and installs again only when the build's inputs changed.

PYTHON ?= python3
# The torch to install; any torch >= 2.10 serves, e.g. make test TORCH=torch
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

# OpenMP threads that spin at a barrier slow each other down tenfold where cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE

# what the installation was made with: it is made again when one of these changes
SETTINGS := $(TORCH) $(WHEEL) LINEAVAE_CUDA=$(LINEAVAE_CUDA) CUDAARCHS=$(CUDAARCHS)

NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPP := $(NATIVE) $(shell find tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
EMULATOR := build/cuda_emulator
GPU_PROGRAMS := build/cuda_programs
NVCC := $(shell command -v "$${CUDACXX:-nvcc}")
LOWER := build/lower-bounds
FRAMEWORKS := build/frameworks
PACKAGE := build/package
# what a processor without AVX-512 takes; on others than x86-64, what there is
AVX2 := $(if $(filter x86_64,$(shell uname -m)),-march=x86-64-v3 -DLINEAVAE_WITHOUT_CLONES)

.PHONY: demo test browser emulator gpu-programs lint docs bench lower-bounds frameworks contract package sanitize cuda-report \
    install
install: $(VENV)/installed

$(VENV)/settings: FORCE
	@mkdir -p $(VENV); echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@
FORCE:

# Without build isolation, so that CMake finds its build folder again and compiles only what changed. WHEEL, once built
# with any torch, is installed as it is.
$(VENV)/installed: $(VENV)/settings $(WHEEL) pyproject.toml CMakeLists.txt $(wildcard cmake/*) csrc/build_config.h.in $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" scikit-build-core pybind11 cmake ninja
	$(if $(WHEEL),$(BIN)/pip install --quiet --force-reinstall --no-deps "$(WHEEL)")
	$(BIN)/pip install --quiet $(if $(WHEEL),"$(WHEEL)[dev]",--no-build-isolation --editable ".[dev]")
	touch $@

demo: install
	$(BIN)/lineavae reproduce latent-dimensions analytic-vs-stochastic --preset quick --resume

# The CUDA kernels on the CPU, then everything else.
test: emulator $(if $(NVCC),gpu-programs)
	$(BIN)/ctest --test-dir $(EMULATOR) --output-on-failure -j2
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal $(if $(SLOW),,-m "not slow")

emulator: install
	bin=$$(cd $(BIN) && pwd) && $(BIN)/cmake -G Ninja -S tests/cuda_emulator -B $(EMULATOR) \
	    -DPython_EXECUTABLE="$$bin/python" -DCMAKE_MAKE_PROGRAM="$$bin/ninja"
	$(BIN)/ninja -C $(EMULATOR)

# The programs that bench/gpu.sh runs on a GPU compile, for one architecture.
gpu-programs: install
	bin=$$(cd $(BIN) && pwd) && $(BIN)/cmake -G Ninja -S tests/cuda_emulator -B $(GPU_PROGRAMS) $(CMAKE_ARGS) \
	    -DLINEAVAE_ON_GPU=ON -DCMAKE_CUDA_ARCHITECTURES=90 -DCMAKE_MAKE_PROGRAM="$$bin/ninja"
	$(BIN)/ninja -C $(GPU_PROGRAMS)

browser:
	for name in chromium chromium-headless-shell google-chrome; do command -v $$name && exit; done; \
	apt-get update && apt-get install --yes --no-install-recommends chromium-headless-shell fonts-dejavu-core

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install
	$(BIN)/pip install --quiet --requirement bench/peers.txt
	$(BIN)/pytest -c bench/pytest.ini bench

$(LOWER)/installed: pyproject.toml $(NATIVE) tests/lower_bounds.py
	$(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/pip install --quiet "$(TORCH)" $$($(PYTHON) tests/lower_bounds.py) cmake==3.24 ninja==1.10.2 \
	    pytest pytest-benchmark pytest-xdist
	CXXFLAGS="$(AVX2)" LINEAVAE_CUDA=OFF $(LOWER)/bin/pip install --quiet --no-build-isolation --no-deps -Cbuild-dir=$(LOWER)/build .
	touch $@

lower-bounds: $(LOWER)/installed
	OMP_NUM_THREADS=1 $(LOWER)/bin/pytest -n 2 -o filterwarnings=default -m "not slow" tests/test_documentation.py \
	    tests/test_diagnostics.py tests/linear/test_ppca.py tests/collapse/test_cli_collapse.py \
	    tests/collapse/test_formats.py tests/collapse/test_lightning.py tests/report tests/ops/test_linear_vae_ascent.py

frameworks:
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/pip install --quiet "$(TORCH)" scikit-build-core pybind11 cmake ninja scvi-tools pythae diffusers jax
	LINEAVAE_CUDA=OFF $(FRAMEWORKS)/bin/pip install --quiet --no-build-isolation -Cbuild-dir=$(FRAMEWORKS)/build ".[formats]"
	$(FRAMEWORKS)/bin/python tests/frameworks/posteriors.py

contract: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow" tests/test_op_contract.py tests/ops tests/nn

# Code for one instruction set: the choice between several is made before the sanitizers begin. The tests that compile
# models start other processes, and that of a long row is about vector lanes, which sanitized code does not use.
SANITIZE := $(CURDIR)/build/sanitize
SANITIZED = PYTHONPATH=$(SANITIZE)/$(1) LINEAVAE_NATIVE=_C OMP_NUM_THREADS=4 TSAN_OPTIONS=ignore_noninstrumented_modules=1 \
    LD_PRELOAD="$$(g++ -print-file-name=lib$(2).so) $$(g++ -print-file-name=libstdc++.so.6)"
sanitize: install
	bin=$$(cd $(BIN) && pwd); for kind in address,undefined thread; do \
	    CXXFLAGS="-fsanitize=$$kind -fno-sanitize-recover=all -g1 $(AVX2)" $(BIN)/cmake -G Ninja -S . \
	        -B $(SANITIZE)/$${kind%,*} -DLINEAVAE_CUDA=OFF -DPython_EXECUTABLE="$$bin/python" \
	        -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(SANITIZE)/$${kind%,*} -DCMAKE_MAKE_PROGRAM="$$bin/ninja" && \
	    $(BIN)/ninja -C $(SANITIZE)/$${kind%,*} || exit; done
	$(call SANITIZED,address,asan) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 $(BIN)/pytest --capture=sys \
	    -m "not slow" -k "not compile and not export and not long_row" \
	    tests/ops tests/test_op_contract.py tests/test_properties.py tests/collapse/test_statistics.py
	$(call SANITIZED,thread,tsan) $(BIN)/pytest --capture=sys tests/test_threads.py -k "every_operator or statistics"

# The wheel is built and installed in fresh environments, and what is tested away from here is the unpacked sdist,
# without its sources of the package.
package:
	rm -rf $(PACKAGE)
	$(PYTHON) -m venv $(PACKAGE)/builder
	$(PACKAGE)/builder/bin/pip install --quiet "$(TORCH)" build check-wheel-contents twine
	VIRTUAL_ENV=$(abspath $(PACKAGE)/builder) $(PACKAGE)/builder/bin/python -m build --outdir $(PACKAGE)/dist
	$(PACKAGE)/builder/bin/twine check --strict $(PACKAGE)/dist/*
	$(PACKAGE)/builder/bin/check-wheel-contents $(PACKAGE)/dist
	$(PYTHON) -m venv $(PACKAGE)/venv
	$(PACKAGE)/venv/bin/pip install --quiet "$(TORCH)" $(PACKAGE)/dist/*.whl pytest pytest-benchmark
	tar xf $(PACKAGE)/dist/*.tar.gz -C $(PACKAGE) --strip-components=1 --one-top-level=sdist
	rm -r $(PACKAGE)/sdist/python
	cd $(PACKAGE)/sdist && LINEAVAE_DIST=../dist ../venv/bin/pytest -m "not slow" tests/packaging/distributions.py \
	    tests/test_packaging.py tests/test_diagnostics.py tests/ops/test_gaussian_kl.py tests/linear/test_ppca.py

cuda-report: install
	PYTHONPATH=tests $(BIN)/python -m cuda_budget.report
