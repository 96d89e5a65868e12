"""What selecting costs beside one epoch of fine-tuning the same model on the same rows, on this machine, in one run.

    python recipes/benchmarks/cost.py --data alpaca_9k.json --rows 400
    python recipes/benchmarks/cost.py --data alpaca_9k.json --rows 400 --subnets auto --no-training

Selecting is the command `instruct-prune run` as a user gives it, its start included. The epoch is `recipes/lora.py` over all
rows, by the adapter's own clock of training: without its start, without held-out rows. Both have the same model, precision and
threads. CPU seconds are printed beside those of the clock: where other programs run too, their ratio is the steadier one.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from instruct_prune.report.facts import seconds_by_stage
from instruct_prune.report.tables import read_records
from instruct_prune.rows.table import RowTable
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import ScoreFacts

LORA = Path(__file__).parents[1] / "lora.py"
TARGETS = {"dlc": 0.5}
TARGET = 0.35
"""Epochs that selecting may cost: of the ladder of that name, and of all others."""


@dataclass(frozen=True)
class Cost:
    """Seconds of the clock and of all cores."""

    clock: float
    cpu: float


def timed(words: list[str]) -> Cost:
    """Run a program to its end.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.monotonic() - began, cpu)


def selecting(options: argparse.Namespace, out: Path) -> Cost:
    """The whole of `instruct-prune run`; its stages are told."""
    words = ["--data", options.data, "--limit", str(options.rows), "--keep", "0.3", "--out", str(out)]
    for name in ("model", "dtype", "subnets", "embedder"):
        words += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
    cost = timed([sys.executable, "-m", "instruct_prune", "run", *words])
    records = read_records(RunFolder(out))
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in seconds_by_stage(records).items())
    facts = records.score
    print(f"selecting      {cost.clock:8.1f} s  {cost.cpu:8.1f} CPU s   ({stages}, the rest is starting and writing)")
    print(
        f"  scoring      {facts.tokens:,} {facts.unit} in passes {', '.join(dict.fromkeys(facts.passes))}; "
        f"{facts.switching_seconds:.1f} s switching, {facts.scoring_seconds:.1f} s in passes"
    )
    if facts.earned is not None:
        print(f"  auto         {facts.earned.told()}")
    return cost


def training(options: argparse.Namespace, run: Path, work: Path) -> Cost:
    """One epoch of LoRA over all rows, under the template and in the precision that scored them.

    CPU seconds are those of the whole program less those of a run over one step: what starting costs is no training.
    """
    everything = work / "everything.jsonl"
    table = RowTable.open(run / "rows")
    with open(everything, "wb") as file:
        for _, raw in table.raw(table.row_id):
            file.write(raw.rstrip(b"\n") + b"\n" if isinstance(raw, bytes) else json.dumps(raw).encode() + b"\n")
    facts = RunFolder(run).facts(ScoreFacts)
    words = [sys.executable, str(LORA), "--run-folder", str(run), "--data", str(everything), "--eval-share", "0"]
    words += [
        "--dtype",
        facts.dtype,
        "--epochs",
        "1",
        "--micro-batch",
        str(options.micro_batch),
        "--save-steps",
        "100000",
    ]
    start = timed([*words, "--max-steps", "1", "--out", str(work / "start")])
    whole = timed([*words, "--out", str(work / "epoch")])
    steps = [json.loads((work / name / "training.json").read_text()) for name in ("start", "epoch")]
    more = steps[1]["steps"] - steps[0]["steps"]
    cpu = (whole.cpu - start.cpu) * steps[1]["steps"] / more if more else whole.cpu
    cost = Cost(steps[1]["seconds"], cpu)
    print(f"one epoch      {cost.clock:8.1f} s  {cost.cpu:8.1f} CPU s   ({steps[1]['steps']} steps in {facts.dtype})")
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--model", default="", help="the embedded default when not given")
    parser.add_argument("--dtype", default="")
    parser.add_argument("--subnets", default="", help="the command's default when not given")
    parser.add_argument("--embedder", default="")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--no-training", action="store_true", help="selecting alone, to compare ladders")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        chosen = selecting(options, work / "run")
        if options.no_training:
            return
        trained = training(options, work / "run", work)
    target = TARGETS.get(options.subnets, TARGET)
    print(
        f"selecting is {chosen.clock / trained.clock:.2f} epochs by the clock, {chosen.cpu / trained.cpu:.2f} by CPU time "
        f"(target {target})"
    )


if __name__ == "__main__":
    main()
