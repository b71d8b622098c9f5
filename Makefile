PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: install test test-extras docs lint demo

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	touch $@

test: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test-extras: $(INSTALLED)
	$(VENV)/bin/pip install --quiet --editable '.[openvino,executorch,ray]'
	$(VENV)/bin/pytest --numprocesses auto --dist loadfile -m 'extras and not slow' tests/test_deployer.py tests/test_formats.py tests/test_ray.py tests/test_runtimes.py
	command -v chromium > /dev/null || (apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium)
	$(VENV)/bin/pytest -m browser tests/test_report.py

docs: $(INSTALLED)
	$(VENV)/bin/pip install --quiet --editable '.[docs]'
	PYTHONPATH=. $(VENV)/bin/mkdocs build --strict --site-dir build/site

demo: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m recipes.demo

lint: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
