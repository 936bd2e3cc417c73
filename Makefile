# Everything runs in .venv. The first call makes it; later calls reuse it and need no network.
# ARGS goes to the command behind a target:  make test ARGS="-m 'not slow'"

PYTHON ?= python3.11 python3 python3.12 python3.13 python3.14
TORCH ?= torch==2.13.0
# Of the tests; each process takes up to 1 GB.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

# Nothing here calls home or installs behind one's back; one thread a process keeps the sums in order.
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_TELEMETRY_ENABLED := 0
export RAY_USAGE_STATS_ENABLED := 0
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint install clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## train on four hospitals, chosen method beside FedAvg, and write the report
	@$(BIN)/fedfair simulate configs/heart.yaml --seeds 5 $(ARGS)

test: $(VENV)/.installed-test ## run the tests
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

bench: $(VENV)/.installed-test ## run the benchmarks
	@$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.installed-dev ## check format, style and types
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

install: $(VENV)/.installed-dev ## make .venv with all that a developer needs

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) build dist *.egg-info *.fab .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: resolved with the rest, another build of it might be taken.
$(VENV)/.installed: pyproject.toml
	@for python in $(PYTHON); do \
		"$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "fedfair needs Python 3.11 or newer with venv, and none of these is one: $(PYTHON);" \
			"name yours with make PYTHON=/path/to/python3." >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)
	@echo "Installing $(TORCH) (a large download, once)"
	@$(PIP) "$(TORCH)"
	@echo "Installing fedfair"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Installing what the tests need"
	@$(PIP) -e ".[simulation,test]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@echo "Installing ruff, mypy and pre-commit"
	@$(PIP) -e ".[dev]"
	@touch $@
