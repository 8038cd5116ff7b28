# `make` alone lists what can be typed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-slow test-gpu bench lock clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

$(VENV)/installed: pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[dev]"
	@touch $@

setup: $(VENV)/installed ## make .venv with everything that tests and checks need (CPU)

check: setup ## ruff, ruff format, mypy --strict, import-linter, size caps
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -q tests/contract/test_sizes.py

format: setup ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## the normal suite: CPU, offline, minutes
	$(PYTEST)

test-slow: setup ## the tests that take minutes each
	$(PYTEST) -m slow --timeout 3600

test-gpu: setup ## the tests that need a CUDA GPU
	$(PYTEST) -m gpu

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
