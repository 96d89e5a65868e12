"""What lora.py and study.py share: rows, batches, the held-out loss, adapters, the Trainer. Copied along with them."""

from __future__ import annotations

import argparse
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from instruct_prune.arrays import Float32, Int64
from instruct_prune.config import load_yaml
from instruct_prune.encode.batching import plan_batches, shared_prefixes
from instruct_prune.encode.item import Encoded, Tokens
from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models import names as models
from instruct_prune.models.causal_lm import CausalLM

IGNORED = -100


@dataclass(frozen=True)
class Training:
    """How to train: what lora.py and study.py have in common."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter: all-linear (every linear layer but the output head), or names."""
    learning_rate: float = 2e-4
    """Peak; cosine decay to zero."""
    warmup: float = 0.03
    """Share of the steps."""
    weight_decay: float = 0.0
    epochs: float = 3.0
    max_steps: int = 0
    """Stop after so many steps (0: all epochs)."""
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
    seed: int = 0
    save_steps: int = 50
    """A checkpoint to go on from, every so many steps."""
    log_steps: int = 1


def check_ranges(training: Training) -> None:
    """Numbers that would fail far from here, or train without learning.

    Raises:
        InputError: one is out of range.
    """

    def flag(name: str) -> str:
        return f"--{name.replace('_', '-')} {getattr(training, name)}"

    for name in ("rank", "alpha", "batch_size", "micro_batch", "save_steps", "log_steps"):
        if getattr(training, name) < 1:
            raise InputError(f"{flag(name)}: it must be at least 1.")
    for name in ("dropout", "warmup"):
        if not 0 <= getattr(training, name) < 1:
            raise InputError(f"{flag(name)}: give a share from 0 up to, not including, 1.")
    for name in ("weight_decay", "max_steps", "seed"):
        if not 0 <= getattr(training, name) < math.inf:
            raise InputError(f"{flag(name)}: it must be at least 0.")
    for name in ("learning_rate", "epochs"):
        if not 0 < getattr(training, name) < math.inf:
            raise InputError(f"{flag(name)}: it must be above 0.")
    if not training.target_modules:
        raise InputError("--target-modules: name modules, or all-linear.")


# ---- rows ----


@dataclass(frozen=True)
class Row:
    """A training sequence: ids int64 [t], labels int64 [t] (IGNORED where nothing is learnt), positions int64 [t]."""

    ids: Int64
    labels: Int64
    positions: Int64


def row_of(encoded: Encoded) -> Row:
    """The scorer's tokens and mask as a training sequence."""
    ids = encoded.input_ids.astype(np.int64)
    return Row(ids, np.where(encoded.response_mask, ids, IGNORED), np.arange(len(ids)))


def packed(rows: Sequence[Row], length: int) -> list[Row]:
    """Rows joined into sequences of at most ``length`` tokens, longest first, each where it fits first.

    Positions begin at 0 again with every row: by that transformers keeps the rows from seeing each other.
    """
    bins: list[list[Row]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        for i, free in enumerate(room):
            if len(row.ids) <= free:
                bins[i].append(row)
                room[i] -= len(row.ids)
                break
        else:
            bins.append([row])
            room.append(length - len(row.ids))
    joined = [
        [np.concatenate([getattr(r, f) for r in group]) for f in ("ids", "labels", "positions")] for group in bins
    ]
    return [Row(*parts) for parts in joined]


def collate(rows: Sequence[Row], packing: bool = False, keep_logits: bool = True) -> dict[str, torch.Tensor]:
    """Right-padded rows; no attention mask is needed, because a causal model cannot see what comes after.

    With ``keep_logits`` the output head runs only where some row of the batch has a target: the head and its softmax
    are a third of the work of a small model with a large vocabulary, and most of the memory.
    """
    width = max(len(row.ids) for row in rows)
    ids, labels, positions = (torch.full((len(rows), width), fill) for fill in (0, IGNORED, 0))
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.from_numpy(row.ids)
        labels[i, : len(row.ids)] = torch.from_numpy(row.labels)
        positions[i, : len(row.ids)] = torch.from_numpy(row.positions)
    batch = {"input_ids": ids, "labels": labels}
    if packing:
        batch["position_ids"] = positions
    if keep_logits:
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        at = (targets != IGNORED).any(dim=0).nonzero()[:, 0]
        batch |= {"logits_to_keep": at, "shift_labels": targets[:, at]}
    return batch


def training_order(lengths: Sequence[int], steps: int, batch_size: int, seed: int) -> Int64:
    """int64 [steps * batch_size]: whole shuffled epochs, one after the other; rows of one length side by side in a step.

    The rows of a step depend on the seed only, not on the number of processes or the micro-batch.
    """
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(len(lengths)) for _ in range(math.ceil(steps * batch_size / len(lengths)))]
    order = np.concatenate(epochs)[: steps * batch_size].reshape(steps, batch_size)
    sizes = np.asarray(lengths)[order]
    return np.take_along_axis(order, np.argsort(-sizes, axis=1, kind="stable"), axis=1).reshape(-1)


