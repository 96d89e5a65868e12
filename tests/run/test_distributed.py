"""Ranks that die, machines that vanish: nothing is lost, and the same command completes the run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sample_rows import alpaca_rows, write_jsonl

HERE = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **more}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> list[str]:
    data = write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", alpaca_rows(60))
    return ["--data", str(data), "--model", str(tiny_model_folder), "--dtype", "float32", "--batch-tokens", "64"]


@pytest.mark.slow
def test_twenty_kills_change_no_byte(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "stress.py"), words[1], words[3], str(tmp_path), "20"],
        env=environment(STRESS_LOG=str(tmp_path / "log")),
        capture_output=True,
        text=True,
        check=False,
    )
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    assert done.returncode == 0, done.stderr + log[-3000:]
    assert "20 kills" in done.stdout
    assert "run the same command again" in log


def agent(node: int, port: int, words: list[str], out: Path) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1"]
    where = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return subprocess.Popen(
        [sys.executable, *launcher, *where, str(HERE / "impatient_score.py"), *words, "--out", str(out)],
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.slow
def test_a_machine_that_vanishes_loses_no_row_and_one_machine_completes_the_run(
    words: list[str], tmp_path: Path
) -> None:
    """Two torchrun agents on loopback stand for two machines; the run folder is all that they share."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    alone = [sys.executable, "-m", "instruct_prune", "score", *words, "--out"]
    subprocess.run([*alone, str(whole)], env=environment(), check=True, capture_output=True)

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    first, second = (agent(node, port, words, out) for node in (0, 1))
    parts = out / "parts" / "score"
    while len(list(parts.glob("*/0*.parquet"))) < 10:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.005)
    for process in [*psutil.Process(second.pid).children(recursive=True), psutil.Process(second.pid)]:
        process.send_signal(signal.SIGKILL)  # torchrun's workers are sessions of their own
    second.communicate()
    told = first.communicate(timeout=120)[1]
    assert first.returncode != 0
    assert "a process ended before its parts were written" in told
    assert "run the same command again" in told
    assert not (out / "scores.parquet").exists()

    done = subprocess.run([*alone, str(out)], env=environment(), check=True, capture_output=True, text=True)
    assert "resuming" in done.stderr
    assert (out / "scores.parquet").read_bytes() == (whole / "scores.parquet").read_bytes()
