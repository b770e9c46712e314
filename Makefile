# Everything that people and CI do with this repository. `make` alone lists it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install run demo test test-slow test-gpu check fix clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

.venv/installed: pyproject.toml requirements.txt requirements-platform.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install it, or name it with make PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing: apt install python3-venv"; exit 2; }
	$(PIP) -e '.[app]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[app,dev]'
	@touch $@

install: .venv/installed ## build .venv with everything the page needs

run: install ## serve the page on http://127.0.0.1:7860
	$(BIN)/python app.py

demo: install ## train the embedded base in the terminal and compare, in a few minutes on 2 cores
	$(BIN)/python -m qlora_space train
	$(BIN)/python -m qlora_space compare --run latest

test: .venv/installed-dev ## all tests that need neither a GPU nor the Hub, two at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed-dev ## the long ones
	$(BIN)/python -m pytest -m slow

test-gpu: .venv/installed-dev ## on a machine with a CUDA device
	$(BIN)/python -m pytest -m gpu

check: .venv/installed-dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

fix: .venv/installed-dev ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info
