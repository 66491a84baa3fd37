# Everything a newcomer needs: `make demo` and `make test` do their own set-up.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
SOURCES := llmos syscalls drivers memory kernel agents
CODE := $(SOURCES) scripts tests examples benchmarks
PYTEST_ARGS ?=

.PHONY: help setup demo test check bench format lint types floors docs clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | \
	  while IFS=$$'\t' read -r name what; do printf '  make %-8s %s\n' "$$name" "$$what"; done

setup: ## make .venv: packages, the compiled llama.cpp binding, the two default models
	@$(PYTHON) scripts/setup_env.py

demo: setup ## run many agents at once over this project's own docs
	@$(BIN)/llmos demo

test: setup ## run all tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: setup ## run all benchmarks and write the pages of their figures
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev,bench]'
	@$(BIN)/python -m benchmarks

check: lint types floors ## formatting, lint, types, import floors, generated docs

format: setup ## rewrite the code in the house format
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix --quiet $(CODE)

lint: setup ## formatting and lint, changing nothing
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)

# Type checkers do not follow the editable install's folder mapping, so a copy laid out as the
# installed package is checked; sed turns its paths back into those of the sources. The lock lets
# two of these run at once.
types: setup ## pyright in strict mode
	@mkdir -p build/types
	@flock build/types/lock bash -eu -o pipefail -c '\
	  rm -rf build/types/llmos && cp -r llmos build/types/llmos && \
	  cp -r syscalls drivers memory kernel agents build/types/llmos/ && \
	  PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright | \
	  sed -E "s#[^ ]*/build/types/llmos/(syscalls|drivers|memory|kernel|agents)/#\1/#; s#[^ ]*/build/types/##; s#$(CURDIR)/##"'

floors: setup ## import floors, and that every syscall has its handler, method and docs
	@$(BIN)/python -m pytest -q tests/test_floors.py tests/test_abi.py

docs: setup ## rewrite the generated docs (docs/abi.md, docs/abi.json)
	@$(BIN)/python -m llmos.abi_docs

clean: ## remove everything that set-up and the tools made here (models and wheels stay cached)
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
