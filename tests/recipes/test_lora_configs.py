"""The configurations parse, and adapters land on the modules of their model families; the SLURM scripts launch rightly."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import lora
import numpy as np
import pytest
import torch

from instruct_prune.config_file import load_yaml
from instruct_prune.train import IGNORED, TrainRow, attach_lora, collate

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = sorted((RECIPES / "configs").glob("*.yaml"))
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny(family: str) -> Any:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SIZE)).requires_grad_(False)


FAMILIES = {
    "gemma2-9b": "gemma2",
    "llama3-8b": "llama",
    "mistral-7b": "mistral",
    "qwen3-8b-qlora": "qwen3",
    "smollm2-135m-cpu": "llama",
}


def test_every_configuration_has_a_family() -> None:
    assert {path.stem for path in CONFIGS} == set(FAMILIES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration(path: Path) -> None:
    recipe = load_yaml(str(path), lora.Recipe)
    assert recipe.batch_size % recipe.micro_batch == 0
    assert recipe.target_modules == ("all-linear",)
    head = path.read_text().split("model:")[0]
    for told in ("Memory:", "Time:", "recipes/lora.py --config", path.name):
        assert told in head
    assert (recipe.quantize == "4bit") == ("qlora" in path.stem)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_adapters_land_on_every_linear_layer_of_the_family(path: Path) -> None:
    recipe = load_yaml(str(path), lora.Recipe)
    model = attach_lora(tiny(FAMILIES[path.stem]), recipe)
    trained = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(LINEAR)
    assert {name.rsplit(".", 1)[1] for name in trained} == LINEAR  # never the output head
    ids = np.arange(3, 12)
    rows = [TrainRow(ids, np.where(ids > 5, ids, IGNORED), ids)]
    batch = collate(rows)
    loss = model(**batch).loss
    whole = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    torch.testing.assert_close(loss, whole)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


FAKE_ACCELERATE = '#!/bin/bash\necho "$SLURM_NODEID: $*" >> "$SEEN"\n'
FAKE_SRUN = '#!/bin/bash\nshift\nfor node in 0 1; do SLURM_NODEID=$node "$@"; done\n'
FAKE_SCONTROL = "#!/bin/bash\nset -e\necho node-a\nsleep 0.2\nfor i in {1..20000}; do echo node-b; done\n"  # more names than a pipe holds


@pytest.mark.parametrize("name", ["score", "train"])
def test_slurm_scripts_launch_one_launcher_a_machine(name: str, tmp_path: Path) -> None:
    for tool, text in (("accelerate", FAKE_ACCELERATE), ("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        (tmp_path / tool).write_text(text)
        (tmp_path / tool).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen"), "SLURM_NNODES": "2"}
    environment |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_SUBMIT_DIR": "/somewhere"}
    script = RECIPES / "slurm" / f"{name}.sbatch"
    subprocess.run(["bash", str(script), "--out", "a folder", "--x"], check=True, env=environment, cwd=tmp_path)
    first, second = (tmp_path / "seen").read_text().splitlines()
    assert first.startswith("0: launch --multi_gpu --num_machines 2 --num_processes 8 --machine_rank 0 ")
    assert "--machine_rank 1 --main_process_ip node-a" in second
    recipe = {"score": "score.py", "train": "lora.py"}[name]
    assert first.endswith(f"/somewhere/recipes/{recipe} --out a folder --x")
    assert (RECIPES / recipe).exists()
