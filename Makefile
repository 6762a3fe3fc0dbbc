# Each target makes the virtual environment that it needs, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Compiling every installed module takes twice as long as the rest of the installation, and few of them are imported.
# Python compiles those once, so it must be allowed to keep their bytecode.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
PIP := $(BIN)/python $(INSTALL) --constraint .ci/constraints.txt
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test pytest test-slow test-accelerator test-oldest lint bench claims docs soak clean

demo: $(VENV)/ready-demo
	$(BIN)/python -u pipelines_examples/quickstart/demo.py

test: $(VENV)/ready-test
	$(MAKE) --jobs=2 --no-print-directory lint pytest

# One thread for each process: threads that wait for each other are slower than none on small tensors.
PYTEST := -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal
# Many tests compare numbers that must be equal, or start two processes, so they run on the CPU.
ON_CPU := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1

pytest: $(VENV)/compiled
	$(ON_CPU) $(BIN)/python $(PYTEST) -m "not slow"

# The tests that start processes, such as those of launchers, kills and the Hub, or that follow many field lines.
test-slow: $(VENV)/compiled
	$(ON_CPU) $(BIN)/python $(PYTEST) -m slow

# The tests of an accelerator, on a machine that has one. It needs the torch build of that machine.
test-accelerator: $(VENV)/ready-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/accelerator

lint: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The same tests with the oldest releases that pyproject.toml allows, in a virtual environment of their own.
test-oldest: $(VENV)-oldest/ready
	$(ON_CPU) $(VENV)-oldest/bin/python $(PYTEST)

bench: $(VENV)/ready-test
	$(BIN)/python -m pytest tests/benchmarks -s

# The claims of the papers, in docs/claims.md. MNIST=<folder or parquet file> adds those that need its test images.
claims: $(VENV)/ready-demo
	$(BIN)/python -u pipelines_examples/claims/claims.py $(if $(MNIST),--mnist "$(MNIST)")

# The pages of docs/ with the API reference, in docs-output.
docs: $(VENV)/ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file .ci/mkdocs.yml

soak: $(VENV)/ready-test
	$(BIN)/python -m tests.training.soak

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready-demo: pyproject.toml .ci/constraints.txt | $(BIN)/pip
	$(PIP) torch --editable '.[examples]'
	touch $@

$(VENV)/ready-test: pyproject.toml .ci/constraints.txt | $(BIN)/pip
	$(PIP) torch --editable '.[examples,test,dev]'
	touch $(VENV)/ready-demo $@

# Workers that start together would all compile the same modules. One process takes no longer, beside `make lint`.
$(VENV)/compiled: $(VENV)/ready-test
	$(BIN)/python -c "import diffusers.pipelines.pipeline_utils, diffusers_pfgm.training.run.loop"
	touch $@

$(VENV)/ready-docs: $(VENV)/ready-test
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)-oldest/ready: pyproject.toml .ci/constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python $(INSTALL) \
		--constraint .ci/constraints-oldest.txt --editable '.[examples,test]' pandas pyarrow pyparsing
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest demo-output docs-output
