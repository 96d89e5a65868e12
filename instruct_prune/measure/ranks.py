"""The processes of one run: Accelerate says which this is and which device it has. Nothing else is taken from it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch

from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.progress import say

PATIENCE = timedelta(days=7)  # the others wait while the main process encodes; a death is noticed by its connection

ASKED = {
    "ACCELERATE_MIXED_PRECISION": "mixed precision {}",
    "ACCELERATE_DYNAMO_BACKEND": "compiling with {}",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
"""What a user's configuration file may ask for, as `accelerate launch` hands it on, in words."""
OF_TRAINING = (*ASKED, "ACCELERATE_DYNAMO_", "ACCELERATE_DEEPSPEED_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""Beginnings of the variables that are about training. transformers reads some of them too: with FSDP's
CPU_RAM_EFFICIENT_LOADING only the first process would load any weights."""


DIED = (
    "another process of this run has ended. What is finished is kept; run the same command again, with any number of processes, to "
    "complete it."
)

Found = TypeVar("Found")


class Ranks:
    """A thin view of ``accelerate.PartialState``: one GPU, many GPUs, many nodes, CPU.

    A user's configuration may ask for mixed precision, compiling, FSDP, DeepSpeed or Megatron-LM. These are ways to train;
    scoring holds a whole model in each process, in the type that ``--dtype`` names, and says once that it leaves them out.

    Args:
        alone: this process by itself, whatever was launched: the main one, when there is nothing for the others to do.

    Attributes:
        rank, world: number of this process, and how many there are.
        device: where this one computes.

    Raises:
        InputError: more processes were launched than Accelerate joins into one run.
    """

    def __init__(self, alone: bool = False) -> None:
        left_out = leave_training_out()
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1")
        on_cpu = on_cpu or not torch.accelerator.is_available()
        if alone:
            self.rank, self.world = 0, 1
            accelerator = None if on_cpu else torch.accelerator.current_accelerator()
            self.device = torch.device("cpu") if accelerator is None else torch.device(accelerator.type, 0)
        else:
            self.rank, self.world, self.device = _join(on_cpu)
        if left_out and self.is_main:
            say(
                f"note: the Accelerate configuration asks for {', '.join(left_out)}; scoring takes the processes and their "
                "devices from it, and nothing else (--dtype says the precision)"
            )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process.

        Raises:
            IncompleteRunError: one of them has died.
        """
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        try:
            return broadcast_object_list([value])[0]
        except RuntimeError as error:  # of gloo and NCCL alike
            raise IncompleteRunError(DIED) from error

    def on_main(self, function: Callable[[], Found]) -> Found:
        """Run on the main process while the others wait; what it found there, on every process, so it must be fit for pickle.

        Raises:
            InputError: the main process had one; it tells it, and all end.
            IncompleteRunError: one of them has died.
        """
        found: list[Any] = self.on_all(lambda: function() if self.is_main else None)
        main: Found = found[0]
        return main

    def on_all(self, function: Callable[[], Found]) -> list[Found]:
        """Run on every process; what each found, on every process. An error on any of them ends all (the main one tells it).

        Raises:
            InputError: a process had one.
            IncompleteRunError: one of them has died.
        """
        if self.world == 1:
            return [function()]
        from accelerate.utils import gather_object

        found: list[Found] = []
        error: Exception | None = None
        try:
            found = [function()]
        except (InputError, IncompleteRunError, OSError) as problem:
            error = problem
        try:
            told: list[tuple[list[Found], str]] = gather_object([(found, _told(error))])
        except RuntimeError as stop:
            raise IncompleteRunError(DIED) from stop
        problems = [text for _, text in told if text]
        if problems and self.is_main:
            raise error or InputError(problems[0])
        if problems:
            raise SystemExit(2)
        return [one for some, _ in told for one in some]

    def describe(self) -> str:
        processes = "1 process" if self.world == 1 else f"{self.world} processes"
        if self.device.type == "cuda":
            return f"{processes} on {torch.cuda.get_device_name(self.device)}"
        return f"{processes} on {self.device.type}, {torch.get_num_threads()} threads each"

    def close(self) -> None:
        """Leave the group of processes; each goes on, or ends, by itself."""
        if self.world > 1:
            leave_group()


def join_group(on_cpu: bool, timeout: timedelta | None = None) -> Any:
    """``accelerate.PartialState``: the processes that the launcher started; the first call joins them.

    Args:
        on_cpu: without a GPU, Accelerate reads torchrun's environment only when told that it is to use the CPU: otherwise every
            process would take itself for the main one.
        timeout: how long one waits for the others; that of PyTorch when not given.
    """
    # This module takes the open group as the default of its functions, and would keep it for ever when imported later.
    import torch.distributed.nn.functional  # noqa: F401
    from accelerate import PartialState

    return PartialState(cpu=on_cpu, **({} if timeout is None else {"timeout": timeout}))


def leave_group() -> None:
    """Leave the group of processes and end its threads.

    A thread of the group that still runs when Python ends aborts, now and then, a process that has done its work. The threads end
    when nothing holds the group any more. A model that was trained with the others holds it, in a cycle, and lets it go first: as
    the last to hold it, it would wait for the group's threads without giving up Python's lock, which they may be waiting for.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def _told(error: Exception | None) -> str:
    return "" if error is None else str(error) or type(error).__name__


def _join(on_cpu: bool) -> tuple[int, int, torch.device]:
    """Rank, number of processes and device, as Accelerate finds them in what the launcher says."""
    state = join_group(on_cpu, timeout=PATIENCE)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != state.num_processes:
        raise InputError(
            f"{launched} processes were launched, but Accelerate joined {state.num_processes} of them into one run. Launch with "
            "`accelerate launch --multi_gpu` or `torchrun`."
        )
    return state.process_index, state.num_processes, state.device


def leave_training_out() -> list[str]:
    """Take what is about training out of the environment; what it asked for, in words."""
    found = [
        words.format(os.environ[name])
        for name, words in ASKED.items()
        if os.environ.get(name, "no").lower() not in ("", "no", "false", "0")
    ]
    for name in [name for name in os.environ if name.startswith(OF_TRAINING)]:
        del os.environ[name]
    return found
