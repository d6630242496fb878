# The first two targets are the README's: see it work, and prove that it does.
.PHONY: demo test lint fix clean

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

demo: $(STAMP)
	$(BIN)/python benchmarks/streets_adaptation.py --seeds 0 --output runs/demo --show

# One thread a process: the tensors are small, and processes share the work better than threads do.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m signals --cov --cov-report=
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not signals' -n $(WORKERS) --max-worker-restart 0 --dist loadfile --cov --cov-append --cov-report=term:skip-covered --cov-fail-under=90

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints-dev.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints-dev.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf .venv .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache build dist
