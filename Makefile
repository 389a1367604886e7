# Everything here makes its own environment in .venv; nothing has to be installed by hand but Python 3.11+ and make.
PYTHON ?= $(shell for candidate in python3.14 python3.13 python3.12 python3.11 python3; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$candidate; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test check bench chaos format clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: .venv/demo ## Start a server of its own, run a job per file of Python's standard library, show what happened
	@$(BIN)/axeq demo

# Three processes, a file of tests in each at a time: in the order given, so that what takes long is begun early.
TOGETHER = $(BIN)/python -m pytest -q --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: .venv/dev ## Run every test that needs nothing but this folder
	$(TOGETHER) tests/typing tests/acceptance tests/server tests/unit
	$(TOGETHER) tests/races tests/faults

check: .venv/dev ## Lint, format and type-check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict axeq
	$(BIN)/pyright --pythonpath $(BIN)/python axeq

bench: .venv/dev ## Measure axeq beside the raw driver
	$(BIN)/python benchmarks/core.py

SECONDS ?= 300
SEED ?= 1
chaos: .venv/dev ## Kill, freeze and cut off workers, restart their server, for SECONDS=300; judge what became of every job
	$(BIN)/python -m tests.faults.soak --seconds $(SECONDS) --seed $(SEED) --report docs/reliability.md

format: .venv/dev ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove the environment and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/made:
	@test -n "$(PYTHON)" || { echo "axeq needs Python 3.11 or newer: install it, or say where it is with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/demo: .venv/made pyproject.toml
	$(PIP) install --editable '.[cli,embedded]'
	@touch $@

.venv/dev: .venv/made pyproject.toml
	$(PIP) install --editable '.[dev]'
	@touch $@ .venv/demo
