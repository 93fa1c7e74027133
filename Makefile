# Everything runs in .venv, which any target sets up first; paths are relative, so that the folder's
# own path may contain spaces.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
ARGS ?=
SOURCES := CMakeLists.txt $(wildcard cmake/* build_backend/*.py csrc/*.* csrc/*/*)

.PHONY: help train test lint bench readme-figures wheel wheel-test clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

train: .venv/.installed ## train a small language model; ARGS="--help" lists the options
	$(PY) examples/train_lm.py $(ARGS)

test: .venv/.installed lint ## lint, types, and all tests; ARGS go to pytest
	$(PY) -m pytest -p no:benchmark -n 2 --cov --cov-report=term -q $(ARGS)

lint: .venv/.installed ## ruff and mypy alone
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: .venv/.installed ## time one step of everything; leaves a report; ARGS="--quick" is a rehearsal
	$(PY) -m bench $(ARGS)

readme-figures: .venv/.installed ## write the README's performance section from the last run in bench/results
	$(PY) -m bench.report.readme

wheel: .venv/bin/python ## build a source distribution and from it a wheel, into dist; SFPLUS_CUDA=require|off as in the README
	rm -rf dist
	$(PIP) install -c constraints.txt build
	$(PY) -m build --quiet --sdist --outdir dist .
	$(PIP) wheel --no-deps --wheel-dir dist dist/*.tar.gz

wheel-test: ## train with dist's wheel in an empty environment; TORCH=2.6.0 for that version, ARGS=--tests for some tests
	$(PYTHON) tools/test_wheel.py $(if $(TORCH),--torch $(TORCH)) $(ARGS) dist/*.whl

clean: ## remove the environment and everything built
	rm -rf .venv build dist *.egg-info sfplus_kernels/_C*.so .mypy_cache .ruff_cache .pytest_cache .coverage

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch comes first and alone: what depends on it would otherwise choose a build of it.
.venv/.torch: constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt torch
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml setup.py $(SOURCES)
	$(PIP) install -c constraints.txt -e ".[test]"
	@touch $@
