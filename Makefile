# Two commands matter: `make demo` and `make test`. Both make their own .venv from pinned versions first.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo   install, train on digit scenes, evaluate, analyze, write a report (minutes)"
	@echo "make test   install, lint, check types, run the tests"
	@echo "make lint   the lint and type gates alone"
	@echo "make bench  time and memory beside other implementations, on this machine"
	@echo "make clean  remove .venv and caches; runs/ stays"

# Made anew when the dependencies change; an unfinished install leaves no stamp and is repeated.
$(VENV)/installed: pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,convert,hub,dev]'
	@touch $@

demo: $(VENV)/installed
	@echo "== training, evaluating and analyzing a small SKNet on digit scenes"
	$(BIN)/selkern train

lint: $(VENV)/installed
	@echo "== lint, format, types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@echo "== tests"
	$(BIN)/pytest -n 2

bench: $(VENV)/installed
	$(BIN)/selkern bench

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
