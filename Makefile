# What a change goes through. scripts/test.sh sets up .venv; the other targets expect it.
PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: style check test fast bench

style:  ## format, and mend what ruff can
	ruff format . && ruff check --fix .

check:  ## formatting, lint and types, changing nothing
	ruff format --check . && ruff check . && pyright

test:  ## everything
	bash scripts/test.sh

fast:  ## what needs no launcher and little time
	bash scripts/test.sh --fast

bench:  ## the benchmarks that need no GPU; playground/benchmark/README.md has the others
	python playground/benchmark/packing.py
