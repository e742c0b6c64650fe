# One word per habit; `make` alone lists them. The first target that needs it sets up $(VENV).

VENV ?= .venv
# Test processes; each computes on one thread.
WORKERS ?= 2
# Which Python makes $(VENV). By default the first below that runs, is new enough and can make virtual environments.
PYTHON ?=

BIN := $(VENV)/bin
# Written last, so an interrupted setup is taken up again by the next call.
STAMP := $(VENV)/.snugfit-installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check format bench test-gpu

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make .venv with the tested versions of all dependencies (the other targets do it when needed)

demo: $(STAMP) ## draw a scene, refine the people in it, and name the pictures
	@$(BIN)/snugfit demo

test: $(STAMP) ## run the tests
	@$(BIN)/python -m pytest -q -n $(WORKERS)

check: $(STAMP) ## lint, formatting and types
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check
	@$(BIN)/python -m mypy

format: $(STAMP) ## format the code and fix what can be fixed by itself
	@$(BIN)/python -m ruff check --fix-only --quiet
	@$(BIN)/python -m ruff format

bench: $(STAMP) ## time fit, rasterizer, loader and conversions on this machine, into BENCHMARKS.md
	@$(BIN)/snugfit bench --out BENCHMARKS.md

test-gpu: $(STAMP) ## run the tests that need a CUDA device and nvdiffrast
	@SNUGFIT_REQUIRE_GPU=1 $(BIN)/python -m pytest -q -m gpu

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if ! $(BIN)/python -m pip --version > /dev/null 2>&1; then \
		usable='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'; \
		python=; \
		for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
			if "$$candidate" -c "$$usable" > /dev/null 2>&1; then python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "snugfit needs Python 3.11 or newer with its venv module; $(or $(PYTHON),none found on PATH) will not do." \
				"Install one (on Debian and Ubuntu: python3 and python3-venv) or name it: make PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV); \
	fi
	@echo "Installing the dependencies (the first time takes some minutes)"
	@# The stamp also carries the success of pip past the pipe, for plain sh has no pipefail.
	@rm -f $(STAMP)
	@{ $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]' \
		&& touch $(STAMP); } | { while read -r word _; do [ "$$word" = Requirement ] || printf .; done; echo; }
	@test -e $(STAMP)
