# On a fresh machine: `make train` trains, `make test` checks. Both make .venv first.

PYTHON ?=
CONFIG ?= configs/digits_cnn.py
# configs/digits_cnn.py:small runs in runs/digits_cnn-small.
WORKDIR ?= runs/$(subst :,-,$(subst .py,,$(notdir $(CONFIG))))
ARGS ?=
# Many tests wait for processes that they kill. A file's tests share what they set up.
WORKERS ?= -n 2 --dist loadfile

BIN := .venv/bin

.PHONY: help setup train test test-all lint format doctor clean

help:
	@echo 'make train     train CONFIG=$(CONFIG) into WORKDIR=$(WORKDIR); ARGS="--config.seed=1 ..."'
	@echo 'make test      lint, then the tests that take seconds; ARGS="tests/optim -k adam" picks some'
	@echo 'make test-all  lint, then every test'
	@echo 'make lint      ruff (lint, format) and mypy'
	@echo 'make format    let ruff rewrite what it can'
	@echo 'make doctor    check versions, devices, disk and data'
	@echo 'make clean     remove .venv and caches; runs/ stays'
	@echo 'PYTHON=python3.12 chooses the interpreter (3.11 to 3.13)'

setup:
	@tools/setup.sh "$(PYTHON)"

train: setup
	$(BIN)/bigjax train --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: lint
	$(BIN)/pytest $(WORKERS) $(ARGS)

test-all: lint
	$(BIN)/pytest -m '' $(WORKERS) $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

doctor: setup
	$(BIN)/bigjax doctor --workdir=$(WORKDIR)

clean:
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache
