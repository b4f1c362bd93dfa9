# For a fresh machine: `make install`, `make run` and `make test`. The rest is for those who work on the code.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Two test processes share out whole files, in the order of tests/conftest.py.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install run test test-fast test-all check format configuration clean

install: $(INSTALLED)

run: install
	$(BIN)/python pipeline.py run --stage all

test: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not nightly"

test-fast: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not nightly"

test-all: install
	$(BIN)/python -m pytest $(PARALLEL)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

configuration: install
	$(BIN)/python -m pipelines.config.documentation

clean:
	rm -rf .venv runs

# Plain pip and the lock: no resolver, no surprise. The stamp makes the second `make` start at once.
$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "Realword needs Python 3.11 or 3.12; set PYTHON=... to one")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
