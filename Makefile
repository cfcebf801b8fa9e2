# Short names for what CONTRIBUTING.md describes. Everything runs in .venv, which `make env` (or scripts/test.sh) sets up.
PYTHON := .venv/bin/python

.PHONY: env style check test test-fast bench

env: ## set up .venv, if it is missing or out of date
	bash -c '. scripts/lib.sh && setup_env'

style: env ## format the code and apply automatic fixes
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

check: env ## check style and types without changing anything
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright

test: ## the default tests
	bash scripts/test.sh

test-fast: ## the quick tests, without launchers
	bash scripts/test.sh --fast

bench: env ## speed and memory next to other trainers, which it installs: make bench TOKENIZERS=DIR DATA=FILE.jsonl
	$(PYTHON) playground/benchmark/bench.py $(if $(TOKENIZERS),--tokenizers $(TOKENIZERS)) $(if $(DATA),--data_path $(DATA)) $(BENCH)