# ---- held-out loss ----


def response_losses(model: Any, rows: Sequence[Encoded], batch_tokens: int = 4096) -> Float32:
    """float32 [n]: nats per response token of each row, by the scorer's own loss (METHOD section 1)."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    training = base.training
    losses = np.empty(len(rows), dtype=np.float32)
    items = [Tokens(row.input_ids, row.response_mask) for row in rows]
    lengths = np.asarray([len(item.ids) for item in items], dtype=np.int32)
    first = np.asarray([item.response_mask.argmax() for item in items], dtype=np.int32)
    offset = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    positions = np.arange(len(items), dtype=np.int64)
    group, prefixes = shared_prefixes(np.concatenate([i.ids for i in items]), offset, positions, first)
    plan = plan_batches(positions, lengths, batch_tokens=batch_tokens, group=group, prefixes=prefixes)
    backbone = CausalLM(base)
    backbone.start_pass((SubnetSpec("dense"),), plan)
    for chunk in plan.chunks:
        for batch in chunk:
            values = backbone.losses(backbone.collate([items[i] for i in batch.rows], batch.prefix))
            losses[batch.rows] = values[:, 0].float().cpu().numpy()
    base.train(training)
    return losses


def held_out_losses(model: Any, rows: Sequence[Encoded]) -> Float32:
    """`response_losses`, each process a share of the rows."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    rank, world = state.process_index, state.num_processes
    mine = rows[rank::world]
    values = response_losses(model, mine).tolist() if mine else []
    pairs = gather_object(list(zip(range(rank, len(rows), world), values, strict=True)))
    return np.asarray([value for _, value in sorted(pairs)], dtype=np.float32)


# ---- model ----


