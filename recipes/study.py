"""Does the subset beat a random one? The same LoRA on each subset and on random subsets of the same size.

    python recipes/study.py --data alpaca.json --pool-rows 3000 --held-out-rows 500 --eval dolly=dolly.json --keep 0.1 0.3 \
        --seeds 3 --epochs 1 --budget-minutes 60 --out STUDY
    python recipes/study.py --run-folder RUN --held-out-rows 500 --out STUDY          (a run that is scored and embedded already)

Every arm is trained with the same options for the same number of epochs (or, with --equal steps, of optimiser steps), and
its loss per response token is measured on rows that nobody trained on. STUDY then has study.json, study.md and study.svg.
Finished arms are not trained again when the command is run again. One process; written to be copied and changed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import study_report
import training
from numpy.typing import NDArray
from study_rows import FULL, Arm, Material, Study, make_arms, prepare, prepare_run, rows_of

from instruct_prune.arrays import Float32
from instruct_prune.encode.item import Encoded
from instruct_prune.errors import InputError
from instruct_prune.models import names as models
from instruct_prune.score import Columns, aggregate
from instruct_prune.score.health import spearman
from instruct_prune.score.table import ScoreTable
from instruct_prune.storage import atomic, digest, write_json

# ---- cost ----


@dataclass(frozen=True)
class Rates:
    """Tokens a second, measured here."""

    training: float
    evaluation: float


def measure(study: Study, material: Material, base: Any, dtype: str) -> tuple[Rates, dict[str, list[float]]]:
    """Time one optimiser step and one evaluation, each after one to warm up; with the untrained model's losses on every set."""
    model = training.attach_lora(base, study)
    training.response_losses(model, list(material.rows.values())[:4])
    began = time.monotonic()  # a fresh adapter changes nothing: these are the base model's losses
    untrained = {name: training.response_losses(model, rows).tolist() for name, rows in material.evaluations.items()}
    evaluation = sum(tokens_of(rows) for rows in material.evaluations.values()) / (time.monotonic() - began)
    rows = list(material.rows.values())[: 2 * study.batch_size]
    sequences = [training.row_of(row) for row in rows]
    took: list[float] = []
    options = dataclasses.replace(study, max_steps=2, log_steps=1000)
    trainer = training.make_trainer(model, sequences, options, Path(study.out) / "scratch", dtype, save=False)
    trainer.add_callback(training.EveryStep([1, 2], lambda step: took.append(time.monotonic())))
    trainer.train()
    step_rows = trainer.train_dataset.order[study.batch_size : 2 * study.batch_size]
    step_tokens = sum(len(sequences[i].ids) for i in step_rows)
    model.unload()
    return Rates(step_tokens / (took[1] - took[0]), evaluation), untrained


def tokens_of(rows: Sequence[Encoded]) -> int:
    return sum(len(row.input_ids) for row in rows)


def seconds_for(study: Study, material: Material, arm: Arm, rates: Rates) -> float:
    """What an arm will take."""
    rows = [material.rows[int(i)] for i in arm.rows]
    epochs = training.step_count(len(rows), study) * study.batch_size / len(rows)
    seconds = epochs * tokens_of(rows) / rates.training
    seconds += sum(tokens_of(rows) for rows in material.evaluations.values()) / rates.evaluation
    if follows(study, arm):
        seconds += len(quarters(len(rows), study)) * tokens_of(followed(study, material)) / rates.evaluation
    return seconds


def plan(
    study: Study, arms: Sequence[Arm], seconds: Sequence[float], done: Sequence[bool], spent: float = 0.0
) -> list[bool]:
    """Which arms fit into what is left of the budget after ``spent`` seconds, taken in order; finished ones cost nothing.

    Raises:
        InputError: not even one method and random fit.
    """
    left = study.budget_minutes * 60 - spent if study.budget_minutes else float("inf")
    planned = []
    for arm_seconds, is_done in zip(seconds, done, strict=True):
        fits = is_done or arm_seconds <= left
        left -= arm_seconds if fits and not is_done else 0
        planned.append(fits)
    compared = {arm.name for arm, fits in zip(arms, planned, strict=True) if fits}
    if "random" not in compared or len(compared) < 2:
        need = sum(sorted(seconds)[:2]) / 60
        raise InputError(
            f"--budget-minutes {study.budget_minutes:g}: not even random and one other arm fit (the two cheapest take {need:.1f} "
            f"minutes, after {spent / 60:.1f} for scoring and measuring, which is kept). Give more time, fewer --held-out-rows or "
            "--eval-rows, or smaller --keep."
        )
    return planned


