# demo, serve and test need nothing but Python 3.11 or newer: they make their own environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo serve test lint bench clean

demo: .venv/installed
	$(BIN)/pareto-search demo --out runs/demo

serve: .venv/installed
	$(BIN)/pareto-search serve --root runs/service

# Tests wait for processes that they have started: three at a time keep two cores busy.
test: .venv/installed
	./tests/system-packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m benchmarks.baselines --seeds 2
	$(BIN)/python -m benchmarks.evolution --seeds 2
	$(BIN)/python -m benchmarks.kills --kills 20
	$(BIN)/python -m benchmarks.driver --candidates 1000
	$(BIN)/python -m benchmarks.limit --layers 2
	$(BIN)/python -m benchmarks.growth --items 1000 10000
	$(BIN)/python -m benchmarks.load --seconds 20
	$(BIN)/python -m benchmarks.fuzz --requests 1000
	$(BIN)/python -m benchmarks.simulate --seeds 3
	$(BIN)/python -m benchmarks.ablations --minutes 2 --variants 'as it is' 'without merging'

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,postgresql]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
