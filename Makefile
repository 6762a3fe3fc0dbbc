# Each target makes the virtual environment that it needs, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt

.PHONY: demo test lint bench soak clean

demo: $(VENV)/ready-demo
	$(BIN)/python -u pipelines_examples/demo.py

# One thread for each process: threads that wait for each other are slower than none on small tensors.
test: $(VENV)/ready-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

lint: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready-test
	$(BIN)/python -m pytest tests/benchmarks -s

soak: $(VENV)/ready-test
	PYTHONPATH=.:training:pipelines_examples $(BIN)/python -m tests.soak

$(VENV)/ready-demo: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[examples]'
	touch $@

$(VENV)/ready-test: $(VENV)/ready-demo
	$(PIP) --editable '.[examples,test,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-output
