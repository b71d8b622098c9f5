PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: install test lint demo

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	touch $@

test: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pytest

demo: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m recipes.demo

lint: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
