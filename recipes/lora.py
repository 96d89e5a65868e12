"""LoRA on a pruned set, under the template and the mask that scored it.

    python recipes/lora.py --config recipes/configs/smollm2-135m-cpu.yaml --run-folder RUN --out ADAPTER
    accelerate launch recipes/lora.py --config recipes/configs/llama3-8b.yaml --run-folder RUN --out ADAPTER
    torchrun --nproc_per_node 2 recipes/lora.py ...                                (also on CPU)

RUN is a run folder of instruct-prune; its pruned.jsonl is trained on. Without --run-folder, --data trains on any file that
instruct-prune reads. Run the same command again to go on after an interruption. Written to be copied and changed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from peft import PeftModel
from training import (
    EveryStep,
    Row,
    Training,
    attach_lora,
    check_ranges,
    device_type,
    held_out_losses,
    is_main,
    last_checkpoint,
    load_base,
    make_trainer,
    packed,
    parse,
    row_of,
    run_script,
    say,
    step_count,
    world_size,
)

from instruct_prune.encode.item import Encoded
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.errors import InputError
from instruct_prune.models import names as models
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Reject
from instruct_prune.run.folder import RunFolder
from instruct_prune.storage import digest, write_json


@dataclass(frozen=True)
class Recipe(Training):
    """What to train on what."""

    run_folder: str = ""  # not `run`: torchrun would take --run for an abbreviation of its own options
    """Run folder of instruct-prune: its pruned.jsonl is trained on, under the template and mask it was scored with."""
    data: tuple[str, ...] = ()
    """Other files to train on (anything that instruct-prune reads)."""
    out: str = ""
    """Where the adapter goes."""
    model: str = ""
    """Base model: Hub id, local folder, GGUF file or embedded default; the run's scoring model when not given."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    template: str = ""
    """alpaca, chat, plain or a Jinja file; the run's when not given, and never another than the run's."""
    other_template: bool = False
    """Train under this model's chat template although the rows were scored under another model's."""
    max_length: int | None = None
    """Longest row in tokens; the run's when not given."""
    eval_share: float = 0.1
    """Share of the rows that is held out."""
    eval_data: tuple[str, ...] = ()
    """Files to hold out instead of a share."""
    eval_steps: int = 0
    """Held-out loss every so many steps too (0: before and after)."""
    merge: bool = False
    """Also write the adapter merged into the unquantised base model."""
    restart: bool = False
    """Discard what --out holds and begin anew."""


# ---- what was scored ----


@dataclass(frozen=True)
class Scored:
    """What the run's manifest says about how its rows were read and scored."""

    template: str = "auto"
    template_sha256: str = ""
    turns: Literal["all", "last"] = "all"
    overlong: Literal["truncate", "drop"] = "truncate"
    max_length: int | None = None
    format: str | None = None
    columns: tuple[str, ...] = ()
    model: str = ""


def scored_as(run: str) -> Scored:
    """Read a run's manifest.

    Raises:
        InputError: there is no scored run.
    """
    if not Path(run).is_dir():
        raise InputError(
            f"--run-folder {run}: there is no such run folder. Make one: instruct-prune run --data ... --out {run}"
        )
    folder = RunFolder(run)
    config = folder.require("encode", f"run --data ... --out {run}")["config"]
    scoring = folder.require("score", f"score --data ... --out {run}")["config"]
    names = ("template", "template_sha256", "turns", "overlong", "max_length", "format")
    facts = {name: config[name] for name in names}
    return Scored(**facts, columns=tuple(config["columns"]), model=scoring["model"]["name"])


def make_encoder(recipe: Recipe, scored: Scored, tokenizer: Any, context: int, data_format: str) -> Encoder:
    """The scorer's encoder.

    Raises:
        InputError: the template is another than the one that the rows were scored under.
    """
    if recipe.run_folder and recipe.template and recipe.template != scored.template:
        raise InputError(
            f"--template {recipe.template}: {recipe.run_folder} was scored under the template {scored.template!r}, and what is scored "
            f"must be what is trained on. Leave --template out, or score again with --template {recipe.template}."
        )
    settings: dict[str, Any] = {"turns": scored.turns, "overlong": scored.overlong, "data_format": data_format}
    settings["max_length"] = longest_row(recipe, scored, context)
    template = recipe.template or scored.template
    encoder = Encoder(tokenizer, template, **settings)
    if recipe.run_folder and recipe.data and not recipe.template and template in ("alpaca", "chat"):
        usual = Encoder(tokenizer, "auto", **settings).template_name
        if usual != template:
            raise InputError(
                f"{', '.join(recipe.data)}: rows of this form ({data_format}) are written with the template {usual!r}, but "
                f"{recipe.run_folder} was scored under {template!r}. Say --template {template} to train them under it all the same."
            )
    if scored.template_sha256 not in ("", encoder.identity["template_sha256"]) and not recipe.other_template:
        raise InputError(
            f"the template {template!r} is not the text that {recipe.run_folder} was scored under (another SHA-256): the chat template "
            f"of {tokenizer.name_or_path} differs from that of {scored.model}, or the file was changed. Train {scored.model}, "
            "score with the model that is trained, or pass --other-template to train under the other text knowingly."
        )
    return encoder


