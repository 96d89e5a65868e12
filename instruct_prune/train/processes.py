"""The processes that the launcher started, and the device of this one."""

from __future__ import annotations

import os
import sys
from typing import Any


def state() -> Any:
    """Accelerate's view of the processes."""
    import torch

    from instruct_prune.measure.ranks import join_group

    return join_group(on_cpu=not torch.accelerator.is_available())


def world_size() -> int:
    """How many processes train together."""
    return int(state().num_processes)


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return bool(state().is_main_process)


def say(text: str) -> None:
    """Tell people something once, on stderr."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


def resolved_dtype(asked: str) -> str:
    """The torch name of the weights' type: "auto" becomes what this process's hardware multiplies natively."""
    import torch

    from instruct_prune.models.names import pick_dtype

    return pick_dtype(asked, "cuda" if torch.cuda.is_available() else "cpu")


def compute_device() -> Any:
    """The device of a process that computes by itself, also where a launcher started several: the GPU of its number, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