# ---- training-time difficulty ----


def follows(study: Study, arm: Arm) -> bool:
    return arm.name == FULL and arm.seed == 0 and study.difficulty_rows > 0


def followed(study: Study, material: Material) -> list[Encoded]:
    rows = list(material.rows.values())
    drawn = np.sort(np.random.default_rng([study.seed, 3]).permutation(len(rows))[: study.difficulty_rows])
    return [rows[i] for i in drawn]


def quarters(n_rows: int, study: Study) -> list[int]:
    """The optimiser steps that end each quarter of an epoch."""
    steps = training.step_count(n_rows, study)
    count = max(1, round(4 * steps * study.batch_size / n_rows))
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})


def saved_scores(table: ScoreTable) -> dict[str, Float32]:
    """{name: float32 [n]}: all that was known of the rows before training. "dlc" and "lc" are over all that was scored;
    "dlc to X" is over the ladder of densities that ends at X."""
    columns = {spec: table.losses[:, j] for j, spec in enumerate(table.subnets)}
    scores: dict[str, Float32] = {}
    for name in ("dlc", "lc", "loss", "ifd"):
        try:
            scores[name] = aggregate(Columns.of_losses(columns), name)
        except InputError:  # a subnet that it needs was not scored
            continue
    whole = [spec for spec in columns if spec.kind == "dense"]
    sparse = [spec for spec in columns if spec.kind == "magnitude" and spec.scope == "layerwise"]
    sparse.sort(key=lambda spec: -spec.value)
    for i, last in enumerate(sparse if whole else (), start=1):
        scores[f"dlc to {last.name}"] = aggregate(Columns.of_losses(columns, [*whole, *sparse[:i]]), "dlc")
    scores |= {f"loss_{spec.name}": column for spec, column in columns.items()}
    scores["response length"] = table.n_response.astype(np.float32)
    scores["prompt length"] = table.n_prompt.astype(np.float32)
    return scores


def difficulty_table(table: ScoreTable, losses: NDArray[np.floating[Any]], seed: int) -> dict[str, list[float]]:
    """Spearman rank correlation of every saved score with the loss averaged over training, and its 95% bootstrap interval.

    Args:
        table: the rows that were followed.
        losses: float [checkpoints, n], theirs.
        seed: of the drawing; the same rows are drawn for every score.

    Returns:
        {score: [rho, low, high]}.
    """
    difficulty = losses.mean(axis=0)
    drawn = np.random.default_rng(seed).integers(len(difficulty), size=(500, len(difficulty)))
    found = {}
    for name, values in saved_scores(table).items():
        rho = spearman(values, difficulty)
        if np.isfinite(values).all() and np.isfinite(rho):  # a constant score has no ranks
            again = [spearman(values[rows], difficulty[rows]) for rows in drawn]
            found[name] = [rho, *np.nanquantile(again, [0.025, 0.975]).tolist()]
    return found


# ---- one arm ----


def run_arm(study: Study, material: Material, arm: Arm, base: Any, dtype: str, tokenizer: Any) -> dict[str, Any]:
    """Train one arm and measure it; `base` is as it was afterwards."""
    rows = [training.row_of(material.rows[int(i)]) for i in arm.rows]
    options = dataclasses.replace(study, seed=arm.seed, log_steps=10**6)
    model = training.attach_lora(base, options)
    trainer = training.make_trainer(model, rows, options, Path(study.out) / "scratch", dtype, save=False)
    watched, seen = followed(study, material) if follows(study, arm) else [], []
    aside = 0.0

    def look(step: int) -> None:
        nonlocal aside
        began = time.monotonic()
        seen.append(training.response_losses(model, watched).tolist())
        aside += time.monotonic() - began

    if watched:
        trainer.add_callback(training.EveryStep(quarters(len(rows), study), look))
    began = time.monotonic()
    trainer.train()
    train_seconds = time.monotonic() - began - aside
    began = time.monotonic()
    losses = {name: training.response_losses(model, rows).tolist() for name, rows in material.evaluations.items()}
    facts: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "rows": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "select_seconds": arm.select_seconds,
        "train_seconds": train_seconds,
        "evaluate_seconds": time.monotonic() - began,
        "losses": losses,
    }
    if watched:
        facts |= {"followed_rows": [row.row_id for row in watched], "followed_losses": seen}
    if study.lm_eval:
        facts["lm_eval"] = harness(model, tokenizer, study)
    model.unload()
    return facts


