# make demo   from photos to an exported file, offline   make test        format, lint, types and tests
# make lint   format, lint and types                     make test-full   all tests, also the slow ones
# make gpu    checks that need a GPU, in ten minutes; writes 25 GB to GPU=/tmp/fastdb-gpu
# make wheel  dist/*.whl of the last commit, with its SHA-256

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Until version 0.1.0 the distribution was called fastdb; both would own bin/fastdb.
RENAMED = $(BIN)/python -m pip uninstall --quiet --disable-pip-version-check -y fastdb 2>&1 | grep -v 'not installed' || true; \
	rm -rf fastdb.egg-info

GPU ?= /tmp/fastdb-gpu

.PHONY: demo test test-full gpu lint notebooks wheel clean

demo: $(VENV)/.demo
	$(BIN)/fastdb demo $(DEMO)

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n 4 --dist worksteal $(PYTEST)
	tests/other_pythons.sh

test-full: $(VENV)/.test
	$(BIN)/python -m pytest -m "full or not full" --real-processes --hypothesis-profile=default $(PYTEST)

gpu: $(VENV)/.test
	$(BIN)/python -m pytest -m gpu $(PYTEST)
	$(BIN)/python benchmarks/gpu.py $(GPU)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

notebooks: $(VENV)/.test
	$(BIN)/python notebooks/build.py

wheel: $(VENV)/.test
	$(BIN)/python wheels/build $(WHEEL)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "fastdb needs Python 3.11 or newer, and none was found"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.py constraints.txt | $(VENV)/bin/python
	$(RENAMED)
	$(PIP) -e .[faces]
	touch $@

$(VENV)/.test: setup.py constraints.txt | $(VENV)/bin/python
	$(RENAMED)
	$(PIP) -e .[test]
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
