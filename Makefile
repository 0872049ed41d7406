# Two commands matter: `make demo` and `make test`. Both make their own .venv from pinned versions first.
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
DOCS := .venv-docs
PYTHON ?= python3

.PHONY: demo test test-all clients clients-table docs lint bench clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo   install, train on digit scenes, evaluate, analyze, write a report (minutes)"
	@echo "make test   install, lint, check types, run the fast tests (about 6 minutes)"
	@echo "make test-all  make test, then the exhaustive tests and the site"
	@echo "make clients  install third-party tools and run the exhaustive tests, in them too (docs/clients.md)"
	@echo "make docs   install a site generator, run the notebooks, build the site into site/ and check its pages"
	@echo "make lint   the lint and type gates alone"
	@echo "make bench  time and memory beside other implementations, on this machine"
	@echo "make clean  remove .venv and caches; runs/ stays"

# Made anew when the dependencies change; an unfinished install leaves no stamp and is repeated.
$(VENV)/installed: pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,convert,hub,export,explore,remote,dev]'
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

test-all: test clients docs

# Environments over the first: they see all that is in $(VENV), so torch is installed once, and their own packages go
# before. Nothing is resolved; every version is in the file.
$(CLIENTS)/installed $(DOCS)/installed: .venv-%/installed: constraints-%.txt $(VENV)/installed
	@echo "== installing the packages of $< into $(@D)"
	$(PYTHON) -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# Those that load OpenVINO apart from those that stop processes and start others: together a worker sometimes ends with a
# segmentation fault (docs/log.md).
OPENVINO := tests/clients tests/deploy tests/export

clients: $(CLIENTS)/installed
	@echo "== the exhaustive tests"
	$(CLIENTS)/bin/python -m pytest -m exhaustive -n 2 --dist worksteal --junitxml=$(CLIENTS)/results.xml $(OPENVINO)
	$(CLIENTS)/bin/python tools/clients_table.py --check $(CLIENTS)/results.xml
	$(CLIENTS)/bin/python -m pytest -m exhaustive -n 2 --dist worksteal $(addprefix --ignore=,$(OPENVINO))

# After `make clients`, where what works has changed.
clients-table:
	$(CLIENTS)/bin/python tools/clients_table.py $(CLIENTS)/results.xml

# The explorer's page as files, for the site.
build/explorer/index.html: $(DOCS)/installed $(wildcard src/selkern/explore/* src/selkern/explore/page/* src/selkern/selection/*.py)
	@echo "== the explorer's page"
	rm -rf build/explorer
	$(DOCS)/bin/python -m selkern.cli explore sknet_mini.digits --static build/explorer

docs: $(DOCS)/installed build/explorer/index.html
	@echo "== the notebooks, and the site"
	$(DOCS)/bin/python tools/notebooks.py
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --quiet --strict
	$(DOCS)/bin/python -m pytest -q -m exhaustive tests/docs/test_site.py

bench: $(VENV)/installed
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) $(CLIENTS) $(DOCS) site build/notebooks build/explorer .pytest_cache .mypy_cache .ruff_cache
