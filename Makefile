# Every target sets up what it needs; `make demo` or `make test` is all that a fresh clone takes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup demo check test test-all bench

help:
	@echo "make setup     install everything into $(VENV)"
	@echo "make demo      train, compare, explain, export and measure a small model on digits; writes demo/report.html"
	@echo "make check     format, lint, types, import arrows, public surface"
	@echo "make test      the default test suite"
	@echo "make test-all  the slow tests too"
	@echo "make bench     the benchmarks; twenty minutes"

setup: $(INSTALLED)

# uv installs in a fraction of pip's time; where it cannot be had, or cannot reach the index that pip is set to, pip does it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "convattn needs Python 3.11 or newer; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	@$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -e ".[dev]" -c constraints.txt || \
		$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

demo: $(INSTALLED)
	$(BIN)/convattn demo

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -q tests/test_import_arrows.py tests/test_public_surface.py tests/test_import.py

# One thread a worker: two workers that each take all cores wait for one another. Each worker begins with a half of the
# tests in their order, so that what a file or a family sets up is mostly set up once.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist worksteal -m "not slow"

test-all: $(INSTALLED)
	$(PYTEST)

bench: $(INSTALLED)
	@set -e; for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python $$script; done
