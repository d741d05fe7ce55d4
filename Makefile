# Everything a checkout needs. Each target makes the environment first if it is missing or out of date.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run test test-slow test-all fuzz soak check format bench wheel clean distclean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  ARGS=... is passed on:   make run ARGS='--k 2 -n 6'   make test ARGS='-k prompts'"
	@echo "  PYTHON=... VENV=...      which Python makes the environment, and where ($(VENV))"

install: $(INSTALLED) ## Make the environment: specprof, editable, with the tested versions of everything

run: $(INSTALLED) ## Run specprof on the packaged pair: speculative against plain decoding
	@$(BIN)/specprof run $(ARGS)

# Compiled files are kept, whatever the environment says: without them every process compiles all tests and the code.
unexport PYTHONDONTWRITEBYTECODE

# Several processes, and in each one thread: the tests' models are too small to share among threads.
test: $(INSTALLED) ## Run the tests, without the slow ones
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-slow: $(INSTALLED) ## Run the slow tests only
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(INSTALLED) ## Run all tests
	@$(BIN)/python -m pytest $(ARGS)

fuzz: $(INSTALLED) ## Random command lines and files: make fuzz ARGS='--cases 5000 --seed 7'
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz $(ARGS)

soak: $(INSTALLED) ## 200,000 rounds: does memory stay flat, does the pace, do the clocks?
	@$(BIN)/python benchmarks/soak.py $(ARGS)

check: $(INSTALLED) ## Lint, formatting, types, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(INSTALLED) ## Rewrite the code as `make check` wants it
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(INSTALLED) ## Measure against Hugging Face generate, and what measuring itself costs
	@$(BIN)/python benchmarks/vs_hf.py $(ARGS)
	@$(BIN)/python benchmarks/overhead.py $(ARGS)

wheel: $(INSTALLED) ## Build the wheel into dist/ and check that it is complete and works alone
	@rm -rf dist/specprof-*
	@$(BIN)/python -m build --outdir dist .
	@$(BIN)/python -m pytest tests/test_packaging.py --wheel="$$(echo dist/specprof-*.whl)" $(ARGS)

clean: ## Remove caches and what was built
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find commands reports tui specprof tests benchmarks examples scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove the environment as well
	@if [ -e $(INSTALLED) ]; then rm -rf $(VENV); fi

# The stamp is written last: an installation that failed or was interrupted is made again.
# What is narrated goes to stderr, so that `make run ARGS=--json` prints JSON alone.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: specprof needs Python 3.11 or newer; '$(PYTHON)' is older, or isn't there"; \
	  echo "hint: name one, for instance: make PYTHON=/usr/bin/python3.12 $(MAKECMDGOALS)"; exit 2; } >&2
	@echo "installing into $(VENV); the first time takes some minutes, torch is large" >&2
	@$(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' >&2
	@touch $@
