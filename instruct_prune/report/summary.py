"""What a command tells at its end: what was done, where it lies, what to do next. Only what the files say."""

from __future__ import annotations

import math
from typing import Any

from instruct_prune.progress import clock
from instruct_prune.report.facts import epoch_seconds, seconds_by_stage
from instruct_prune.report.tables import read_records
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import STAGES, ScoreFacts, SelectFacts
from instruct_prune.terminal import safe, tell

EPOCHS = 3  # as Stanford Alpaca was trained


def print_summary(folder: RunFolder) -> None:
    """The end of ``run``."""
    print_health(folder)
    print_selection(folder)
    seconds = seconds_by_stage(read_records(folder))
    tell("time:     " + ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items()))
    tell(tuning_line(folder, sum(seconds.values())))
    tell(f"result:   {folder / 'pruned.jsonl'}")
    if (folder / "report.html").exists():
        tell(f"report:   {folder / 'report.html'} (open it in a browser; it needs no network)")
    tell(
        f"          {folder / 'selection.parquet'} says why each row was kept or dropped; {folder / 'scores.parquet'} has every loss"
    )
    tell(f"next:     instruct-prune select --out {folder.path} --keep 0.5   (another budget; nothing is scored again)")


def print_score_summary(folder: RunFolder) -> None:
    """The end of ``score``."""
    facts = folder.facts(ScoreFacts)
    print_health(folder)
    tell(accounting_line(folder))
    tell(f"scores:   {folder / 'scores.parquet'} ({facts.seconds:.1f} s, {facts.device})")
    tell(f"next:     instruct-prune embed --out {folder.path}")


def print_selection(folder: RunFolder) -> None:
    """The accounting line and how the selection was made."""
    facts, config = folder.facts(SelectFacts), folder.require(SelectFacts).config
    told = ", ".join(
        f"{key} {_short(value)}" for key, value in facts.params.items() if not isinstance(value, list | dict)
    )
    tell(accounting_line(folder))
    if facts.duplicates:
        tell(
            f"          {facts.duplicates:,} near-duplicates were dropped; selection.parquet names the row that stands for each"
        )
    if facts.contaminated:
        tell(
            f"          {facts.contaminated:,} rows were dropped because they repeat a row of --decontaminate; selection.parquet names it"
        )
    if facts.unstable is not None:
        tell(
            f"          {facts.unstable:,} rows would flip between kept and dropped with another mask seed (column `unstable`)"
        )
    shares = " of equal shares" if config.get("balanced") else ""
    strata = "1 stratum" if facts.strata == 1 else f"{facts.strata} strata"
    tell(f"selected: {told}; {strata}{shares}, seed {config['seed']}")


def print_health(folder: RunFolder) -> None:
    """The table of subnets, and what is wrong with them."""
    health = folder.facts(ScoreFacts).health
    tell(f"{'subnet':<24}{'mean loss':>10}{'rho dense':>11}{'same order':>12}")
    for row in health.subnets:
        mark = "  collapsed" if row.collapsed else ""
        tell(f"{row.name:<24}{row.mean_loss:>10.3f}{row.rho_dense:>11.3f}{row.same_order:>12.1%}{mark}")
    if math.isfinite(health.unigram_loss):  # pictures have no such guess
        tell(f"{'(unigram guess)':<24}{health.unigram_loss:>10.3f}")
    for line in health.warnings:
        tell(f"WARNING: {line}")
    earned = folder.facts(ScoreFacts).earned
    if earned is not None:
        tell(f"auto:     {earned.told()}")


def tuning_line(folder: RunFolder, selecting: float) -> str:
    """What pruning buys: seconds spent selecting, beside an estimate of fine-tuning on all rows and on the kept ones.

    A training step costs about three forward passes (forward, and twice that backward) at the rate that scoring measured.
    """
    score, tokens = folder.facts(ScoreFacts), folder.facts(SelectFacts).tokens
    full, kept = epoch_seconds(score, tokens.scored), epoch_seconds(score, tokens.kept)
    if full is None or kept is None:
        return "          (no estimate of training time: nothing was scored in this run)"
    return (
        f"          selecting {clock(selecting)}; {EPOCHS} epochs of fine-tuning here would take about "
        f"{clock(EPOCHS * full)} on all rows, {clock(EPOCHS * kept)} on the kept ones"
    )


def accounting_line(folder: RunFolder) -> str:
    """``read = scored + rejected, scored = kept + dropped``, as counted from the files."""
    scored = folder.facts(ScoreFacts)
    line = f"rows:     {scored.read:,} read = {scored.scored:,} scored + {scored.rejected:,} rejected"
    line += f" + {scored.set_aside:,} set aside" if scored.aside is not None else ""
    record = folder.find(SelectFacts)
    if record is not None and record.facts is not None:
        chosen = record.facts
        both = f"{chosen.scored:,} scored" + (f" + {scored.set_aside:,} set aside" if scored.aside is not None else "")
        line += f"; {both} = {chosen.kept:,} kept + {chosen.dropped:,} dropped"
    if scored.rejected:
        line += f"\n          rejected rows are listed with their reasons in {safe(str(folder / 'rejected.jsonl'))}"
    return line


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def state_lines(folder: RunFolder) -> list[tuple[str, str]]:
    """What each stage of a run left, in a few words; for notebooks."""
    told: list[tuple[str, str]] = []
    for kind in STAGES:
        record = folder.record(kind)
        if record is None:
            continue
        state = "unfinished" if record.facts is None else "stale" if folder.stale(record) else "finished"
        told.append((kind.stage, state))
    if folder.find(ScoreFacts) is not None:
        told.append(("rows", accounting_line(folder).partition("\n")[0].removeprefix("rows:").strip()))
    return told
