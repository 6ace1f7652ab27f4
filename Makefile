# make demo   the whole way on a drawn image set (make demo DATA=folder: on your own images)
# make test   lint, types and tests, as CI runs them
# make gpu-check   on a machine with a GPU: its tests, then all GPU benchmarks, into OUT=folder
#                  (with what is installed there already: python3 -m benchmarks.gpu_check --out folder)
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

.PHONY: help demo test lint types tests gpu-check clean

help:
	@sed -n 's/^# //p' Makefile

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/fastclr demo $(if $(DATA),--data '$(DATA)')

test: lint types tests

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

tests: $(VENV)/installed-dev
	$(BIN)/pytest $(PYTEST_ARGS)

gpu-check: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.gpu_check $(if $(OUT),--out '$(OUT)')

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
