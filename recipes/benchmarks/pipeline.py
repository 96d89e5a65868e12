"""What does everything but forward passes cost on many rows: seconds, processor time a row and memory, stage by stage?

    python recipes/benchmarks/pipeline.py --rows 100000
    python recipes/benchmarks/pipeline.py --rows 1000000 --folder /big/disk

Rows are made up (Alpaca form, about 100 tokens, 5% of them near-copies of others); the model (`pipeline_model.py`) looks its losses
and its vectors of 256 numbers up, in place of a forward pass. Everything else is what `instruct-prune run` does: reading, tokenizing, planning,
masks, batches, parts, merging, vectors, clusters, near-duplicates, the selection, `pruned.jsonl` and the report. Each stage is
a process of its own. *peak* is the resident set, mapped files included, which the system takes back when it needs the memory;
*own* is without them. CPU seconds are those of all threads, the start of the process (about 5 s) left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memory import own_memory
from pipeline_model import NAME

from instruct_prune import DataConfig, EmbedConfig, EncodeConfig, ExportConfig, ScoreConfig, SelectConfig

STAGES = ("read", "encode", "score", "embed", "select", "export", "report")
COPIES = 20
"""One row of so many is a near-copy of one before it."""
TEXT = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were "
    "all her she there would their we him been has when who will no more if out so up said what its about than into them can only "
    "other time new some could these two may first then do any like my now over such our man me even most made after also well did "
    "many before must years back through much where your down should because long each just state people those too mr how good "
    "write explain describe list summary sentence paragraph history energy water computer science language country system market "
    "value number function return example answer question reason cause effect model data table color animal planet music story "
    "business company customer product health exercise food recipe travel city language grammar verb noun story poem character "
    "equation triangle square root probability temperature pressure volume speed distance area population percent average"
)
WORDS = sorted(set(TEXT.split()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", help="where rows and run go, and stay; a temporary one when not given")
    parser.add_argument("--processes", type=int, default=1, help="that encode and score, by torchrun")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_rows(path: Path, n: int) -> None:
    """Write n made-up rows."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in made_up(n))


def made_up(n: int) -> Iterator[dict[str, str]]:
    rng = random.Random(0)
    kept: list[dict[str, str]] = []
    for i in range(n):
        if i % COPIES == COPIES - 1:
            row = {**kept[rng.randrange(len(kept))]}
            row["output"] += " " + rng.choice(WORDS) + "."
        else:
            topic = rng.sample(WORDS, 12)  # rows of a topic share words, so that there are clusters to find
            said = [
                rng.choices(topic if rng.random() < 0.7 else WORDS, k=k)
                for k in (rng.randint(6, 20), rng.randint(8, 110))
            ]
            instruction, output = (" ".join(words).capitalize() + "." for words in said)
            row = {"instruction": instruction, "input": "", "output": output, "source": f"part {i % 7}"}
            if len(kept) < 10_000:
                kept.append(row)
        yield row


# ---- one stage, in a process of its own ----


def stage_of(name: str, folder: Path) -> Callable[[], Any]:
    """The work of a stage, everything that it needs imported."""
    from instruct_prune.measure.ranks import Ranks
    from instruct_prune.run.embed import embed
    from instruct_prune.run.encode import encode, make_model
    from instruct_prune.run.export import export
    from instruct_prune.run.folder import RunFolder
    from instruct_prune.run.pipeline import report
    from instruct_prune.run.rows import read_rows, rows_of
    from instruct_prune.run.score import Scoring
    from instruct_prune.run.select import select

    run = RunFolder(folder / "run")
    data, encoding = DataConfig((str(folder / "rows.jsonl"),)), EncodeConfig()
    scoring, embedding = ScoreConfig(model=NAME, subnets=("dlc",)), EmbedConfig(embedder="model")
    choice = SelectConfig(keep=0.3, dedup=0.95)

    def encoded() -> None:
        rows = rows_of(run)
        model = make_model(scoring, encoding, rows.facts.model_kind, rows.facts.format)
        encode(run, rows, model, scoring, encoding, False, Ranks())

    return {
        "read": lambda: read_rows(run, data),
        "encode": encoded,
        "score": Scoring(run, data, encoding, scoring, choice, embedding).run,
        "embed": lambda: embed(run, embedding),
        "select": lambda: select(run, choice),
        "export": lambda: export(run, ExportConfig()),
        "report": lambda: report(run),
    }[name]


def measure(name: str, folder: Path) -> None:
    """Run a stage; seconds and memory as JSON on the last line."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    work = stage_of(name, folder)
    began, processor = time.perf_counter(), time.process_time()
    with own_memory() as own:
        work()
        took = {"seconds": time.perf_counter() - began, "processor": time.process_time() - processor}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    print(json.dumps({**took, "own": own.bytes, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}))


def run_stage(name: str, folder: Path, processes: int) -> dict[str, float]:
    words = [sys.executable]
    if name in ("encode", "score") and processes > 1:
        words += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    words += [str(Path(__file__)), "--stage", name, "--folder", str(folder)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    found = [json.loads(line) for line in lines if line.startswith('{"seconds"')]
    whole = {key: max(one[key] for one in found) for key in found[0]}
    return whole | {"processor": sum(one["processor"] for one in found)}


def main() -> None:
    options = arguments()
    if options.stage:
        measure(options.stage, Path(options.folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "run", ignore_errors=True)
        write_rows(folder / "rows.jsonl", options.rows)
        size = (folder / "rows.jsonl").stat().st_size
        print(f"{options.rows:,} rows, {size / 1e6:,.0f} MB of JSONL, {os.cpu_count()} cores\n")
        print(f"{'stage':<10}{'seconds':>10}{'CPU s':>10}{'CPU us/row':>12}{'peak MB':>10}{'own MB':>10}")
        total = {"seconds": 0.0, "processor": 0.0}
        for name in STAGES:
            found = run_stage(name, folder, options.processes)
            show(name, found, options.rows)
            total = {key: total[key] + found[key] for key in total}
        show("all", total, options.rows)


def show(name: str, found: dict[str, float], rows: int) -> None:
    memory = "".join(f"{found[key] / 1e6:>10,.0f}" for key in ("peak", "own") if key in found)
    processor = found["processor"]
    print(f"{name:<10}{found['seconds']:>10.1f}{processor:>10.1f}{1e6 * processor / rows:>12.0f}{memory}", flush=True)


if __name__ == "__main__":
    main()