def longest_row(recipe: Recipe, scored: Scored, context: int) -> int:
    """Tokens of a row at most."""
    return min(recipe.max_length or scored.max_length or context, context)


def read_rows(
    data: Sequence[str], encoder_for: Callable[[str], Encoder], scored: Scored, strict: bool
) -> list[Encoded]:
    """Read and tokenize files; rows that carry nothing to learn are counted and left out.

    Raises:
        InputError: a file is missing, empty or has no row to learn from.
    """
    columns = dict(text.split("=", 1) for text in scored.columns)
    source = open_data(
        list(data), format=scored.format if strict else None, columns=columns if strict else {}, strict=strict
    )
    samples = [row for row in source if not isinstance(row, Reject)]
    encoder = encoder_for(source.format)
    encoded = encoder.encode(samples) if samples else []
    usable = [row for row in encoded if row.status.scored]
    if len(usable) < len(encoded):
        first = next(row for row in encoded if not row.status.scored)
        say(
            f"left out: {len(encoded) - len(usable)} rows with nothing to learn (first: row {first.row_id}, {first.reason})"
        )
    if not usable:
        raise InputError(f"{', '.join(data)}: none of its rows can be trained on.")
    return usable


def split_rows(rows: list[Encoded], share: float, seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Rows to train on and rows held out, each in input order.

    Raises:
        InputError: nothing would be left to train on.
    """
    if not 0 <= share < 1:
        raise InputError(f"--eval-share {share}: give a share from 0 up to, not including, 1.")
    count = max(1, round(share * len(rows))) if share else 0
    if count >= len(rows):
        raise InputError(
            f"--eval-share {share} of {len(rows)} rows leaves nothing to train on. Keep more rows, or use --eval-data."
        )
    out = set(np.random.default_rng(seed).permutation(len(rows))[:count].tolist())
    return [row for i, row in enumerate(rows) if i not in out], [row for i, row in enumerate(rows) if i in out]


# ---- the run ----


def train(recipe: Recipe) -> dict[str, Any]:
    """Everything, in order; returns what training.json says.

    Raises:
        InputError: something given is wrong.
    """
    check(recipe)
    scored = scored_as(recipe.run_folder) if recipe.run_folder else Scored()
    source = models.find_model(recipe.model or scored.model, recipe.model_revision)
    tokenizer = models.load_tokenizer(source)
    context = models.context_length(source)

    def encoder_for(data_format: str) -> Encoder:
        return make_encoder(recipe, scored, tokenizer, context, data_format)

    own = not recipe.data
    encoded = read_rows(recipe.data or (pruned_file(recipe.run_folder),), encoder_for, scored, strict=own)
    if recipe.eval_data:
        learnt, held_out = encoded, read_rows(recipe.eval_data, encoder_for, scored, strict=False)
    else:
        learnt, held_out = split_rows(encoded, recipe.eval_share, recipe.seed)
    rows = [row_of(row) for row in learnt]
    if recipe.packing:
        rows = packed(rows, longest_row(recipe, scored, context))
    dtype = models.pick_dtype(recipe.dtype, device_type())
    steps = step_count(len(rows), recipe)
    say(summary(recipe, learnt, held_out, len(rows), steps))

    out = Path(recipe.out)
    identity = {
        **{k: v for k, v in dataclasses.asdict(recipe).items() if k not in UNIMPORTANT},
        "model": source.identity(),
        "rows": digest([row.content_hash for row in learnt]),
        "held_out": digest([row.content_hash for row in held_out]),
    }
    if claim(out, identity, recipe.restart):
        say(f"{out}: trained before, with these options and rows; skipped")
    else:
        fit(recipe, rows, held_out, source, tokenizer, dtype, out)
    if recipe.merge and is_main() and not (out / "merged" / "config.json").exists():
        merge(source, out, dtype, tokenizer)
    if not is_main():
        return {}
    facts: dict[str, Any] = json.loads((out / "training.json").read_text())
    return facts


UNIMPORTANT = ("out", "merge", "restart", "run_folder", "log_steps", "save_steps", "micro_batch", "eval_steps")
"""Options that do not change the adapter."""


def fit(
    recipe: Recipe,
    rows: Sequence[Row],
    held_out: Sequence[Encoded],
    source: models.ModelSource,
    tokenizer: Any,
    dtype: str,
    out: Path,
) -> None:
    """Train, save the adapter and training.json; goes on from the last checkpoint."""
    model = attach_lora(load_base(source, dtype, recipe.quantize), recipe)
    trainable, total = model.get_nb_trainable_parameters()
    say(
        f"model     {source.name} in {dtype}: {trainable:,} of {total:,} parameters are trained ({trainable / total:.2%})"
    )
    trainer = make_trainer(model, rows, recipe, out / "checkpoints", dtype)
    curve: dict[int, float] = {}

    def evaluate(step: int) -> None:
        curve[step] = float(held_out_losses(model, held_out).mean())
        say(f"held-out loss at step {step}: {curve[step]:.4f}")

    if held_out:
        evaluate(0)  # a fresh adapter changes nothing: this is the base model, also when a checkpoint follows
        if recipe.eval_steps:
            steps = range(recipe.eval_steps, trainer.args.max_steps, recipe.eval_steps)
            trainer.add_callback(EveryStep(steps, evaluate))
    began = time.monotonic()
    checkpoint = last_checkpoint(out / "checkpoints")
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.monotonic() - began
    if held_out:
        evaluate(trainer.state.global_step)
    if not is_main():
        return
    model.save_pretrained(out / "adapter", safe_serialization=True)
    tokenizer.save_pretrained(out / "adapter")
    losses = [[entry["step"], float(entry["loss"])] for entry in trainer.state.log_history if "loss" in entry]
    facts = {"steps": trainer.state.global_step, "seconds": round(seconds, 1), "loss": losses, "held_out_loss": curve}
    write_json(out / "training.json", {**facts, "recipe": dataclasses.asdict(recipe)})
    RunFolder(out).finish("train", seconds=round(seconds, 1))
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    if held_out:
        before, after = curve[0], curve[trainer.state.global_step]
        print(f"held-out loss: {before:.4f} before, {after:.4f} after ({len(held_out)} rows, nats per response token)")
    print(f"adapter:       {out / 'adapter'} ({seconds:.0f} s of training)")


def merge(source: models.ModelSource, out: Path, dtype: str, tokenizer: Any) -> None:
    """The adapter added to the unquantised base: merging into 4-bit weights would round it away."""
    model = PeftModel.from_pretrained(models.load_causal_lm(source, dtype), out / "adapter")
    model.merge_and_unload().save_pretrained(out / "merged")
    tokenizer.save_pretrained(out / "merged")
    print(f"merged:        {out / 'merged'}")


def check(recipe: Recipe) -> None:
    """What can be known to be wrong before anything is loaded."""
    if not recipe.out:
        raise InputError("--out is missing: name the folder of the adapter.")
    if not recipe.run_folder and not recipe.data:
        raise InputError(
            "--run-folder is missing: name a run folder of instruct-prune, or files to train on with --data."
        )
    if not recipe.run_folder and not recipe.model:
        raise InputError("--model is missing: without --run-folder there is no scoring model to take in its place.")
    check_ranges(recipe)
    if recipe.eval_steps < 0:
        raise InputError(f"--eval-steps {recipe.eval_steps}: it must be at least 0.")
    if recipe.max_length is not None and recipe.max_length < 2:
        raise InputError(f"--max-length {recipe.max_length}: a row needs at least 2 tokens.")


def pruned_file(run: str) -> str:
    path = Path(run) / "pruned.jsonl"
    if not path.exists():
        raise InputError(f"{path} does not exist. Write it: instruct-prune export --out {run}")
    return str(path)


def summary(recipe: Recipe, learnt: Sequence[Encoded], held_out: Sequence[Encoded], sequences: int, steps: int) -> str:
    """Tokens and steps, before an hour is spent on them."""
    tokens = sum(len(row.input_ids) for row in learnt)
    responses = sum(int(row.response_mask.sum()) for row in learnt)
    cut = sum(row.n_cut > 0 for row in learnt)
    world = world_size()
    units = f"{sequences:,} packed sequences" if recipe.packing else f"{sequences:,} rows"
    return (
        f"rows      {len(learnt):,} to train on, {len(held_out):,} held out; {tokens:,} tokens an epoch, {responses:,} of them learnt"
        f"{f'; {cut:,} responses cut' if cut else ''}\n"
        f"steps     {steps:,} of {recipe.batch_size} ({units}, {steps * recipe.batch_size / sequences:.2f} epochs; "
        f"micro-batch {recipe.micro_batch}, {world} process{'es' if world > 1 else ''}): "
        f"about {tokens * steps * recipe.batch_size / sequences:,.0f} tokens"
    )


def claim(out: Path, identity: dict[str, Any], restart: bool) -> bool:
    """True when the folder holds this very training, finished. Only the main process writes.

    Raises:
        InputError: it holds another one.
    """
    from accelerate.utils import broadcast_object_list

    found: bool | str = False
    if is_main():
        try:
            folder = RunFolder(out)
            for name in ("checkpoints", "adapter", "merged") if restart else ():
                shutil.rmtree(folder / name, ignore_errors=True)
            found = folder.begin("train", identity, restart)
        except InputError as error:
            found = str(error)
    if world_size() > 1:
        found = broadcast_object_list([found])[0]
    if isinstance(found, str):
        raise InputError(found)
    return found


def main(words: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if words is None else words
    return run_script("lora", lambda: train(parse(Recipe, arguments, "LoRA on a pruned set.")))


if __name__ == "__main__":
    sys.exit(main())
