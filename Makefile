# demo and test need nothing but Python 3.11 or newer: they make their own environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/pareto-search demo --out runs/demo

test: .venv/installed
	./tests/system-packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m benchmarks.baselines --seeds 2
	$(BIN)/python -m benchmarks.evolution --seeds 2
	$(BIN)/python -m benchmarks.kills --kills 20

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,postgresql]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
