# Two commands on a fresh machine with Python and a C++ compiler: `make study` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
# Built beside torch, not in pip's isolated environment: the autograd nodes are compiled for the torch that is there.
INSTALL := $(PIP) torch scikit-build-core nanobind cmake ninja && $(PIP) --no-build-isolation
BUILD_FILES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard cpp/*)

.PHONY: study test test-long bench lint types format clean

study: $(VENV)/study.stamp
	$(BIN)/batchfree study norm-batch --out runs/norm-batch

# Two workers with one thread each: more threads than cores make small tests several times slower.
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# What takes minutes each: fifty kills, every network of keras.applications, every built-in study.
test-long: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m long

# With nothing else running: every shape, ours against torch's operators, in some minutes.
bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks --json benchmarks.json

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"The pinned versions need Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Run: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/study.stamp: $(BUILD_FILES) | $(BIN)/python
	@echo "Installing batchfree[study] into $(VENV) (some minutes the first time)"
	$(INSTALL) --editable '.[study]'
	@touch $@

$(VENV)/dev.stamp: $(BUILD_FILES) | $(BIN)/python
	@echo "Installing batchfree[dev] into $(VENV) (some minutes the first time)"
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/study.stamp

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
