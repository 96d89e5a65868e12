"""How to train: one frozen dataclass, at once the command line of the recipes, the keys of their YAML files and an argument."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Literal

from instruct_prune.errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """A LoRA adapter and its training."""

    rank: int = 16
    """Rank of the adapter's matrices."""
    alpha: int = 32
    """The adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Share of the adapter's inputs that are set to zero in training."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter: all-linear (every linear layer but the output head), or names."""
    learning_rate: float = 2e-4
    """The highest that the schedule reaches."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises, from its n-th part in the first of n such steps."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine decay towards zero, or no change."""
    weight_decay: float = 0.0
    """AdamW's."""
    epochs: float = 3.0
    """How often each row is seen."""
    max_steps: int = 0
    """Train for exactly so many optimiser steps, whatever the epochs (0: by epochs)."""
    batch_size: int = 16
    """Rows in an optimiser step, over all processes; sequences when packing."""
    micro_batch: int = 1
    """Rows in a forward pass of one process."""
    packing: bool = False
    """Fill sequences of max_length with several rows that do not see each other."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the hardware multiplies it natively."""
    quantize: Literal["none", "4bit"] = "none"
    """4bit: QLoRA (needs bitsandbytes and a GPU)."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""
    seed: int = 0
    """Decides the adapter's first weights, the order of the rows and dropout."""
    save_steps: int = 50
    """A checkpoint to go on from, every so many steps."""
    log_steps: int = 1
    """A line with the training loss, every so many steps."""
    report_to: Literal["none", "trackio", "wandb", "tensorboard"] = "none"
    """Where training loss and learning rate go too; TensorBoard's files lie in the output folder."""

    def check(self) -> None:
        """Refuse what would fail far from here, or train without learning.

        Raises:
            InputError: a number is out of range, or the tracker is not installed.
        """

        def flag(name: str) -> str:
            return f"--{name.replace('_', '-')} {getattr(self, name)}"

        for name in ("rank", "alpha", "batch_size", "micro_batch", "save_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{flag(name)}: it must be at least 1.")
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{flag(name)}: give a share from 0 up to, not including, 1.")
        for name in ("weight_decay", "max_steps", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{flag(name)}: it must be at least 0.")
        for name in ("learning_rate", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{flag(name)}: it must be above 0.")
        if not self.target_modules:
            raise InputError("--target-modules: name modules, or all-linear.")
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise InputError(f"{flag('report_to')}: it is not installed. pip install {self.report_to}")


def step_count(n_rows: int, config: TrainConfig) -> int:
    """Optimiser steps: ``max_steps`` where given, else the epochs in whole batches, at least one."""
    return config.max_steps or max(1, round(n_rows * config.epochs / config.batch_size))
