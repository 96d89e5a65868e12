"""Two torchrun agents on loopback, which stand for two machines: the run folder is all that they share."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def agent(node: int, port: int, program: list[str]) -> subprocess.Popen[str]:
    """One machine with one process; ``program`` is a file, or -m and a module, with its words."""
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1"]
    where = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return subprocess.Popen(
        [sys.executable, *launcher, *where, *program],
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def on_two_machines(*words: str) -> list[tuple[str, str]]:
    """Run a command of instruct-prune on both; what each printed: (standard output, standard error).

    Raises:
        AssertionError: one of them failed.
    """
    port = free_port()
    agents = [agent(node, port, ["-m", "instruct_prune", *words]) for node in (0, 1)]
    try:
        told = [one.communicate(timeout=300) for one in agents]
    finally:
        for one in agents:
            one.kill()
    assert [one.returncode for one in agents] == [0, 0], told
    return told


def on_two_processes(*words: str) -> None:
    """Run a command of instruct-prune on two processes of one machine.

    Raises:
        AssertionError: it failed; what it printed.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "instruct_prune", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]


def on_one_machine(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "instruct_prune", *words], env=environment(), check=True, capture_output=True)


DIES = """
import fnmatch, os, signal, sys
left = int(sys.argv[2])
def hook(event, arguments):
    global left
    if event == "os.rename" and fnmatch.fnmatch(os.fsdecode(arguments[1]), sys.argv[1]):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from instruct_prune.cli import main
main(sys.argv[3:])
"""


def killed_at(path: Path, nth: int, *words: str) -> None:
    """A command of instruct-prune that is killed (SIGKILL) when it is about to give a file its name, for the n-th time.

    Args:
        path: of the file; a pattern.
    """
    program = [sys.executable, "-c", DIES, str(path), str(nth), *words]
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-5000:]
