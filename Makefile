# Two commands matter: `make demo` and `make test`. Both make their own .venv from pinned versions first.
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
PYTHON ?= python3

.PHONY: demo test test-all clients clients-table lint bench clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo   install, train on digit scenes, evaluate, analyze, write a report (minutes)"
	@echo "make test   install, lint, check types, run the fast tests (about 6 minutes)"
	@echo "make test-all  make test, then the exhaustive tests"
	@echo "make clients  install third-party tools and run the exhaustive tests, in them too (docs/clients.md)"
	@echo "make lint   the lint and type gates alone"
	@echo "make bench  time and memory beside other implementations, on this machine"
	@echo "make clean  remove .venv and caches; runs/ stays"

# Made anew when the dependencies change; an unfinished install leaves no stamp and is repeated.
$(VENV)/installed: pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,convert,hub,export,explore,dev]'
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
	$(BIN)/pytest -n 2 --dist loadscope

test-all: test clients

# A second environment over the first: it sees all that is in $(VENV), so torch is installed once, and its own
# packages go before. Nothing is resolved; every version is in the file.
$(CLIENTS)/installed: $(VENV)/installed constraints-clients.txt
	@echo "== installing third-party tools into $(CLIENTS)"
	$(PYTHON) -m venv $(CLIENTS)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(CLIENTS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-clients.txt
	@touch $@

clients: $(CLIENTS)/installed
	@echo "== the exhaustive tests"
	$(CLIENTS)/bin/python -m pytest -m exhaustive -n 2 --dist worksteal --junitxml=$(CLIENTS)/results.xml
	$(CLIENTS)/bin/python tools/clients_table.py --check $(CLIENTS)/results.xml

# After `make clients`, where what works has changed.
clients-table:
	$(CLIENTS)/bin/python tools/clients_table.py $(CLIENTS)/results.xml

bench: $(VENV)/installed
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) $(CLIENTS) .pytest_cache .mypy_cache .ruff_cache
