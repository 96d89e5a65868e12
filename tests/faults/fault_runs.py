"""Real commands in processes of their own, what is done to them in the middle, and whether the bytes are right afterwards.

Processes are forked from a server that has done the heavy imports, so that a command takes a second and not fifteen.
"""

from __future__ import annotations

import faulthandler
import fnmatch
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = (
    "rows/rows.arrow", "rows/rejects.jsonl", "items/ids.bin", "items/mask.bin", "items/rows.parquet", "rejected.jsonl",
    "scores.parquet", "embeddings.npy", "embeddings_rows.npy", "selection.parquet", "clusters.parquet", "pruned.jsonl",
)  # fmt: skip
"""Files of a run folder that are the same bytes whenever the same command has come to its end."""

STEPS = (
    "rows/rows.arrow", "rows/rows.json", "items/rows.parquet", "rejected.jsonl", "parts/score/dense/*1.parquet",
    "parts/score/magnitude_0640/*.parquet", "scores.parquet", "parts/embed/*.npy", "embeddings.npy", "embeddings_rows.npy",
    "selection.parquet", "clusters.parquet", "pruned.jsonl", "report.json", "report.html",
)  # fmt: skip
"""Files whose renaming is a moment in each stage, in the order in which a run comes to them."""
SOME_STEPS = STEPS[1::2]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "instruct_prune.cli", "instruct_prune.run.pipeline", "instruct_prune.report.show", "accelerate", "sentence_transformers",
        "sklearn.cluster", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
        "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama",
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """How a command ended.

    Attributes:
        code: its exit code; minus the signal's number where one ended it.
        text: all that it wrote to standard output and standard error.
    """

    code: int
    text: str

    def is_clean(self, *codes: int) -> bool:
        """Ended with one of these codes, without a traceback."""
        assert "Traceback" not in self.text, self.text
        assert self.code in codes, f"exit code {self.code}, not {codes}:\n{self.text}"
        return True


@dataclass(frozen=True)
class Fault:
    """Something that happens when a command first does something to a file of its run folder.

    Attributes:
        event: of the interpreter (docs.python.org: audit events), as in "open" or "os.rename" (which is os.replace too).
        path: pattern of the file's path relative to the run folder; for a rename, of the new name.
        action: what happens: it raises, kills, or changes the folder.
        nth: at which of these events, from 1.
    """

    event: str
    path: str
    action: Callable[[Path], None]
    nth: int = 1

    def install(self, out: Path) -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event != self.event:
                return
            name = os.fsdecode(arguments[1 if event == "os.rename" else 0]) if not isinstance(arguments[0], int) else ""
            if name.startswith(str(out)) and fnmatch.fnmatch(os.path.relpath(name, out), self.path):
                seen += 1
                if seen == self.nth:
                    self.action(out)

        sys.addaudithook(hook)


@dataclass(frozen=True)
class Send:
    """The action that sends this process a signal."""

    number: int

    def __call__(self, out: Path) -> None:
        os.kill(os.getpid(), self.number)


@dataclass(frozen=True)
class Fails:
    """The action that makes the system call fail."""

    errno: int

    def __call__(self, out: Path) -> None:
        raise OSError(self.errno, os.strerror(self.errno), str(out))


class Command:
    """One ``instruct-prune`` command in a process of its own; ``pid`` may be killed, stopped or asked for its end.

    Args:
        words: after ``instruct-prune``.
        log: what it writes is appended here.
        fault: what happens to it.
        before: called in its process before the command.
        environment: variables.
    """

    def __init__(
        self,
        words: list[str],
        log: Path,
        fault: Fault | None = None,
        before: Callable[[], None] | None = None,
        **environment: str,
    ) -> None:
        self.log = log
        self.log.write_text("")
        self._process = _SERVER.Process(target=_inside, args=(words, log, fault, before, environment))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, seconds: float = 120) -> Told:
        """Wait for its end."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {seconds} seconds:\n{self.text}")
        return Told(self._process.exitcode, self.text)


def _inside(
    words: list[str],
    log: Path,
    fault: Fault | None,
    before: Callable[[], None] | None,
    environment: dict[str, str],
) -> None:
    import torch

    from instruct_prune.cli import console_script

    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # bits may differ between numbers of threads
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= environment
    if before is not None:
        before()
    faulthandler.dump_traceback_later(100, file=2)  # where a command that does not end stands
    if fault is not None:
        fault.install(Path(words[words.index("--out") + 1]))
    sys.argv = ["instruct-prune", *words]
    console_script()


def run_command(words: list[str], log: Path, fault: Fault | None = None, **environment: str) -> Told:
    """Run one command to its end."""
    return Command(words, log, fault, None, **environment).end()


def stands_still(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def differing(folder: Path, undisturbed: Path) -> list[str]:
    """The results of a run that are missing or other bytes than those of an undisturbed one."""
    return [
        name
        for name in RESULTS
        if not (folder / name).exists() or (folder / name).read_bytes() != (undisturbed / name).read_bytes()
    ]


def leftovers(folder: Path) -> list[str]:
    """Files under temporary names."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tmp"))