def load_base(source: models.ModelSource, dtype: str, quantize: str) -> Any:
    """The base model, frozen; in 4 bits for QLoRA.

    Raises:
        InputError: bitsandbytes cannot run here.
    """
    if quantize == "none":
        return models.load_causal_lm(source, dtype)
    try:
        import bitsandbytes  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError:
        raise InputError(
            "--quantize 4bit needs bitsandbytes: pip install 'instruct-prune[qlora]'. Or train with --quantize none."
        ) from None
    if not torch.cuda.is_available():
        raise InputError(
            "--quantize 4bit needs a CUDA GPU, and this machine shows none. Train with --quantize none: a model that is small "
            "enough for a CPU gains nothing from 4 bits."
        )
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    model = AutoModelForCausalLM.from_pretrained(
        source.location,
        revision=source.revision,
        quantization_config=config,
        device_map={"": torch.cuda.current_device()},
        trust_remote_code=False,
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def attach_lora(model: Any, training: Training) -> Any:
    """The model with fresh adapters, the same for the same seed.

    Raises:
        InputError: the model has no modules of the names in target_modules.
    """
    set_seed(training.seed)
    targets: str | list[str] = list(training.target_modules)
    if targets == ["all-linear"]:
        targets = "all-linear"
    config = LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        lora_dropout=training.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    # With a cache of keys and values transformers does not look at positions, and packed rows would see each other.
    model.config.use_cache = False
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        if "target modules" not in str(error).lower():
            raise
        raise InputError(
            f"--target-modules {' '.join(training.target_modules)}: {type(model).__name__} has none of these. Use all-linear."
        ) from None


# ---- training ----


class InOrder(Trainer):  # type: ignore[misc]
    """The Trainer of transformers, taking rows in the order in which they are given."""

    def _get_train_sampler(self, *ignored: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)


class Log(TrainerCallback):  # type: ignore[misc]
    """A line for each logged step, on the main process."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            at = f"step {state.global_step}/{state.max_steps}"
            print(f"{at:<14} loss {float(logs['loss']):.4f}   learning rate {logs['learning_rate']:.2e}", flush=True)


class EveryStep(TrainerCallback):  # type: ignore[misc]
    """Calls ``function(step)`` after each of these steps."""

    def __init__(self, steps: Sequence[int], function: Callable[[int], None]) -> None:
        self.steps, self.function = set(steps), function

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step in self.steps:
            self.function(state.global_step)


class Ordered(Dataset[Row]):
    """Rows in training order."""

    def __init__(self, rows: Sequence[Row], order: Int64) -> None:
        self.rows = rows
        self.order: list[int] = order.tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> Row:
        return self.rows[self.order[i]]


def step_count(n_rows: int, training: Training) -> int:
    """Optimiser steps: the epochs in whole batches, at least one."""
    return training.max_steps or max(1, round(n_rows * training.epochs / training.batch_size))


def make_trainer(
    model: Any, rows: Sequence[Row], training: Training, checkpoints: Path, dtype: str, save: bool = True
) -> Trainer:
    """A Trainer over whole optimiser steps.

    Raises:
        InputError: the batch cannot be shared out evenly.
    """
    steps = step_count(len(rows), training)
    world = world_size()
    accumulation, rest = divmod(training.batch_size, training.micro_batch * world)
    if rest or not accumulation:
        raise InputError(
            f"--batch-size {training.batch_size} cannot be shared out evenly over {world} processes of --micro-batch "
            f"{training.micro_batch}. Make it a multiple of {training.micro_batch * world}."
        )
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=training.micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(training.warmup * steps),
        weight_decay=training.weight_decay,
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=training.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if save else "no",
        save_steps=training.save_steps,
        save_total_limit=2,
        seed=training.seed,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=gpu,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        raise InputError(
            f"one process sees {arguments.n_gpu} GPUs. Start one for each: accelerate launch --num_processes {arguments.n_gpu} "
            "recipes/lora.py ..., or show it one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    order = training_order([len(row.ids) for row in rows], steps, training.batch_size, training.seed)
    keep_logits = "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=Ordered(rows, order),
        data_collator=lambda batch: collate(batch, training.packing, keep_logits),
        callbacks=[Log()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint (trainer_state.json is written last)."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


# ---- processes and options ----


def state() -> Any:
    """Accelerate's view of the processes; without a GPU it reads torchrun's environment only when told so."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def world_size() -> int:
    return int(state().num_processes)


def is_main() -> bool:
    return bool(state().is_main_process)


def say(text: str) -> None:
    """To people, once."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


Options = TypeVar("Options")


def parse(kind: type[Options], words: Sequence[str], description: str) -> Options:
    """Options from --config FILE.yaml and flags; flags win.

    Raises:
        InputError: the file is missing, or has a key that does not exist.
    """
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args(list(words))
    default = load_yaml(known.config, kind) if known.config else kind()
    return tyro.cli(kind, args=rest, default=default, description=description)


def run_script(name: str, action: Callable[[], object]) -> int:
    """Exit code: 0 done, 1 incomplete, 2 wrong input (told in a sentence, once), 130 interrupted."""
    # peft asks transformers 5 for an attribute by its old name; users can do nothing about it.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        action()
    except IncompleteRunError as error:
        print(f"{name}: incomplete: {error}", file=sys.stderr, flush=True)
        return 1
    except InputError as error:
        if is_main():
            print(f"{name}: error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to go on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
