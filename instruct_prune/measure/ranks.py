"""The processes of one run: Accelerate says which this is, and starts what has to be started."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from instruct_prune.errors import InputError

PATIENCE = timedelta(days=7)  # the others wait while the main process encodes; a death is noticed by its connection


class Ranks:
    """A thin view of ``accelerate.Accelerator``: one GPU, many GPUs, many nodes, CPU.

    Raises:
        InputError: the launcher asks for a strategy that inference has no use for (FSDP, DeepSpeed, Megatron).
    """

    def __init__(self) -> None:
        from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs

        # Without a GPU, Accelerate reads torchrun's environment only when told that it is to use the CPU: otherwise
        # every process would take itself for the main one.
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(), kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
        )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != self.world:
            raise InputError(
                f"{launched} processes were launched, but Accelerate joined {self.world} of them into one run. Launch with "
                "`accelerate launch --multi_gpu` or `torchrun`."
            )
        kind = self.accelerator.distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise InputError(
                f"the accelerate configuration asks for {kind.value}, which shards training state that scoring does not have. "
                "Launch with plain data parallelism (accelerate launch --multi_gpu, or torchrun); for a model larger than one "
                "GPU, start one process with --device-map auto."
            )

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device  # type: ignore[no-any-return]

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def on_main(self, function: Callable[[], object]) -> None:
        """Run on the main process while the others wait; an InputError there ends all (only the main one tells it)."""
        error: InputError | None = None
        if self.is_main:
            try:
                function()
            except InputError as problem:
                error = problem
        failed = self.broadcast(error is not None)
        if error is not None:
            raise error
        if failed:
            raise SystemExit(2)

    def describe(self) -> str:
        processes = "1 process" if self.world == 1 else f"{self.world} processes"
        if self.device.type == "cuda":
            return f"{processes} on {torch.cuda.get_device_name(self.device)}"
        return f"{processes} on {self.device.type}, {torch.get_num_threads()} threads each"

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Put the model on this process's device; no gradient machinery around it."""
        return self.accelerator.prepare_model(model, evaluation_mode=True)  # type: ignore[no-any-return]

    def close(self) -> None:
        self.accelerator.end_training()
