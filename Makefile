# make demo   attack the embedded classifier: table, JSON and figure in ./sdsgsm-demo
# make test   ruff, mypy and the tests, also as on a CPU with AVX2 alone
# make test-all   every test, builds with real compilers included, for three instruction sets
# make bench  the benchmarks of kernels, occlusion and attacks on this machine, an hour
# All start from a fresh clone: they make .venv, install the pinned versions and build the kernels.

ifneq ($(words $(MAKEFILE_LIST)),1)
$(error make cannot work below a path with spaces: clone somewhere else, or use pip install)
endif

PYTHON ?= python3
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
VENV := $(ROOT)/.venv
BIN := $(VENV)/bin
SOURCES := $(shell find $(ROOT)/csrc -type f) $(ROOT)/setup.py $(ROOT)/pyproject.toml
DEMO_ARGS ?=
BENCH_ARGS ?=

# Tests that depend on what oneDNN does on the CPU, which reads its cap when torch is loaded.
AVX2_TESTS := $(addprefix $(ROOT)/tests/,$(addprefix engine/test_,surrogate.py incremental.py cache.py) attack/test_bfloat16.py)
# In their order: the longest files have few tests, and would come last and alone.
PYTEST := -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -c $(ROOT)/pyproject.toml

.PHONY: demo test test-all bench lint clean

demo: $(VENV)/.installed
	$(BIN)/sdsgsm demo $(DEMO_ARGS)

test: lint
	$(BIN)/python $(PYTEST) -m "not slow" $(ROOT)/tests
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python $(PYTEST) -m "not slow" --isa avx2 $(AVX2_TESTS)

test-all: lint
	$(BIN)/python $(PYTEST) $(ROOT)/tests
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python $(PYTEST) --isa avx2 $(ROOT)/tests
	ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python $(PYTEST) --isa baseline $(ROOT)/tests

bench: $(VENV)/.installed
	cd $(ROOT) && $(BIN)/python -m bench update $(BENCH_ARGS)
	cd $(ROOT) && $(BIN)/python -m bench occlude $(BENCH_ARGS)
	cd $(ROOT) && $(BIN)/python -m bench occlusion $(BENCH_ARGS)
	cd $(ROOT) && $(BIN)/python -m bench attack $(BENCH_ARGS)

lint: $(VENV)/.installed
	cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

$(VENV)/.installed: $(SOURCES) $(ROOT)/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"the pinned versions need Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -c $(ROOT)/constraints.txt setuptools pybind11
	$(BIN)/python -m pip install -q --no-compile -c $(ROOT)/constraints.txt --no-build-isolation \
		-e '$(ROOT)[cli,test]'
	# It asks for torchvision, of which there is no CPU build on PyPI, and does not need it.
	$(BIN)/python -m pip install -q --no-compile -c $(ROOT)/constraints.txt --no-deps torchattacks
	# On all cores, which pip does not do; some packages ship files that are no Python of today.
	-$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null
	touch $@

clean:
	rm -rf $(VENV) $(ROOT)/build $(ROOT)/*.egg-info $(ROOT)/sdsgsm_fast/*.so \
		$(ROOT)/sdsgsm_fast/_build_info.json
