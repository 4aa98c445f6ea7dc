# Two commands on a fresh machine (Linux, Python >= 3.11, git, make): `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
RUN := $(VENV)/bin/python -m

.PHONY: install demo test lint unit tensorrt-bindings clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "edgeprune needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch, ONNX Runtime and the rest into $(VENV): about two minutes, 6 GB."
	$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[prune,dev]'
	@touch $@

demo: install
	$(VENV)/bin/edgeprune demo --out $(DEMO) --overwrite

test: lint unit

lint: install
	$(RUN) ruff check .
	$(RUN) mypy

# One thread a worker: two workers with two threads each would fight for two cores.
unit: install tensorrt-bindings
	OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses 2 --dist worksteal

# NVIDIA's bindings (3 MB, no GPU needed) that the runner of TensorRT is checked against. Without network that test is skipped.
tensorrt-bindings: install
	@$(VENV)/bin/python tests/support/published_bindings.py

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
