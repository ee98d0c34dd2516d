# `make app` is all that you need to try the page; `make help` lists the rest.
PYTHON ?= python3
PORT ?= 7860
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup app test

help:
	@echo "make app    serve the page at http://127.0.0.1:$(PORT) (PORT=... changes the port, ARGS=... adds options of app.py)"
	@echo "make test   lint, type check and run all tests"
	@echo "make setup  only create $(VENV) and install requirements.txt into it"
	@echo "PYTHON=...  the Python, 3.10 to 3.13, for $(VENV) (now: $(PYTHON))"

setup: $(VENV)/.installed

app: setup
	$(BIN)/python app.py --port $(PORT) $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pem analysis
	@# There are wheels of Biome for Linux on x86-64 only.
	[ ! -x $(BIN)/biome ] || { $(BIN)/biome lint --error-on-warnings ui && $(BIN)/biome format ui; }
	@# As many processes as cores, with one thread each, but no more than four: each takes up to 3 GB.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is too old or missing: name a Python 3.10 to 3.13 with make PYTHON=/path/to/python."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# When a requirements file is newer than its stamp, pip runs again.
$(VENV)/.installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-peers.txt requirements-readers.txt requirements-metrics.txt requirements-export.txt requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r requirements-readers.txt
	touch $(VENV)/.installed $@
