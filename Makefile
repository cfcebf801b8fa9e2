# Short names for what CONTRIBUTING.md describes. Everything runs in .venv, which `make env` (or scripts/test.sh) sets up.
PYTHON := .venv/bin/python

.PHONY: env style check test test-fast bench

env: ## set up .venv, if it is missing or out of date
	bash -c '. scripts/lib.sh && setup_env'

style: env ## rewrite the code in the project's style
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

check: env ## style and types, changing nothing
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright

test: ## all tests
	bash scripts/test.sh

test-fast: ## the tests that need no launcher and little time
	bash scripts/test.sh --fast

bench: env ## speed and memory beside the plain way, as ratios; what else there is stands in playground/benchmark/README.md
	$(PYTHON) playground/benchmark/packing.py
	OMP_NUM_THREADS=1 $(PYTHON) playground/benchmark/head.py --repeat 1 --tokens 512 --hidden 64
