"""Kill a scoring run at random moments and resume it with other numbers of processes: `stress.py DATA MODEL WORK KILLS`.

Ranks are forked from one process that has done the imports, so that a trial takes a second and not fifteen. Each fork
runs the real `score` command in the environment that torchrun gives its workers.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator  # noqa: F401  (imported here so that the forks need not)
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

from instruct_prune.cli import main
from instruct_prune.measure import heartbeat
from instruct_prune.run import score as _stage  # noqa: F401

heartbeat.DEAD_AFTER_SECONDS = 2.0

N_CHUNKS = 60  # of the data that the test gives, at 64 tokens a batch


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(words: list[str], world: int) -> list[int]:
    """Fork ``world`` ranks."""
    port = str(free_port())
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            if world > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            log = os.open(os.environ["STRESS_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 1
            try:
                code = main(words)
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def wait(pids: list[int], seconds: float) -> list[int]:
    """Exit codes; whoever still runs after ``seconds`` is killed."""
    end = time.monotonic() + seconds
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid in codes:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def parts_in(out: Path) -> int:
    return sum(1 for _ in (out / "parts" / "score").glob("*/0*.parquet"))


def kill_at(pids: list[int], out: Path, n_parts: int, rng: random.Random) -> bool:
    """SIGKILL one rank, or all, once ``n_parts`` parts lie there; False when the run ended before."""
    while parts_in(out) < n_parts:
        if (out / "scores.parquet").exists():
            return False
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert ended is None or ended.si_status == 0, "a process failed by itself: see the log"
        time.sleep(0.001)
    for pid in pids if rng.random() < 0.4 else [rng.choice(pids)]:
        os.kill(pid, signal.SIGKILL)  # a zombie until wait() collects it, so the number cannot be another's
    return True


def stress(data: str, model: str, work: Path, kills: int) -> None:
    rng = random.Random(0)
    words = ["score", "--data", data, "--model", model, "--dtype", "float32", "--batch-tokens", "64"]
    assert wait(start([*words, "--out", str(work / "whole")], 1), 120) == [0]
    expected = (work / "whole" / "scores.parquet").read_bytes()
    total = 3 * N_CHUNKS

    delivered, starts, finished = 0, 0, 0
    while delivered < kills:
        out = work / f"broken-{finished}"
        while not (out / "scores.parquet").exists():
            pids = start([*words, "--out", str(out)], 1 + starts % 3)
            starts += 1
            assert starts < 10 * kills, "the run makes no headway"
            left = total - parts_in(out)
            if delivered < kills and left > 8:
                delivered += kill_at(pids, out, total - left + rng.randrange(0, left // 2), rng)
            wait(pids, 60)
        assert (out / "scores.parquet").read_bytes() == expected, f"{out}: other bytes than the uninterrupted run"
        finished += 1
    print(
        f"{delivered} kills, {starts} starts with 1, 2 and 3 processes, {finished} runs completed, all byte-identical"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)  # bits may differ between numbers of threads
    stress(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
