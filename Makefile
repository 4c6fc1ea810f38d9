# `make setup` makes .venv with pinned dependencies and the trestle command; `make demo` and `make test` call it themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: setup demo demo-clip test soak lint unit lock clean

setup: $(VENV)/.complete

# torch comes first, so that nothing that needs it chooses another one; DeepSpeed is built against it, without kernels:
# Trestle uses torch's own fused AdamW.
$(VENV)/.complete: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "trestle needs Python 3.11 or 3.12, and $(PYTHON) is %d.%d: make PYTHON=python3.11" % v)'
	@$(PYTHON) -c 'import os, sysconfig, sys; sys.exit(0 if os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")) else "Python.h is missing: install the headers of $(PYTHON) (Debian: python3-dev)")'
	@command -v g++ >/dev/null || { echo "g++ is missing: install it (Debian: g++)"; exit 1; }
	@echo "setting up $(VENV): a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip setuptools wheel
	$(PIP) torch
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	$(PIP) --no-build-isolation --editable '.[test,bench]'
	@touch $@

# Starts afresh in ./demo: prepares a corpus mix, trains, evaluates, samples; minutes on 2 cores.
demo: setup
	@rm -rf demo && mkdir demo
	@cd demo && ../$(BIN)/python -m launcher.demo

# The same in ./demo-clip for a model of pictures and texts.
demo-clip: setup
	@rm -rf demo-clip && mkdir demo-clip
	@cd demo-clip && ../$(BIN)/python -m launcher.demo_clip

test: setup lint unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

# A hundred faults by hand, about half an hour on 2 quiet cores: make soak SOAK='--seed 2 --faults 40'
SOAK ?= --seed 1 --faults 100
soak: setup
	$(BIN)/python -m tests.faults.soak $(SOAK)

unit: setup
	$(BIN)/python -m pytest

# Writes down what is installed; run it in a fresh .venv after changing a range.
lock: setup
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip list --format=freeze --exclude-editable \
	  | sed 's/^\(torch==[0-9.]*\)+.*/\1/' | sort -f; } > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) demo demo-clip build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
