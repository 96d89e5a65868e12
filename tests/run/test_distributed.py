"""Ranks that die, machines that vanish: nothing is lost, and the same command completes the run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from machines import agent, environment, free_port
from sample_rows import alpaca_rows, write_jsonl

HERE = Path(__file__).parent


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


@pytest.mark.slow
def test_a_machine_that_vanishes_loses_no_row_and_one_machine_completes_the_run(
    words: list[str], tmp_path: Path
) -> None:
    """Two torchrun agents on loopback stand for two machines; the run folder is all that they share."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    alone = [sys.executable, "-m", "instruct_prune", "score", *words, "--out"]
    subprocess.run([*alone, str(whole)], env=environment(), check=True, capture_output=True)

    port, program = free_port(), [str(HERE / "impatient_score.py"), *words, "--out", str(out)]
    first, second = (agent(node, port, program) for node in (0, 1))
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


LEAVES = """
import os, pathlib, sys, time
if sys.argv[1] == "lora":
    sys.path.insert(0, "recipes")
    from lora import main
    code = main(sys.argv[2:])
else:
    from instruct_prune.cli import main
    code = main(sys.argv[1:])
import torch

def threads_of_the_group():
    for task in pathlib.Path("/proc/self/task").glob("*/comm"):
        try:
            if "gloo" in task.read_text():
                return True
        except OSError:  # ended meanwhile
            pass
    return False

until = time.monotonic() + 10  # a thread that has ended may be listed for a moment
while threads_of_the_group() and time.monotonic() < until:
    time.sleep(0.01)
open_ = torch.distributed.is_initialized() or threads_of_the_group()
print("in the group" if open_ else "has left", flush=True)
os._exit(code)
"""
"""Says whether the process has left its group, and whether the group's threads have ended. os._exit: no later abort."""


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="the threads of a process are read where Linux shows them"
)
@pytest.mark.parametrize("command", ["score", "lora"])
def test_every_process_leaves_the_group_when_it_is_done(command: str, words: list[str], tmp_path: Path) -> None:
    """One whose group is open when Python ends may be aborted, and the launcher then calls the whole run failed."""
    (tmp_path / "leaves.py").write_text(LEAVES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    if command == "lora":
        words = [*words[:6], "--max-steps", "2"]
    program = [*launcher, str(tmp_path / "leaves.py"), command, *words, "--out", str(tmp_path / "out")]
    for told in ("2 processes", {"score": "score: done before, skipped", "lora": "trained before"}[command]):
        done = subprocess.run(program, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert told in done.stderr
        assert (done.stdout.count("has left"), done.stdout.count("in the group")) == (2, 0)
