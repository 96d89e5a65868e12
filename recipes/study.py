"""Does the subset beat a random one? The same LoRA on each subset and on random subsets of the same size.

    python recipes/study.py --data alpaca.json --pool-rows 3000 --held-out-rows 500 --eval dolly=dolly.json --keep 0.1 0.3 \
        --seeds 3 --epochs 1 --out STUDY

A random part of the data is the pool, which is scored and embedded; another is held out. Every arm is trained with the same
options for the same number of epochs (with --max-steps, of optimiser steps), and its loss per response token is measured on rows
that nobody trained on. STUDY then has study.json and study.md. Finished arms are not trained again when the command is run
again. One process; written to be copied and changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from instruct_prune import (
    DataConfig,
    EmbedConfig,
    EncodeConfig,
    Encoded,
    InputError,
    Row,
    Run,
    ScoreConfig,
    SelectConfig,
    load_data,
)
from instruct_prune.train import (
    TrainConfig,
    attach_lora,
    evaluate,
    find_base,
    parse,
    run_script,
    say,
    train,
    train_rows,
    world_size,
)

FULL = "full"
Sets = Mapping[str, Sequence[Encoded]]


@dataclass(frozen=True)
class Study(TrainConfig):
    """Which arms, on which rows, measured where."""

    data: tuple[str, ...] = ()
    """Dataset to study: a random pool and held-out rows are drawn from it."""
    out: str = ""
    """The study's folder."""
    pool_rows: int = 0
    """Rows to select from (0: all that are not held out)."""
    held_out_rows: int = 500
    """Rows that no arm trains on."""
    eval: tuple[str, ...] = ()
    """Other sets to measure on, as NAME=FILE."""
    eval_rows: int = 300
    """Rows of each of them, drawn at random."""
    model: str = "smollm2-135m-instruct"
    """Scores and is trained."""
    embedder: str = "all-minilm-l6-v2"
    subnets: tuple[str, ...] = ("dlc", "alone")
    """What to score, as in `instruct-prune score --subnets`."""
    max_length: int | None = 512
    """Longest row in tokens."""
    keep: tuple[float, ...] = (0.1, 0.3)
    """Shares of the pool."""
    arms: tuple[str, ...] = ("random", "flexrand", "easy_diverse", "hardest", "ifd", FULL)
    """Selection methods; full trains on the whole pool."""
    micro_batch: int = 4
    """Rows in a forward pass: one row alone leaves a CPU waiting for the weights."""
    seeds: int = 3
    """Runs of each arm: the seed draws random subsets, initialises adapters and shuffles."""


@dataclass(frozen=True)
class Arm:
    """One training: the rows of a subset, by their ids in the pool, and a seed."""

    name: str
    keep: float
    seed: int
    rows: tuple[int, ...]

    @property
    def file(self) -> str:
        return f"{self.name}-{self.keep:g}-s{self.seed}"


# ---- rows and arms ----


def read(files: Sequence[str]) -> list[Row]:
    """All rows that can be read; others are counted."""
    found = list(load_data(list(files)))
    rows = [row for row in found if isinstance(row, Row)]
    if len(rows) < len(found):
        say(f"{', '.join(files)}: {len(found) - len(rows)} rows cannot be read and are left out")
    return rows


