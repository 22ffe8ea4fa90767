# Two commands do all the set-up on a bare machine with Python 3.11+: make quickstart, make test.
PYTHON ?= python3
# The pinned release installs as a CPU build where one is at hand; see the README for CUDA.
TORCH ?= $(shell grep '^torch==' constraints.txt)
VENV := .venv
BIN := $(VENV)/bin

export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test check slow clean

quickstart: $(VENV)/.demo
	$(BIN)/python -m vlmkit.quickstart

# Two processes of one thread each, a file in one of them: most tests are too small for two threads.
test: $(VENV)/.dev .timm/.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.dev .timm/.done
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$(TORCH)"
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -e ".[all,demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

# For the tests of the timm encoder alone: what else sees a torchvision uses it, and PyPI's is not made for a
# CPU build of torch.
.timm/.done: constraints.txt | $(VENV)/.dev
	rm -rf .timm
	$(BIN)/pip install -q --no-deps --target .timm $(shell grep -E '^(timm|torchvision)==' constraints.txt)
	touch $@

# The environment alone: runs, indexes and gallery are yours.
clean:
	rm -rf $(VENV) .timm
