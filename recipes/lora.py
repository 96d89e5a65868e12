"""LoRA on a pruned set, under the template and the mask that scored it.

    python recipes/lora.py --config recipes/configs/smollm2-135m-cpu.yaml --run-folder RUN --out ADAPTER
    accelerate launch recipes/lora.py --config recipes/configs/llama3-8b.yaml --run-folder RUN --out ADAPTER
    torchrun --nproc_per_node 2 recipes/lora.py ...                                (also on CPU)

RUN is a run folder of instruct-prune; the rows that its selection keeps are trained on, with their pictures where they show any.
Without --run-folder, --data trains on the text of any file that instruct-prune reads. Run the same command again to go on after an
interruption. Written to be copied and changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune import Encoded, Encoder, InputError, Model, Reject, Row, Run, load_data
from instruct_prune.train import (
    Base,
    TrainConfig,
    TrainRow,
    attach_lora,
    claim,
    evaluate_shared,
    find_base,
    finish,
    is_main,
    pack,
    parse,
    run_script,
    say,
    step_count,
    train,
    train_rows,
    world_size,
)


@dataclass(frozen=True)
class Recipe(TrainConfig):
    """What to train on what."""

    run_folder: str = ""  # not `run`: torchrun would take --run for an abbreviation of its own options
    """Run folder of instruct-prune: the rows that it keeps are trained on, under the template and mask they were scored with."""
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


NEUTRAL = ("out", "merge", "restart", "run_folder", "log_steps", "save_steps", "micro_batch", "eval_steps", "report_to")
"""Options that do not change the adapter."""


# ---- rows ----


def encoder_for(recipe: Recipe, base: Base, data_format: str | None) -> Encoder | Model:
    """What encoded the rows of the run (of rows that show pictures, the model); without a run, what the options ask for.

    Raises:
        InputError: the template is another than the one that the rows were scored under.
    """
    settings: dict[str, Any] = {"max_length": longest_row(recipe, base), "data_format": data_format}
    if not recipe.run_folder:
        return Encoder(base.tokenizer, recipe.template or "auto", **settings)
    run = Run(recipe.run_folder)
    template = run.facts.template
    if recipe.template and recipe.template != template:
        raise InputError(
            f"--template {recipe.template}: {recipe.run_folder} was scored under the template {template!r}, and what is scored "
            f"must be what is trained on. Leave --template out, or score again with --template {recipe.template}."
        )
    if recipe.data and not recipe.template and template in ("alpaca", "chat"):
        usual = Encoder(base.tokenizer, "auto", **settings).template_name
        if usual != template:
            raise InputError(
                f"{', '.join(recipe.data)}: rows of this form ({data_format}) are written with the template {usual!r}, but "
                f"{recipe.run_folder} was scored under {template!r}. Say --template {template} to train them under it all the same."
            )
    return run.encoder(base.name, base.source.revision, other_template=recipe.other_template, **settings)


def longest_row(recipe: Recipe, base: Base) -> int:
    """Tokens of a row at most."""
    scored = Run(recipe.run_folder).facts.max_length if recipe.run_folder else base.context
    return min(recipe.max_length or scored, base.context)


def read_kept(recipe: Recipe, base: Base) -> list[Encoded]:
    """The rows that the run's selection keeps.

    Raises:
        InputError: there is no selection, or it was made from other scores or data.
    """
    rows = list(Run(recipe.run_folder).rows(kept=True))
    return usable(encoder_for(recipe, base, None), rows, f"{recipe.run_folder}, kept rows")


def read_files(recipe: Recipe, base: Base, files: Sequence[str]) -> list[Encoded]:
    """The rows of any files.

    Raises:
        InputError: a file is missing, empty or has no row to learn from.
    """
    source = load_data(list(files))
    found = list(source)
    if rejected := [row for row in found if isinstance(row, Reject)]:
        first = rejected[0]
        say(
            f"left out: {len(rejected)} rows that cannot be read (first: {first.source}, line {first.line}: {first.reason})"
        )
    rows = [row for row in found if isinstance(row, Row)]
    return usable(encoder_for(recipe, base, source.format), rows, ", ".join(files))


def usable(encoder: Encoder | Model, rows: Sequence[Row], where: str) -> list[Encoded]:
    """Tokenized rows; those that carry nothing to learn are counted and left out."""
    encoded = encoder.encode(rows) if rows else []
    if left_out := [row for row in encoded if not row.status.scored]:
        say(
            f"left out: {len(left_out)} rows with nothing to learn (first: row {left_out[0].row_id}, {left_out[0].reason})"
        )
    if len(left_out) == len(encoded):
        raise InputError(f"{where}: none of its rows can be trained on.")
    return [row for row in encoded if row.status.scored]


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


def rows_hash(rows: Iterable[Encoded]) -> str:
    """Equal when tokens, masks and order are."""
    return hashlib.sha256(" ".join(row.content_hash for row in rows).encode()).hexdigest()


# ---- the run ----


def run_recipe(recipe: Recipe) -> None:
    """Everything, in order.

    Raises:
        InputError: something given is wrong.
    """
    check(recipe)
    facts = Run(recipe.run_folder).facts if recipe.run_folder else None
    pictures = facts is not None and facts.pictures
    if recipe.model or facts is None:
        base = find_base(recipe.model, recipe.model_revision, pictures)
    else:
        base = find_base(facts.model, recipe.model_revision or facts.model_revision, pictures)
    encoded = read_files(recipe, base, recipe.data) if recipe.data else read_kept(recipe, base)
    if recipe.eval_data:
        learnt, held_out = encoded, read_files(recipe, base, recipe.eval_data)
    else:
        learnt, held_out = split_rows(encoded, recipe.eval_share, recipe.seed)
    rows = train_rows(learnt)
    if recipe.packing:
        rows = pack(rows, longest_row(recipe, base))
    say(summary(recipe, learnt, held_out, len(rows)))
    out = Path(recipe.out)
    identity = {
        **{name: value for name, value in dataclasses.asdict(recipe).items() if name not in NEUTRAL},
        "model": base.identity(),
        "rows": rows_hash(learnt),
        "held_out": rows_hash(held_out),
    }
    if claim(out, identity, recipe.restart):
        say(f"{out}: trained before, with these options and rows; skipped")
    else:
        fit(recipe, rows, held_out, base, out)
    if recipe.merge and is_main() and not (out / "merged" / "config.json").exists():
        merge(recipe, base, out)


def fit(recipe: Recipe, rows: Sequence[TrainRow], held_out: Sequence[Encoded], base: Base, out: Path) -> None:
    """Train, save the adapter and training.json; goes on from the last checkpoint."""
    model = attach_lora(base.load(recipe), recipe)
    trainable, total = model.get_nb_trainable_parameters()
    say(f"model     {base.name}: {trainable:,} of {total:,} parameters are trained ({trainable / total:.2%})")
    curve: dict[int, float] = {}

    def look(step: int) -> None:
        curve[step] = float(evaluate_shared(model, held_out, base.held).per_row.mean())
        say(f"held-out loss at step {step}: {curve[step]:.4f}")

    def on_step(step: int) -> None:
        if held_out and recipe.eval_steps and step % recipe.eval_steps == 0:
            look(step)

    if held_out:
        look(0)  # a fresh adapter changes nothing: this is the base model, also when a checkpoint follows
    result = train(model, rows, recipe, checkpoints=out / "checkpoints", on_step=on_step, folder=out, held=base.held)
    if held_out and result.steps not in curve:
        look(result.steps)
    if not is_main():
        return
    model.save_pretrained(out / "adapter", safe_serialization=True)
    base.save_tokenizer(out / "adapter")
    finish(out, {**dataclasses.asdict(result), "held_out_loss": curve, "recipe": dataclasses.asdict(recipe)})
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    if held_out:
        before, after = curve[0], curve[result.steps]
        print(f"held-out loss: {before:.4f} before, {after:.4f} after ({len(held_out)} rows, nats per response token)")
    print(f"adapter:       {out / 'adapter'} ({result.seconds:.0f} s of training)")


def merge(recipe: Recipe, base: Base, out: Path) -> None:
    """The adapter added to the unquantised base: merging into 4-bit weights would round it away."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base.load(dataclasses.replace(recipe, quantize="none")), out / "adapter")
    model.merge_and_unload().save_pretrained(out / "merged")
    base.save_tokenizer(out / "merged")
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
    recipe.check()
    if recipe.eval_steps < 0:
        raise InputError(f"--eval-steps {recipe.eval_steps}: it must be at least 0.")
    if recipe.max_length is not None and recipe.max_length < 2:
        raise InputError(f"--max-length {recipe.max_length}: a row needs at least 2 tokens.")


def summary(recipe: Recipe, learnt: Sequence[Encoded], held_out: Sequence[Encoded], sequences: int) -> str:
    """Tokens and steps, before an hour is spent on them."""
    tokens = sum(len(row.input_ids) for row in learnt)
    responses = sum(int(row.response_mask.sum()) for row in learnt)
    cut = sum(row.n_cut > 0 for row in learnt)
    steps, world = step_count(sequences, recipe), world_size()
    epochs = steps * recipe.batch_size / sequences
    units = "packed sequences" if recipe.packing else "rows"
    return (
        f"rows      {len(learnt):,} to train on, {len(held_out):,} held out; {tokens:,} tokens an epoch, {responses:,} of them learnt"
        f"{f'; {cut:,} responses cut' if cut else ''}\n"
        f"steps     {steps:,}, each of {recipe.batch_size} {units}: {epochs:.2f} epochs of {sequences:,} (micro-batch {recipe.micro_batch}, "
        f"{world} process{'es' if world > 1 else ''}): about {tokens * epochs:,.0f} tokens"
    )


def main(words: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if words is None else words
    return run_script("lora", lambda: run_recipe(parse(Recipe, arguments, "LoRA on a pruned set.")))


if __name__ == "__main__":
    sys.exit(main())
