# `make` alone lists the targets. Written for GNU make 3.81 (macOS) and newer.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# The first Python that is new enough: macOS has an old `python3`, with newer ones beside it.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$python; done) python3)

# The CPU build, never CUDA unasked: macOS has no other; on Linux it is ten times smaller and lies in an index of its own.
# Another build on purpose: make install TORCH=torch==2.13.0
TORCH_VERSION := 2.13.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(shell uname -s),Darwin)
TORCH ?= torch==$(TORCH_VERSION)
else
TORCH ?= torch==$(TORCH_VERSION)+cpu
endif

# What `make serve` serves: the quickstart's state where there is one.
DATA ?= $(if $(wildcard .quickstart),.quickstart,data)

.DEFAULT_GOAL := help
.PHONY: help install quickstart serve test check fix bench soak clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Flags go in ARGS, for example: make quickstart ARGS=--again"

install: $(VENV)/.installed ## Make .venv with the tuneway command (PYTHON=python3.12 chooses the Python)
	@echo "Ready: $(BIN)/tuneway"

quickstart: $(VENV)/.installed ## Install, fine-tune the sample data here, compare with the base model
	@$(BIN)/tuneway quickstart $(ARGS)

serve: $(VENV)/.installed ## Start the gateway on ./.quickstart if it exists, else ./data (DATA=DIR chooses)
	@$(BIN)/tuneway serve --data $(DATA) $(ARGS)

test: $(VENV)/.developing ## Everything that CI runs
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.developing ## Format, lint, types, layers, generated docs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict src
	@$(BIN)/python scripts/check_layers.py
	@$(BIN)/python scripts/reference.py --check

fix: $(VENV)/.developing ## Format, mend what the linter can, write the generated docs
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/python scripts/reference.py

bench: $(VENV)/.developing ## Run the benchmarks, one after the other
	@for script in bench/*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

soak: $(VENV)/.developing ## The long counts: 200 kills, 512 MB uploads, 10,000 generated requests
	@SOAK=1 $(BIN)/python -m pytest tests/acceptance tests/wire $(ARGS)

clean: ## Remove .venv, caches and builds; data folders stay
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find src tests scripts bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.made:
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { echo "Tuneway needs Python 3.11 or newer; '$(PYTHON)' is not." \
		"Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: | $(VENV)/.made
	@echo "Installing $(TORCH) (about 200 MB; one to three minutes)"
	@$(PIP) install '$(TORCH)' 2>/dev/null || $(PIP) install '$(TORCH)' --extra-index-url $(TORCH_INDEX)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	@echo "Installing Tuneway and what it needs (about 200 MB; about a minute)"
	@$(PIP) install -e '.[local]'
	@touch $@

$(VENV)/.developing: pyproject.toml | $(VENV)/.installed
	@echo "Installing what the tests need (less than a minute)"
	@$(PIP) install -e '.[local,dev]'
	@touch $@
