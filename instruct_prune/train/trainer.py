"""The training itself: the Trainer of transformers over exact optimiser steps, in an order that only the seed decides."""

from __future__ import annotations

import inspect
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from instruct_prune.errors import InputError
from instruct_prune.train.batch import collate, collate_pictured, loss_of_kept
from instruct_prune.train.config import TrainConfig, step_count
from instruct_prune.train.processes import resolved_dtype, say, world_size
from instruct_prune.train.rows import TrainRow, training_order
from instruct_prune.train.schedule import learning_rate_share
from instruct_prune.train.tracking import tracker_arguments, tracker_callbacks

if TYPE_CHECKING:
    from instruct_prune.models.vision_language import VisionLanguage


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    Attributes:
        losses: (step, mean loss per response token of its rows, in nats), for each logged step.
        steps: optimiser steps.
        tokens: tokens of all rows that were seen, counted as often as they were seen, without padding.
        response_tokens: those among them that were learnt.
        seconds: time of the training; after an interruption, of its last part.
    """

    losses: tuple[tuple[int, float], ...]
    steps: int
    tokens: int
    response_tokens: int
    seconds: float


def train(
    model: Any,
    rows: Sequence[TrainRow],
    config: TrainConfig,
    *,
    checkpoints: Path | None = None,
    on_step: Callable[[int], None] | None = None,
    folder: Path | None = None,
    held: VisionLanguage | None = None,
) -> TrainResult:
    """Train the adapter of a model.

    Every step takes ``batch_size`` rows, with a token-weighted mean of their losses, so processes and micro-batches change nothing
    but rounding (dropout draws its own numbers in each process).

    Args:
        model: as `attach_lora` returns it; its adapter is changed in place.
        rows: what to train on.
        config: how.
        checkpoints: folder of checkpoints; a whole one that lies there is gone on from. None: none are written.
        folder: of this training, which a tracker (``config.report_to``) calls it by; None: nothing is tracked.
        on_step: called with the number of optimiser steps done after each of them, in every process.
        held: the same model as it measures, where rows show pictures.

    Raises:
        InputError: the batch cannot be shared out evenly over the processes, one process sees several GPUs, or the model runs rows
            with pictures one by one alone.
    """
    steps = step_count(len(rows), config)
    order = training_order([len(row) for row in rows], steps, config.batch_size, config.seed)
    ordered = [rows[i] for i in order.tolist()]
    with tempfile.TemporaryDirectory() as nowhere:
        trainer = _InOrder(
            model=model,
            args=_arguments(config, steps, checkpoints, Path(nowhere), folder),
            train_dataset=ordered,
            data_collator=_collator(model, config, held),
            compute_loss_func=loss_of_kept if held is not None else None,
            callbacks=[_Log(), *([_OnStep(on_step)] if on_step else []), *tracker_callbacks(config, folder)],
            config=config,
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        checkpoint = last_checkpoint(checkpoints) if checkpoints else None
        if checkpoint is not None:
            say(f"resuming from {checkpoint}")
        began = time.monotonic()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.monotonic() - began
    logged = tuple((entry["step"], float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry)
    tokens, targets = sum(len(row) for row in ordered), sum(row.n_targets for row in ordered)
    return TrainResult(logged, trainer.state.global_step, tokens, targets, seconds)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint (trainer_state.json is written last)."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


def _arguments(
    config: TrainConfig, steps: int, checkpoints: Path | None, nowhere: Path, folder: Path | None
) -> TrainingArguments:
    world = world_size()
    accumulation, rest = divmod(config.batch_size, config.micro_batch * world)
    if rest or not accumulation:
        raise InputError(
            f"--batch-size {config.batch_size} cannot be shared out evenly over {world} processes of --micro-batch "
            f"{config.micro_batch}. Make it a multiple of {config.micro_batch * world}."
        )
    dtype = resolved_dtype(config.dtype)
    arguments = TrainingArguments(
        output_dir=str(checkpoints or nowhere),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="no" if checkpoints is None else "steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        seed=config.seed,
        **tracker_arguments(config, folder),
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        raise InputError(
            f"one process sees {arguments.n_gpu} GPUs. Start one for each: accelerate launch --num_processes {arguments.n_gpu} "
            "SCRIPT ..., or show it one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    return arguments


def _collator(
    model: Any, config: TrainConfig, held: VisionLanguage | None
) -> Callable[[Sequence[TrainRow]], dict[str, Any]]:
    keep_logits = "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters
    if held is None:
        return lambda rows: collate(rows, config.packing, keep_logits)
    if config.micro_batch > 1 and not held.shortcuts.batches:
        raise InputError(
            f"--micro-batch {config.micro_batch}: {held.name} runs rows that show pictures one by one. Train with --micro-batch 1."
        )
    return lambda rows: collate_pictured(rows, held, keep_logits)


class _InOrder(Trainer):  # type: ignore[misc]
    """The Trainer of transformers, with rows in the order in which they are given and our schedule."""

    def __init__(self, config: TrainConfig, **arguments: Any) -> None:
        self.config = config
        super().__init__(**arguments)

    def _get_train_sampler(self, *ignored: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """See `learning_rate_share`."""
        warmup = math.ceil(self.config.warmup * num_training_steps)
        self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: learning_rate_share(step, num_training_steps, warmup, self.config.schedule),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler


class _Log(TrainerCallback):  # type: ignore[misc]
    """A line for each logged step, on the main process."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            at = f"step {state.global_step}/{state.max_steps}"
            print(f"{at:<14} loss {float(logs['loss']):.4f}   learning rate {logs['learning_rate']:.2e}", flush=True)


class _OnStep(TrainerCallback):  # type: ignore[misc]
    """Calls ``function(steps done)`` after each optimiser step."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.function(state.global_step)
