# Every target makes the virtual environment first if it is missing; nothing needs to be installed by hand but
# Python 3.11 or newer with pip and venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check format bench crash fuzz clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Covey needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) (once; about 2 GB with torch and executorch) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

install: $(STAMP)  ## make the virtual environment with everything in it

demo: $(STAMP)  ## run the whole chain on this machine: export, serve, eight devices, a better model
	@$(BIN)/covey demo $(ARGS)

test: $(STAMP)  ## run the whole suite (ARGS="-k codec" for a part)
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(STAMP)  ## run the tests that take minutes
	@$(BIN)/python -m pytest -m slow $(ARGS)

check: $(STAMP)  ## formatter, linter and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP)  ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Of the benchmarks, those that need data which is not in the repository.
NEED_DATA = benchmarks/strategies.py benchmarks/flasc/run.py
bench: $(STAMP)  ## run every benchmark quickly; DATA=FOLDER for those that need data (see docs/benchmarks.md)
	@for b in $$(grep -l '"--quick"' benchmarks/*.py benchmarks/flasc/*.py); do \
	  case " $(NEED_DATA) " in *" $$b "*) data="--data-root $(DATA)";; *) data="";; esac; \
	  if [ -n "$$data" ] && [ -z "$(DATA)" ]; then echo "== $$b: left out, it needs DATA=FOLDER"; continue; fi; \
	  echo "== $$b"; $(BIN)/python $$b --quick $$data || exit 1; \
	done

KILLS ?= 1000
crash: $(STAMP)  ## kill a server KILLS times (default 1000) and count what was lost
	@$(BIN)/python benchmarks/crash.py --kills $(KILLS)

SECONDS ?= 60
fuzz: $(STAMP)  ## feed every parser hostile bytes for SECONDS (default 60) in all, guided by coverage
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	@$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS)

clean:  ## remove the virtual environment and what the demo made
	@rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
