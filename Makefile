# What a change has to pass. `make setup` makes .venv; an activated environment is used in its place.

PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
bin := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup test test-all lint format types docs bench

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make the environment, and install the package and its tools into it
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install -e '.[dev]'

test: ## Run the tests that are not slow (under 5 minutes on two cores)
	$(bin)/pytest

test-all: ## Run every test, also the slow ones (about 15 minutes)
	$(bin)/pytest -m ""

lint: ## Check style, format and layers
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/lint-imports

format: ## Format the code, and fix what ruff can fix
	$(bin)/ruff check --fix
	$(bin)/ruff format

types: ## Check types
	$(bin)/mypy

docs: ## Check links, commands and snippets of the documentation
	$(bin)/pytest tests/unit/test_docs.py tests/integration/test_snippets.py

bench: ## Run every benchmark once, small, to see that it works
	$(bin)/python -m pip install --quiet -e '.[bench-quick]'
	$(bin)/python -m benchmarks --quick
