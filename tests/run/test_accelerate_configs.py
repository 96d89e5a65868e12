"""A user's Accelerate configuration changes no score: processes and devices are taken from it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.cli import main
from instruct_prune.measure import ranks

COMMON = {
    "compute_environment": "LOCAL_MACHINE",
    "machine_rank": 0,
    "num_machines": 1,
    "main_training_function": "main",
}
FSDP = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_cpu_ram_efficient_loading": True,
    "fsdp_offload_params": True,
    "fsdp_state_dict_type": "FULL_STATE_DICT",
}
INDUCTOR = {"dynamo_backend": "INDUCTOR", "dynamo_mode": "default"}
CONFIGS: dict[str, tuple[dict[str, Any], str | None]] = {
    # name: (what `accelerate config` would have written, what is said about it)
    "plain": ({"distributed_type": "NO", "mixed_precision": "no"}, None),
    "bf16": ({"distributed_type": "NO", "mixed_precision": "bf16"}, "mixed precision bf16"),
    "fp16": ({"distributed_type": "MULTI_GPU", "mixed_precision": "fp16"}, "mixed precision fp16"),
    "inductor": ({"distributed_type": "NO", "mixed_precision": "no", "dynamo_config": INDUCTOR}, "INDUCTOR"),
    "fsdp": ({"distributed_type": "FSDP", "mixed_precision": "bf16", "fsdp_config": FSDP}, "FSDP"),
    "deepspeed": (
        {"distributed_type": "DEEPSPEED", "mixed_precision": "bf16", "deepspeed_config": {"zero_stage": 3}},
        "DeepSpeed",
    ),
    "megatron": (
        {"distributed_type": "MEGATRON_LM", "mixed_precision": "bf16", "megatron_lm_config": {}},
        "Megatron-LM",
    ),
}


def written(folder: Path, name: str, **more: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**COMMON, "use_cpu": False, "num_processes": 1, **CONFIGS[name][0], **more}))
    return path


def handed_on(config: Path) -> dict[str, str]:
    """The variables that `accelerate launch` sets for a configuration file, by Accelerate's own code."""
    words = ["--config_file", str(config), "-m", "instruct_prune"]
    args, _, mp_from_config_flag = _validate_launch_command(launch_command_parser().parse_args(words))
    if mp_from_config_flag:
        args.mixed_precision = args.mixed_precision or "no"
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = "zero_stage"
        env = prepare_deepspeed_cmd_env(args)[1]
    elif args.use_fsdp or args.use_megatron_lm or args.multi_gpu:
        env = prepare_multi_gpu_env(args)
    else:
        env = prepare_simple_launcher_cmd_env(args)[1]
    return {key: value for key, value in env.items() if os.environ.get(key) != value}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> list[str]:
    data = write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", alpaca_rows(24))
    return ["--data", str(data), "--model", str(tiny_model_folder), "--dtype", "float32", "--batch-tokens", "256"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> bytes:
    out = tmp_path_factory.mktemp("plain") / "run"
    assert main(["score", *words, "--out", str(out)]) == 0
    return (out / "scores.parquet").read_bytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_no_configuration_changes_a_score(
    name: str,
    words: list[str],
    plain: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = handed_on(written(tmp_path, name))
    about_training = {key for key in asked if key.startswith(ranks.OF_TRAINING)}
    assert about_training
    for key in about_training:
        monkeypatch.setenv(key, asked[key])
    PartialState._reset_state()
    capsys.readouterr()
    assert main(["score", *words, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "scores.parquet").read_bytes() == plain
    told = [line for line in capsys.readouterr().err.splitlines() if "Accelerate configuration" in line]
    says = CONFIGS[name][1]
    assert (not told) if says is None else (len(told) == 1 and says in told[0])
    assert not about_training & set(os.environ)  # transformers would read FSDP's, and load no weights


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **more}


@pytest.mark.slow
def test_accelerate_launch_runs_the_whole_way_under_a_users_configuration(
    words: list[str], plain: bytes, tmp_path: Path, tiny_embedder_folder: Path
) -> None:
    config = written(tmp_path, "bf16", dynamo_config=INDUCTOR, use_cpu=True)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    rest = ["run", *words, "--embedder", str(tiny_embedder_folder), "--keep", "50%", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*launch, "-m", "instruct_prune", *rest], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mixed precision bf16" in done.stderr
    assert (tmp_path / "run" / "scores.parquet").read_bytes() == plain
    assert len((tmp_path / "run" / "pruned.jsonl").read_bytes().splitlines()) == 12


@pytest.mark.slow
def test_two_processes_run_the_whole_way_and_the_main_one_embeds_and_exports(
    words: list[str], plain: bytes, tmp_path: Path
) -> None:
    """With vectors of the model itself, which need another pass, and FSDP in the environment."""
    out = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*launch, "instruct_prune", *more, "--out", str(out)],
            env=environment(**asked), capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    done = run("run", *words, "--embedder", "model", "--keep", "6")
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stderr
    assert done.stdout.count("24 scored = 6 kept + 18 dropped") == 1
    one = pq.read_table(out / "scores.parquet").to_pandas()
    assert one.score.notna().all()
    done = run("run", *words, "--embedder", "model:last@1", "--restart", "embed", "--keep", "7")
    assert done.returncode == 0, done.stderr
    assert "score: done before" in done.stderr
    assert len((out / "pruned.jsonl").read_bytes().splitlines()) == 7
    done = run("embed", "--embedder", "model:weighted", "--restart", "embed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("embeddings:") == 1