def harness(model: Any, tokenizer: Any, study: Study) -> dict[str, float]:
    """Metrics of lm-evaluation-harness, by "task/metric".

    Raises:
        InputError: it is not installed, or has no such task.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError(
            "--lm-eval needs lm-evaluation-harness: pip install lm-eval. Or leave --lm-eval out."
        ) from None
    manager = TaskManager(include_path=study.lm_eval_folder, include_defaults=study.lm_eval_folder is None)
    wrapped = HFLM(pretrained=model.get_base_model(), tokenizer=tokenizer, batch_size=8)
    try:
        results = lm_eval.simple_evaluate(model=wrapped, tasks=list(study.lm_eval), task_manager=manager)["results"]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"--lm-eval {' '.join(study.lm_eval)}: {error}. Tasks are looked for in {study.lm_eval_folder}."
        ) from None
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if isinstance(value, int | float) and "stderr" not in metric
    }


# ---- the study ----


def run_study(study: Study) -> dict[str, Any]:
    """Everything, in order; returns what study.json says.

    Raises:
        InputError: something given is wrong.
    """
    check(study)
    began = time.monotonic()
    folder = prepare_run(study)
    material = prepare(study, folder)
    arms = make_arms(study, material)
    source = models.find_model(material.scored.model)
    dtype = models.pick_dtype(study.dtype, training.device_type())
    results = Path(study.out) / "arms"
    shared = {
        "options": {f.name: getattr(study, f.name) for f in dataclasses.fields(training.Training)},
        "model": source.identity(),
        "dtype": dtype,
        "evaluations": {
            name: digest([row.content_hash for row in rows]) for name, rows in material.evaluations.items()
        },
        "lm_eval": study.lm_eval,
    }
    keys = [arm_key(study, shared, arm) for arm in arms]
    found = [finished(results / f"{arm.file}.json", key) for arm, key in zip(arms, keys, strict=True)]
    base = training.load_base(source, dtype, study.quantize)
    before = results / "untrained.json"
    baseline = finished(before, digest(shared))
    if baseline is None or None in found:
        rates, untrained = measure(study, material, base, dtype)
        baseline = {"losses": untrained, "rates": dataclasses.asdict(rates)}
        write_json(before, {"key": digest(shared), **baseline})
    rates = Rates(**baseline["rates"])
    seconds = [seconds_for(study, material, arm, rates) for arm in arms]
    spent = time.monotonic() - began
    planned = plan(study, arms, seconds, [result is not None for result in found], spent)
    training.say(plan_text(study, material, arms, seconds, planned, found, rates))
    tokenizer = models.load_tokenizer(source)
    for i, (arm, key) in enumerate(zip(arms, keys, strict=True)):
        if planned[i] and found[i] is None:
            training.say(f"training {arm.file}: {len(arm.rows)} rows, about {seconds[i] / 60:.1f} minutes")
            result = run_arm(study, material, arm, base, dtype, tokenizer)
            write_json(results / f"{arm.file}.json", {"key": key, **result})
            found[i] = result
    done = [(arm, result) for arm, result in zip(arms, found, strict=True) if result is not None]
    summary = summarise(study, material, done, baseline["losses"])
    summary["left_out"] = [arm.file for arm, fits in zip(arms, planned, strict=True) if not fits]
    summary["rates"] = baseline["rates"]
    write_json(Path(study.out) / "study.json", summary)
    for name, text in (("study.md", study_report.markdown(summary)), ("study.svg", study_report.svg(summary))):
        with atomic(Path(study.out) / name, "w") as file:
            file.write(text)
    print(study_report.markdown(summary))
    return summary


def check(study: Study) -> None:
    """What can be known to be wrong before anything is loaded."""
    if not study.out:
        raise InputError("--out is missing: name the study's folder.")
    if training.world_size() > 1:
        raise InputError(
            "the study runs in one process. Several GPUs: run it on each with other --arms and the same --out."
        )
    if study.packing or study.quantize != "none":
        raise InputError(
            "the study trains without packing and without quantisation, so that arms differ in their rows alone."
        )
    if study.equal == "steps" and not study.max_steps:
        raise InputError("--equal steps needs --max-steps: the number that every arm takes.")
    if study.equal == "epochs" and study.max_steps:
        raise InputError("--max-steps gives every arm the same number of steps: say --equal steps.")
    for keep in study.keep:
        if not 0 < keep < 1:
            raise InputError(
                f"--keep {keep:g}: give shares of the pool between 0 and 1; the arm full is the whole pool."
            )
    for name, least in (("seeds", 1), ("eval_rows", 1), ("held_out_rows", 1), ("pool_rows", 0), ("budget_minutes", 0)):
        if not getattr(study, name) >= least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(study, name)}: at least {least}.")
    training.check_ranges(study)


def arm_key(study: Study, shared: dict[str, Any], arm: Arm) -> str:
    """Hash of all that decides an arm's result."""
    followed_rows = study.difficulty_rows if follows(study, arm) else 0
    return digest({**shared, "rows": arm.rows.tolist(), "seed": arm.seed, "followed": followed_rows})


