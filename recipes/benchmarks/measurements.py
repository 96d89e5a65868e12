"""What do measurements cost beside the loss: pooled hidden states and gradient sketches, which the same pass reads (for gradients it
goes back too), the loss with an adapter (drop) and the loss behind a row of a target (shown), which take a pass of their own?

    python recipes/benchmarks/measurements.py --data alpaca.json
    python recipes/benchmarks/measurements.py --data alpaca.json --rows 96 --repeats 5 --lines loss "loss + mean"

Passes take turns (all lines once, again from the start), each in a process of its own, so that peak memory can be told apart;
medians are printed. What is timed is the engine's loop: batches, forward passes, probes, and writing the parts. The ratio is
that of seconds, and, for machines that have other work too, of processor seconds. Peak memory is the resident set on a CPU, the
memory that torch held on a GPU. What many rows begin with is computed once for all of them, but not where gradients are read:
the ratio "a token" is that for as many tokens. The adapter has rank 1, and is not trained here; the target is the first 32 rows.
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
from typing import TYPE_CHECKING

import numpy as np

from instruct_prune import EncodeConfig, Row, ScoreConfig, load_data
from instruct_prune.arrays import Float32

if TYPE_CHECKING:
    from instruct_prune.encode.shown import Shown
    from instruct_prune.encode.store import TokenStore
    from instruct_prune.models.causal_lm import CausalLM


@dataclass(frozen=True)
class Line:
    """One pass that is timed.

    Attributes:
        probes: what it reads beside the loss, as in --probes.
        adapter: whether an adapter is switched on.
        shown: rows of the target that stand before each row.
    """

    probes: tuple[str, ...] = ()
    adapter: bool = False
    shown: int = 0


LINES: dict[str, Line] = {
    "loss": Line(),
    "loss + mean": Line(("mean",)),
    "loss + mean, weighted, last": Line(("mean", "weighted", "last")),
    "loss + gradient sketch, 4,096": Line(("gradient",)),
    "loss + gradient sketch, 8,192": Line(("gradient@8192",)),
    "drop: the loss with an adapter": Line(adapter=True),
    "shown: the loss behind one row": Line(shown=1),
}
TARGET = 32


@dataclass(frozen=True)
class Took:
    """One pass: seconds, processor seconds, peak memory in bytes, padded tokens that it computed, float32 [n] losses."""

    seconds: float
    processor: float
    peak: int
    tokens: int
    losses: Float32


def one_pass(folder: Path, config: ScoreConfig, line: Line, device_name: str | None) -> Took:
    """Time one pass over the rows whose items lie in ``folder``."""
    import torch

    from instruct_prune.measure.engine import measure_parts, run_batch
    from instruct_prune.measure.measurement import Measurement
    from instruct_prune.measure.parts import PartStore
    from instruct_prune.measure.probes import Loss, parse_probe
    from instruct_prune.measure.stored import merge_columns
    from instruct_prune.measure.subnet import DENSE, SubnetSpec
    from instruct_prune.models.causal_lm import CausalLM
    from instruct_prune.run.measure import batch_cost, plan_work

    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = CausalLM(config, EncodeConfig(), None)
    model.load(model.dtype(config.dtype, device), device)
    items = model.open_items(folder)
    spec = SubnetSpec("adapter", folder=str(make_adapter(model, folder)), label="own") if line.adapter else DENSE
    if line.shown:
        items = behind(items, model, line.shown)
    loss = Measurement(spec, Loss())
    measurements = [loss, *(Measurement(spec, parse_probe(text)) for text in line.probes)]
    with tempfile.TemporaryDirectory() as parts:
        work = plan_work(
            model, items, measurements, batch_cost(model, config, device.type), PartStore(Path(parts), "benchmark")
        )
        (planned,) = work.passes
        planned.start(model)
        run_batch(model, planned.a_pass, items, planned.plan.chunks[-1][-1])  # warm-up
        todo = work.missing()
        began, processor = time.perf_counter(), time.process_time()
        measure_parts(model, work, todo)
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        columns, _ = merge_columns(work, len(items))
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak
    return Took(seconds, processor, peak, work.cost(todo), columns[loss])


def make_adapter(model: CausalLM, items: Path) -> Path:
    """A fresh adapter of rank 1 on all linear layers, beside the rows; which numbers are in it costs nothing."""
    from instruct_prune.train import TrainConfig, attach_lora

    folder = items.parent / "adapter"
    wrapped = attach_lora(model.module, TrainConfig(rank=1, alpha=1, dropout=0.0))
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    wrapped.unload()
    return folder


def behind(items: TokenStore, model: CausalLM, k: int) -> Shown:
    """The rows, each behind ``k`` of the first `TARGET` that can be scored."""
    from instruct_prune.encode.shown import Shown

    target = [items[int(i)] for i in np.flatnonzero(items.scorable)[:TARGET]]
    nearest = (np.arange(len(items))[:, None] + np.arange(k)) % len(target)
    return Shown.of(items, target, nearest, model.bos_token_id, model.context)


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
    parser.add_argument("--rows", type=int, default=200, help="the first so many")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", help="the embedded default when not given")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--device", help="cuda or cpu; the GPU where there is one")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--probes", nargs="+", default=[], help="one more pass, with these: mean@15 last@20 ...")
    parser.add_argument(
        "--lines", nargs="+", choices=LINES, default=list(LINES), help="which lines; loss is always the first"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    config = ScoreConfig(model=options.model, dtype=options.dtype, batch_tokens=options.batch_tokens)
    lines = {name: LINES[name] for name in dict.fromkeys(["loss", *options.lines])}
    if options.probes:
        lines["loss + " + ", ".join(options.probes)] = Line(tuple(options.probes))
    found: dict[str, list[Took]] = {name: [] for name in lines}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "items"
        rows, tokens = write_items(folder, options, config)
        for _ in range(options.repeats):
            for name, line in lines.items():
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    found[name].append(process.submit(one_pass, folder, config, line, options.device).result())
    print(f"{rows:,} rows, {tokens:,} tokens, {options.dtype}, {options.repeats} repeats\n")
    print(
        f"{'what one pass reads':<34}{'seconds':>9}{'ratio':>8}{'CPU s':>9}{'ratio':>8}{'tokens':>9}{'a token':>9}{'peak MB':>9}"
        f"{'largest difference of a loss':>30}"
    )
    base = found["loss"]
    for name, runs in found.items():
        seconds, processor, peak = (median(runs, of) for of in ("seconds", "processor", "peak"))
        ratios = seconds / median(base, "seconds"), processor / median(base, "processor")
        plain = not (lines[name].adapter or lines[name].shown)
        difference = f"{float(np.nanmax(np.abs(runs[0].losses - base[0].losses))):.1e}" if plain else "-"
        each = ratios[0] * base[0].tokens / runs[0].tokens
        numbers = f"{seconds:>9.2f}{ratios[0]:>8.3f}{processor:>9.2f}{ratios[1]:>8.3f}{runs[0].tokens:>9,}{each:>9.3f}{peak / 1e6:>9,.0f}"
        print(f"{name:<34}{numbers}{difference:>30}")


def median(runs: Sequence[Took], of: str) -> float:
    return float(statistics.median(getattr(run, of) for run in runs))


if __name__ == "__main__":
    main()
