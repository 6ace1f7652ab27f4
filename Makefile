# make demo   all steps on a drawn image set (make demo DATA=folder: on your own images)
# make quick  the quick tests, for use while working: at most three minutes on two cores
# make test   lint, types, and all tests that are not slow; .ci/run adds the slow ones and the docs
# make test-all    what .ci/run does and the heavy tests as well, then notes the day in tests/last-test-all.txt
# make docs   the documentation, into site/; a warning is an error
# make gpu-check   on a machine with a GPU: its tests, then all GPU benchmarks, into OUT=folder
#                  (with what is installed there already: python3 -m benchmarks.gpu_check --out folder)
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

.PHONY: help demo quick test test-all lint types tests docs gpu-check clean

help:
	@sed -n 's/^# //p' Makefile
	@echo "make test-all last passed: $$(cat tests/last-test-all.txt 2>/dev/null || echo never)"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/fastclr demo $(if $(DATA),--data '$(DATA)')

quick: MARKED := not slow and not heavy
quick: tests

test: lint types tests

test-all: MARKED :=
test-all: lint types docs tests
	echo "$$(date -u +%F), commit $$(git rev-parse --short HEAD)" > tests/last-test-all.txt

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(VENV)/installed-dev
	$(BIN)/mypy

# which tests, by their marks (pyproject.toml)
MARKED ?= not slow and not heavy

tests: $(VENV)/installed-dev
	$(BIN)/pytest $(if $(MARKED),-m '$(MARKED)') $(PYTEST_ARGS)

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict --quiet

gpu-check: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.gpu_check $(if $(OUT),--out '$(OUT)')

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache
