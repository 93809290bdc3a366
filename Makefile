# Two commands matter to a newcomer: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two threads by default: what the figures in this repository were measured with.
export OMP_NUM_THREADS ?= 2

.PHONY: help install demo test test-slow check lint types layers bench docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## make .venv with everything for development

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $(STAMP)

demo: install ## train a small model, audit it, harden it, audit it again: demo-run/report.html
	$(BIN)/vauban demo --out demo-run

test: install ## every test but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m 'not slow'

test-slow: install ## strength tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow

lint: install
	$(BIN)/ruff check src tests bench docs
	$(BIN)/ruff format --check src tests bench docs

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

check: lint types layers test ## what CI runs

bench: install ## speed and strength beside the peers, in their own environment: bench/results/*.json
	bash bench/run

docs: install ## pages on attacks, defences, rules and errors, from their docstrings
	$(BIN)/python -m docs.build

clean: ## forget environments and caches
	rm -rf $(VENV) .bench-venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
