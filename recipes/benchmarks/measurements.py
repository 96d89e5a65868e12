"""What do pooled hidden states cost beside the loss, when one pass of the dense model reads both?

    python recipes/benchmarks/measurements.py --data alpaca.json --rows 96 --repeats 5

Passes take turns (loss, loss + mean, loss + three states, again from the start), each in a process of its own, so that peak
memory can be told apart; medians are printed. What is timed is the engine's loop: batches, forward passes, probes, and
writing the parts. Peak memory is the resident set on a CPU, the memory that torch held on a GPU.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from instruct_prune import EncodeConfig, Row, ScoreConfig, load_data
from instruct_prune.arrays import Float32

PASSES = {"loss": (), "loss + mean": ("mean",), "loss + mean, weighted, last": ("mean", "weighted", "last")}


@dataclass(frozen=True)
class Took:
    """One pass: seconds, peak memory in bytes, float32 [n] losses."""

    seconds: float
    peak: int
    losses: Float32


def one_pass(folder: Path, config: ScoreConfig, probes: Sequence[str], device_name: str | None) -> Took:
    """Time one dense pass over the rows whose items lie in ``folder``."""
    import torch

    from instruct_prune.measure.engine import measure_parts, run_batch
    from instruct_prune.measure.measurement import measurements_of
    from instruct_prune.measure.parts import PartStore
    from instruct_prune.measure.probes import parse_probe
    from instruct_prune.measure.stored import merge_columns
    from instruct_prune.measure.subnet import DENSE
    from instruct_prune.models.causal_lm import CausalLM
    from instruct_prune.run.measure import batch_cost, plan_work

    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = CausalLM(config, EncodeConfig(), None)
    model.load(model.dtype(config.dtype, device), device)
    items = model.open_items(folder)
    measurements = measurements_of([DENSE], [parse_probe(text) for text in probes])
    with tempfile.TemporaryDirectory() as parts:
        work = plan_work(
            model, items, measurements, batch_cost(model, config, device.type), PartStore(Path(parts), "benchmark")
        )
        (a_pass,), (plan,) = work.passes, work.plans
        model.start_pass(plan, a_pass.depths, a_pass.pooled)
        run_batch(model, a_pass, items, plan.chunks[-1][-1])  # warm-up
        todo = work.missing()
        began = time.perf_counter()
        measure_parts(model, work, todo)
        seconds = time.perf_counter() - began
        columns, _ = merge_columns(work, len(items))
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Took(seconds, torch.cuda.max_memory_allocated() if device.type == "cuda" else peak, columns[measurements[0]])


def write_items(folder: Path, options: argparse.Namespace, config: ScoreConfig) -> tuple[int, int]:
    """Encode the first rows of the data; how many rows and tokens can be scored."""
    from instruct_prune.models.causal_lm import CausalLM

    source = load_data([options.data], limit=options.rows)
    model = CausalLM(config, EncodeConfig(), source.format)
    model.write_items(folder, (row for row in source if isinstance(row, Row)), lambda done: None, strict=False)
    items = model.open_items(folder)
    return int(items.scorable.sum()), int(items.lengths.sum())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=96, help="the first so many")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", help="the embedded default when not given")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--device", help="cuda or cpu; the GPU where there is one")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--probes", nargs="+", default=[], help="one more pass, with these: mean@15 last@20 ...")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    config = ScoreConfig(model=options.model, dtype=options.dtype, batch_tokens=options.batch_tokens)
    passes: dict[str, tuple[str, ...]] = dict(PASSES)
    if options.probes:
        passes["loss + " + ", ".join(options.probes)] = tuple(options.probes)
    found: dict[str, list[Took]] = {name: [] for name in passes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "items"
        rows, tokens = write_items(folder, options, config)
        for _ in range(options.repeats):
            for name, probes in passes.items():
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    found[name].append(process.submit(one_pass, folder, config, probes, options.device).result())
    print(f"{rows:,} rows, {tokens:,} tokens, {options.dtype}, {options.repeats} repeats\n")
    print(f"{'what one pass reads':<40}{'seconds':>10}{'ratio':>8}{'peak MB':>10}{'largest difference of a loss':>31}")
    alone = found["loss"]
    for name, runs in found.items():
        seconds, base = (statistics.median(run.seconds for run in each) for each in (runs, alone))
        peak = statistics.median(run.peak for run in runs)
        difference = float(np.nanmax(np.abs(runs[0].losses - alone[0].losses)))
        print(f"{name:<40}{seconds:>10.2f}{seconds / base:>8.3f}{peak / 1e6:>10,.0f}{difference:>31.1e}")


if __name__ == "__main__":
    main()
