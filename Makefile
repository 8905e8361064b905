# make demo | test | lint | wheel | clean. Needs Python 3.11 or newer with pip, and make; everything else goes into .venv.

# The first Python of 3.11 or newer that answers; `make PYTHON=/path/to/python demo` overrides it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
WORKERS ?= auto
EXTRAS ?= test

.PHONY: demo test lint wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python -m demo.read_words

test: $(VENV)/.$(EXTRAS)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel: $(VENV)/.python
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

clean:
	rm -rf $(VENV) build dist .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Some distributions ship Python without ensurepip: the outer pip then fills the environment.
$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip --clear $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install -q pip; }
	@touch $@

$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/.python
	$(PIP) -e '.[$*]'
	@touch $@
