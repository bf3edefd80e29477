PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test check lint types docs bench clean

quickstart: $(READY)  ## install, run the main job on the sample data, print where the report is
	$(BIN)/tunescope quickstart

test: $(READY)  ## install and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY) lint types test  ## what CI runs: lint, types, tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)  ## rewrite the generated pages
	$(BIN)/python -c 'from tunescope.config import markdown; print(markdown(), end="")' > docs/configuration.md

bench: $(READY)  ## interleaved comparisons with the peers (hours on two cores); ROWS="tuning few_shot" picks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks $(ROWS)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "tunescope needs Python 3.11 to 3.13, this is %s; run make PYTHON=python3.12 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