def finished(path: Path, key: str) -> dict[str, Any] | None:
    """An arm's result, when it was made with these options and rows."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("key") == key else None


def plan_text(
    study: Study,
    material: Material,
    arms: Sequence[Arm],
    seconds: Sequence[float],
    planned: Sequence[bool],
    found: Sequence[Any],
    rates: Rates,
) -> str:
    todo = [s for s, fits, result in zip(seconds, planned, found, strict=True) if fits and result is None]
    out = [arm.file for arm, fits in zip(arms, planned, strict=True) if not fits]
    sets = ", ".join(f"{name} {len(rows)}" for name, rows in material.evaluations.items())
    return (
        f"pool {len(material.rows):,} rows; measured on {sets} rows"
        f"{f' ({material.dropped} held-out rows with a twin in the pool were taken out)' if material.dropped else ''}\n"
        f"{rates.training:,.0f} tokens/s training, {rates.evaluation:,.0f} measuring: {len(todo)} of {len(arms)} arms to train, "
        f"about {sum(todo) / 60:.0f} minutes" + (f"\nover the budget, left out: {', '.join(out)}" if out else "")
    )


def summarise(
    study: Study, material: Material, done: Sequence[tuple[Arm, dict[str, Any]]], untrained: dict[str, list[float]]
) -> dict[str, Any]:
    """study.json: arms with mean, spread and gap to random on every set; costs; what predicts difficulty."""
    groups: dict[tuple[float, str], list[tuple[Arm, dict[str, Any]]]] = {}
    for arm, result in done:
        groups.setdefault((arm.keep, arm.name), []).append((arm, result))
    entries = []
    for (keep, name), members in sorted(
        groups.items(), key=lambda item: (item[0][0], item[0][1] != "random", item[0][1])
    ):
        entry: dict[str, Any] = {"arm": name, "keep": keep, "seeds": [arm.seed for arm, _ in members]}
        entry |= {
            key: float(np.mean([r[key] for _, r in members]))
            for key in ("rows", "steps", "select_seconds", "train_seconds")
        }
        entry["sets"] = {}
        for name_of_set in material.evaluations:
            losses = np.asarray([result["losses"][name_of_set] for _, result in members])
            reference = groups.get((keep, "random")) if name != "random" else None
            other = np.asarray([result["losses"][name_of_set] for _, result in reference]) if reference else None
            entry["sets"][name_of_set] = study_report.statistics(losses, other, study.seed)
        if study.lm_eval:
            names = members[0][1]["lm_eval"]
            entry["lm_eval"] = {m: study_report.spread([r["lm_eval"][m] for _, r in members]) for m in names}
        entries.append(entry)
    stages = material.folder.manifest["stages"]
    summary: dict[str, Any] = {
        "equal": study.equal,
        "options": dataclasses.asdict(study),
        "model": material.scored.model,
        "pool": len(material.rows),
        "sets": {name: len(rows) for name, rows in material.evaluations.items()},
        "untrained": {name: float(np.mean(values)) for name, values in untrained.items()},
        "arms": entries,
        "seconds": {name: stages[name].get("seconds") for name in ("score", "embed") if name in stages},
    }
    for _, result in done:
        if "followed_losses" in result and len(result["followed_losses"]):
            ids, losses = np.asarray(result["followed_rows"], dtype=np.int64), np.asarray(result["followed_losses"])
            summary["difficulty"] = {
                "rows": len(ids),
                "checkpoints": len(losses),
                "rho": difficulty_table(rows_of(material.table, ids), losses, study.seed),
            }
    return summary


def main(words: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if words is None else words
    about = "Train the same LoRA on each subset and on random subsets of the same size, and compare."
    return training.run_script("study", lambda: run_study(training.parse(Study, arguments, about)))


if __name__ == "__main__":
    sys.exit(main())
