# One command a task; CI runs the same ones. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built

.PHONY: help
help: ## List the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: serve
serve: $(BUILT) ## Build, and serve on 127.0.0.1:8080 with metrics on 127.0.0.1:8088
	@exec $(BIN)/iproto serve

.PHONY: test
test: $(BUILT) ## Build, and run all tests
	$(BIN)/python -m pytest

.PHONY: lint
lint: $(BUILT) ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src/_fastframe.pyx
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest iproto._fastframe --mypy-config-file pyproject.toml

.PHONY: format
format: $(BUILT) ## Put the Python code into its style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf $(VENV) build dist benchmarks/build src/*.egg-info src/iproto/*.so

# The environment and the extension; made anew when what they are made of changes.
$(BUILT): pyproject.toml setup.py src/_fastframe.pyx
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group test --group lint
	touch $@
