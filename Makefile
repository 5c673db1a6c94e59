# make demo      an example run and its report, from nothing but Python
# make test      the tests (slow ones and those against other libraries: see CONTRIBUTING.md)
# make lint      style, floors, types, and what nobody calls
# make docs      the documentation site, in site/
# make bench     the benchmarks beside other libraries, an hour or more: make bench DATA=folder
# make bench-gpu the main calls on CUDA beside the processor, where there is one
# make oracles   the libraries that `pytest -m against` compares with
# make clean     remove what the commands made; the environment in .venv stays

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
DEMO_STAMP := .venv/.demo-stamp
DEV_STAMP := .venv/.dev-stamp
SOURCES := $(shell find src -name '*.py')

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test lint style floors types unused docs bench bench-gpu oracles clean

demo: $(DEMO_STAMP)
	$(BIN)/afterfit demo --out runs/demo

test: $(DEV_STAMP)
	$(BIN)/python -m pytest -n $(WORKERS)

lint: style floors types unused

style: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

floors: $(DEV_STAMP)
	$(BIN)/lint-imports

types: $(DEV_STAMP)
	$(BIN)/pyright

unused:
	$(PYTHON) scripts/unused.py

docs: $(DEV_STAMP)
	$(BIN)/mkdocs build --strict

bench: oracles
	@test -n "$(DATA)" || { echo "DATA is not set: make bench DATA=folder, with mnist/mnist_train.npz in it"; exit 2; }
	$(BIN)/python benchmarks/labels.py --data $(DATA)
	$(BIN)/python benchmarks/traces.py
	$(BIN)/python benchmarks/trace.py
	$(BIN)/python benchmarks/curvature.py
	$(BIN)/python benchmarks/posterior.py
	$(BIN)/python benchmarks/edges.py cora --data $(DATA)/graphs
	$(BIN)/python benchmarks/edges.py scale --threads 2

bench-gpu: $(DEV_STAMP)
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

oracles: $(DEV_STAMP)
	$(PIP) -r requirements-oracles.txt
	$(PIP) --no-deps -r requirements-oracles-alone.txt
	$(BIN)/python -m pip uninstall -qq -y torchvision

clean:
	rm -rf runs dist build site .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv .venv

# The demo needs no development tools. Where they are installed, afterfit is too, editable: leave it so.
$(DEMO_STAMP): pyproject.toml constraints.txt $(SOURCES) | $(BIN)/python
	@if [ -f $(DEV_STAMP) ]; then $(MAKE) --no-print-directory $(DEV_STAMP); \
	else echo "Installing afterfit into .venv (once)"; $(PIP) '.[graph]'; fi
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing afterfit and its development tools into .venv (once)"
	@$(PIP) -e '.[dev]'
	@touch $@