def prepare(study: Study) -> tuple[Run, dict[int, Encoded], dict[str, list[Encoded]]]:
    """The scored and embedded pool, its rows by id, and the sets to measure on: "held-out" first, then those of --eval."""
    out = Path(study.out)
    rows = read(study.data)
    if len(rows) <= study.held_out_rows:
        raise InputError(f"--held-out-rows {study.held_out_rows}: the data has {len(rows)} rows; none would be left.")
    order = np.random.default_rng(study.seed).permutation(len(rows))
    held_out, rest = np.sort(order[: study.held_out_rows]), order[study.held_out_rows :]
    drawn = np.sort(rest[: study.pool_rows] if study.pool_rows else rest)
    out.mkdir(parents=True, exist_ok=True)
    lines = [raw.strip() if isinstance(raw := rows[i].raw, bytes) else json.dumps(dict(raw)).encode() for i in drawn]
    (out / "pool.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    run = Run(out / "run")
    scoring = ScoreConfig(model=study.model, subnets=study.subnets, dtype=study.dtype)
    run.score(DataConfig((str(out / "pool.jsonl"),)), scoring, EncodeConfig(max_length=study.max_length))
    run.embed(EmbedConfig(embedder=study.embedder))
    encoder = run.encoder()
    pool = {row.row_id: row for row in encoder.encode(list(run.rows(kept=None)))}
    known = {row.content_hash for row in pool.values()}
    sets = {"held-out": encoder.encode([rows[i] for i in held_out])}
    for text in study.eval:
        name, _, file = text.partition("=")
        if not (name and file) or name in sets:
            raise InputError(f"--eval {text}: write NAME=FILE, each name once.")
        others = read([file])
        chosen = np.sort(np.random.default_rng([study.seed, 2]).permutation(len(others))[: study.eval_rows])
        sets[name] = encoder.encode([others[i] for i in chosen])
    for name, encoded in sets.items():
        sets[name] = [row for row in encoded if row.status.scored and row.content_hash not in known]
        if gone := len(encoded) - len(sets[name]):
            say(f"{name}: {gone} rows have nothing to measure or a twin in the pool; left out")
        if not sets[name]:
            raise InputError(f"{name}: no row is left to measure on.")
    return run, pool, sets


def make_arms(study: Study, run: Run, pool: Mapping[int, Encoded]) -> list[Arm]:
    """All arms; a seed with all its methods is done before the next begins."""
    arms = []
    for seed in range(study.seeds):
        for name, keep in itertools.product(study.arms, study.keep):
            if name != FULL:
                kept = run.select(SelectConfig(keep=keep, method=name, seed=seed)).kept
                arms.append(Arm(name, keep, seed, tuple(kept.tolist())))
        if FULL in study.arms:
            arms.append(Arm(FULL, 1.0, seed, tuple(pool)))
    return arms


def run_arm(study: Study, arm: Arm, pool: Mapping[int, Encoded], sets: Sets, base: Any) -> dict[str, Any]:
    """Train one arm and measure it; the base model is as it was afterwards."""
    log_steps = 10**6 if study.report_to == "none" else study.log_steps
    options = dataclasses.replace(study, seed=arm.seed, log_steps=log_steps)
    model = attach_lora(base, options)
    result = train(model, train_rows(pool[i] for i in arm.rows), options, folder=Path(study.out) / "arms" / arm.file)
    losses = losses_of(model, sets)
    model.unload()
    return {**dataclasses.asdict(result), "losses": losses, "rows": len(arm.rows)}


def losses_of(model: Any, sets: Sets) -> dict[str, float]:
    """{set: mean loss over all its response tokens}: what fine-tuning minimises, so that short answers do not decide."""
    return {name: evaluate(model, rows).per_token for name, rows in sets.items()}


def finished(path: Path, key: str) -> dict[str, Any] | None:
    """An arm's result, when it was made with these options and rows."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not begun, or torn
        return None
    return found if found.get("key") == key else None


def statistics(means: NDArray[np.float64], random: NDArray[np.float64]) -> dict[str, Any]:
    """Mean over seeds, and how far it lies from random: the gap, and half of its 95% interval.

    The spread is that of the random arms, which every other arm is one more draw of if its rule does nothing (Student's t). One
    random arm says nothing of it. Both arguments: float [seeds], the loss of each arm of one size.
    """
    found: dict[str, Any] = {"mean": float(means.mean()), "gap": None, "half": None}
    if len(random):
        found["gap"] = float(means.mean() - random.mean())
    if len(random) > 1:
        error = random.std(ddof=1) * np.sqrt(1 / len(means) + 1 / len(random))
        found["half"] = float(scipy.stats.t.ppf(0.975, len(random) - 1) * error)
    return found


def summarise(done: Sequence[tuple[Arm, dict[str, Any]]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Each (share, method), random first: seeds, averages, statistics on every set."""
    groups: dict[tuple[float, bool, str], list[tuple[Arm, dict[str, Any]]]] = {}
    for arm, result in done:
        groups.setdefault((arm.keep, arm.name != "random", arm.name), []).append((arm, result))
    entries = []
    for (keep, compared, method), members in sorted(groups.items()):
        random = groups.get((keep, False, "random"), []) if compared else []
        entry: dict[str, Any] = {"arm": method, "keep": keep, "seeds": [arm.seed for arm, _ in members], "sets": {}}
        entry |= {number: members[0][1][number] for number in ("rows", "steps", "tokens")}
        for name in names:
            own, other = (np.asarray([result["losses"][name] for _, result in g]) for g in (members, random))
            entry["sets"][name] = statistics(own, other)
        entries.append(entry)
    return entries


def markdown(summary: Mapping[str, Any]) -> str:
    """The study as a page: a table for each set."""
    o = summary["options"]
    equal = f"{o['max_steps']} optimiser steps" if o["max_steps"] else f"{o['epochs']:g} epochs"
    text = (
        f"# Study: subsets against random subsets of the same size\n\n{o['model']}, LoRA rank {o['rank']}, learning rate "
        f"{o['learning_rate']:g}, {o['batch_size']} rows a step, {equal} an arm, a pool of {summary['pool']:,} rows. Loss: nats per "
        "response token on rows that no arm trained on. A rule differs from random where its gap is larger than the interval.\n"
    )
    for name, rows in summary["sets"].items():
        text += f"\n## {name} ({rows} rows)\n\n| keep | arm | seeds | rows | steps | loss | gap to random | 95% interval |\n"
        text += "|---:|---|---:|---:|---:|---:|---:|---:|\n"
        text += f"| | not trained | | | | {summary['untrained'][name]:.4f} | | |\n"
        for arm in summary["arms"]:
            mean, gap, half = (arm["sets"][name][key] for key in ("mean", "gap", "half"))
            told = f"{mean:.4f} | {'' if gap is None else f'{gap:+.4f}'} | {'' if half is None else f'± {half:.4f}'}"
            text += f"| {arm['keep']:.0%} | {arm['arm']} | {len(arm['seeds'])} | {arm['rows']} | {arm['steps']} | {told} |\n"
    return text


# ---- the study ----


def run_study(study: Study) -> None:
    """Everything, in order."""
    check(study)
    run, pool, sets = prepare(study)
    arms = make_arms(study, run, pool)
    found = find_base(study.model)
    options = {f.name: getattr(study, f.name) for f in dataclasses.fields(TrainConfig) if f.name != "report_to"}
    hashes = {name: [row.content_hash for row in rows] for name, rows in sets.items()}
    (Path(study.out) / "arms").mkdir(exist_ok=True)
    base = found.load(study)
    done = []
    for number, arm in enumerate(arms, start=1):
        path = Path(study.out) / "arms" / f"{arm.file}.json"
        decisive = [options, found.identity(), hashes, arm.seed, [pool[i].content_hash for i in arm.rows]]
        key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
        result = finished(path, key)
        if result is None:
            say(f"arm {number} of {len(arms)}, {arm.file}: {len(arm.rows)} rows")
            result = run_arm(study, arm, pool, sets, base)
            path.write_text(json.dumps({"key": key, **result}), encoding="utf-8")
        done.append((arm, result))
    summary = {
        "options": dataclasses.asdict(study),
        "pool": len(pool),
        "sets": {name: len(rows) for name, rows in sets.items()},
        "untrained": losses_of(base, sets),
        "arms": summarise(done, list(sets)),
    }
    (Path(study.out) / "study.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    (Path(study.out) / "study.md").write_text(markdown(summary), encoding="utf-8")
    print(markdown(summary))


def check(study: Study) -> None:
    """What can be known to be wrong before anything is loaded."""
    if not study.out or not study.data:
        raise InputError("--data or --out is missing: name the dataset to study and the folder of the study.")
    if world_size() > 1:
        raise InputError("the study runs in one process. Several GPUs: run it on each with other --arms and --out.")
    if study.packing:
        raise InputError("--packing: the study trains without it, so that arms differ in their rows alone.")
    if wrong := [keep for keep in study.keep if not 0 < keep < 1]:
        raise InputError(f"--keep {wrong[0]:g}: give shares between 0 and 1; the arm full is the whole pool.")
    for name, least in (("seeds", 1), ("eval_rows", 1), ("held_out_rows", 1), ("pool_rows", 0)):
        if getattr(study, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(study, name)}: at least {least}.")
    study.check()


def main(words: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if words is None else words
    return run_script("study", lambda: run_study(parse(Study, arguments, "Does the subset beat a random one?")))


if __name__ == "__main__":
    sys.exit(main())
