# Everything that people and CI do with this repository. `make` alone lists it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
# A Python that is named gets an environment of its own beside .venv: make test PYTHON=python3.12
VENV := $(if $(findstring command line,$(origin PYTHON)),.venv-$(notdir $(PYTHON)),.venv)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The command line, a whole job from Hub to Hub, the worker's processes, the page's server and API, a deployment.
SPACE_TESTS := tests/test_packaging.py tests/test_whole_job.py tests/places tests/app/ui/test_server.py \
	tests/app/ui/test_api.py tests/hub/test_deploy.py tests/hub/test_space_files.py

.PHONY: help install run demo test test-space test-slow test-gpu check fix clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/installed: pyproject.toml requirements.txt requirements-platform.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install it, or name it with make PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: apt install python3-venv"; exit 2; }
	$(PIP) -e '.[app]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[app,dev]'
	@touch $@

install: $(VENV)/installed ## build .venv with everything the page needs

run: install ## serve the page on http://127.0.0.1:7860
	$(BIN)/python app.py

demo: install ## train the embedded base in the terminal and compare, in a few minutes on 2 cores
	$(BIN)/python -m qlora_space train
	$(BIN)/python -m qlora_space compare --run latest

test: $(VENV)/installed-dev ## all tests that need neither a GPU nor the Hub, two at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-space: $(VENV)/installed-dev ## what a Space rests on; for its Python: make test-space PYTHON=python3.12
	$(BIN)/python -m pytest -n 2 --dist loadfile $(SPACE_TESTS)

test-slow: $(VENV)/installed-dev ## the long ones
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/installed-dev ## on a machine with a CUDA device
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/installed-dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

fix: $(VENV)/installed-dev ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and caches
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .hypothesis build *.egg-info
