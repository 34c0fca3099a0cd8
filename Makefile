# make demo | test | lint | bench | conformance | zoo | fuzz | random-graphs | linear-regions | pass-orders | memory: each sets up what it needs in $(VENV) first.

SHELL := bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench conformance zoo fuzz random-graphs linear-regions pass-orders memory clean

help:
	@echo "make demo         compile and run the digit network and MobileNetV2; writes digits.png"
	@echo "make test         all tests"
	@echo "make lint         ruff (rules and format), mypy, import contracts"
	@echo "make bench        machine peak, MobileNetV2 by kernel, compile times, oversubscription"
	@echo "make conformance  the test cases of the onnx package, against tests/conformance/expected_failures.txt"
	@echo "make zoo          every model of the zoo against ONNX Runtime; MODELS='resnet18 …' for some"
	@echo "make fuzz         5,000 damaged models; FLAGS='--seed 1 --count 100' for others"
	@echo "make random-graphs  2,000 random models against ONNX's reference; FLAGS as for fuzz"
	@echo "make linear-regions  1,000 random regions of linear operators, merged and as they are; FLAGS as for fuzz"
	@echo "make pass-orders  50 models of the zoo with their passes in random orders; FLAGS as for fuzz"
	@echo "make memory       the arena of every model of the zoo beside its lower bound; MODELS, FLAGS='--budget 0.5'"
	@echo "make clean        remove what these made"

# A stamp per extra: $(VENV)/.installed-test means that `pip install -e .[test]` has run since pyproject.toml changed.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

demo: $(VENV)/.installed-demo
	$(BIN)/python -m examples.digits.run

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.peak
	$(BIN)/python -m benchmarks.model
	$(BIN)/python -m benchmarks.compile_time
	$(BIN)/python -m benchmarks.oversubscription

conformance: $(VENV)/.installed-test
	$(BIN)/python -m tests.conformance

zoo: $(VENV)/.installed-test
	$(BIN)/python tests/zoo_sweep.py $(MODELS)

fuzz: $(VENV)/.installed-test
	$(BIN)/python tests/fuzz.py $(FLAGS)

random-graphs: $(VENV)/.installed-test
	$(BIN)/python tests/random_graphs.py $(FLAGS)

linear-regions: $(VENV)/.installed-test
	$(BIN)/python tests/linear_regions.py $(FLAGS)

pass-orders: $(VENV)/.installed-test
	$(BIN)/python tests/pass_orders.py $(FLAGS)

memory: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.memory $(MODELS) $(FLAGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache digits.png
