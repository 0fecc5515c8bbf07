# Everything a person does here. `make demo` and `make test` set up all they need.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The type checker and the import checker read plain folders, so they are given one tree with the three roots in it.
TREE := build/tree

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test fast lint format compile clean distclean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[sandbox,dev]'
	@touch $@

setup: $(STAMP) ## Make the virtual environment

demo: $(STAMP) ## Take a real model to an answering endpoint on this machine
	@$(BIN)/streamway run configs/sandbox.yaml

browser: ## Install Chromium, which the report's tests look through, where there is none
	@command -v chromium google-chrome >/dev/null || { \
		echo "Installing Chromium"; sudo=$$([ $$(id -u) = 0 ] || echo sudo); \
		$$sudo apt-get update -qq && $$sudo apt-get install --yes -qq --no-install-recommends chromium >/dev/null; }

test: $(STAMP) browser lint ## Check everything, with the real engine
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not engine"
	$(BIN)/pytest -m engine

fast: $(STAMP) browser ## The tests that take seconds
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not engine and not slow"

lint: $(STAMP) ## Style, types and walls
	@mkdir -p $(TREE)/streamway
	@find $(TREE)/streamway -maxdepth 1 -type l -delete
	@ln -s $(addprefix $(CURDIR)/,$(wildcard src/streamway/*) components pipelines) $(TREE)/streamway/
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	MYPYPATH=$(TREE) $(BIN)/mypy -p streamway
	PYTHONPATH=$(TREE) $(BIN)/lint-imports

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

compile: $(STAMP) ## Compile the pipelines to build/
	@for pipeline in serve_model promote_model retire_model; do \
		$(BIN)/streamway compile $$pipeline -o build/$$pipeline.yaml || exit; done

clean: ## Remove what was built, and the sandbox's state
	rm -rf build dist .streamway .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

distclean: clean ## Remove the virtual environment as well
	rm -rf $(VENV)
