"""How fast is scoring, beside the paper's loop, a plain Hugging Face loop and lm-evaluation-harness?

    python recipes/benchmarks/scoring.py --data alpaca.json --rows 120 --repeats 3

The same rows, token ids, model, number of threads and, but for ours-bf16, precision for all; methods take turns (A B C D, A B C D, ...), each
in a process of its own, so that peak memory can be told apart; medians are printed. One pass of the dense model is timed;
the last lines time a whole ladder of subnets. lm-evaluation-harness is left out where it is not installed (`pip install lm-eval`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scoring_loops import harness, harness_auto, hf_loop, paper_loop
from scoring_model import Bench, matrix_rate, operations, precision, synchronise

DTYPES = ("float32", "bfloat16")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="dataset file")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default=None, help="cuda or cpu; the GPU where there is one")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument("--subnets", default="dlc", help="ladder of the last lines")
    parser.add_argument(
        "--shape", default=None, help="JSON of a LlamaConfig: a model of this shape with random weights, e.g. 8B"
    )
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--store", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- the methods: (options, rows) -> losses [n], tokens computed ----


def ours(options: argparse.Namespace, bench: Bench, probes: Sequence[str] = ()) -> tuple[np.ndarray, int]:
    """The engine of this project, plan included."""
    from instruct_prune.measure.engine import run_batch

    losses = np.zeros(len(bench.rows), dtype=np.float32)
    plan, a_pass = bench.plan(options), bench.dense_pass(probes)
    bench.scorer.start_pass(plan, a_pass.depths, a_pass.pooled)
    for chunk in plan.chunks:
        for batch in chunk:
            losses[batch.rows] = run_batch(bench.scorer, a_pass, bench.rows, batch).cpu()[:, 0]
    return losses, plan.n_tokens + plan.n_padding


def ours_probes(options: argparse.Namespace, bench: Bench) -> tuple[np.ndarray, int]:
    """The same pass, which also reads three pooled states of each row."""
    return ours(options, bench, ("mean", "weighted", "last"))


def ours_bf16(options: argparse.Namespace, bench: Bench) -> tuple[np.ndarray, int]:
    """The same in bfloat16, whatever --dtype says: what `--dtype auto` takes where the processor multiplies it."""
    return ours(options, bench)


METHODS: dict[str, Callable[[argparse.Namespace, Any], tuple[np.ndarray, int]]] = {
    "paper": paper_loop,
    "hf-8": hf_loop,
    "harness-8": harness,
    "harness-auto": harness_auto,
    "ours": ours,
    "ours-probes": ours_probes,
    "ours-bf16": ours_bf16,
}


def measure(options: argparse.Namespace) -> None:
    """One method in this process: time, losses, memory, the matrix rate, as JSON on the last line."""
    import torch

    bench = Bench(options)
    method = ladder if options.one == "ladder" else METHODS[options.one]
    if options.one != "ladder":
        warm = argparse.Namespace(**vars(options))
        bench.rows, rows = bench.rows[:8], bench.rows
        if "harness" not in options.one:
            (hf_loop if options.one.startswith("ours") else method)(warm, bench)
        bench.rows = rows
    synchronise(bench.device)
    began = time.perf_counter()
    losses, computed = method(options, bench)
    synchronise(bench.device)
    seconds = time.perf_counter() - began
    gpu = bench.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {
        "seconds": seconds,
        "computed": computed,
        "peak": peak,
        "losses": losses.tolist(),
        "rate": matrix_rate(bench),
    }
    facts |= {"switching": bench.switching, "operations": operations(bench, computed)}
    print(json.dumps(facts))


def ladder(options: argparse.Namespace, bench: Bench) -> tuple[np.ndarray, int]:
    """All subnets, with masks and restoring."""
    from instruct_prune.measure.ladder import parse_subnets
    from instruct_prune.measure.measurement import measurements_of, plan_passes
    from instruct_prune.measure.subnets import SubnetSwitch

    passes = plan_passes(measurements_of(parse_subnets([options.subnets]), []))
    plan = bench.plan(options)
    losses, switching = np.zeros(0), 0.0
    with SubnetSwitch(bench.model) as switch:
        for a_pass in passes:
            began = time.perf_counter()
            switch.to(a_pass.weights)
            synchronise(bench.device)
            switching += time.perf_counter() - began
            losses, _ = ours(options, bench)
        began = time.perf_counter()
    synchronise(bench.device)
    bench.switching = switching + time.perf_counter() - began
    return losses, len(passes) * (plan.n_tokens + plan.n_padding)


# ---- the table ----


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Tokenize once; write the store and the harness's (context, continuation) pairs."""
    from instruct_prune.encode.store import write_store
    from instruct_prune.encode.tokenize import Encoder
    from instruct_prune.models.names import context_length, find_model, load_tokenizer
    from instruct_prune.rows import open_data
    from instruct_prune.rows.row import Row

    model = find_model(options.model)
    tokenizer = load_tokenizer(model)
    source = open_data([options.data])
    encoder = Encoder(tokenizer, "auto", max_length=context_length(model), data_format=source.format)
    chosen, pairs = [], []
    for sample in source:
        if not isinstance(sample, Row):
            continue
        row = encoder.encode([sample])[0]
        if not row.status.scored:
            continue
        segments = encoder.render(sample)
        chosen.append((row, sample.source, sample.line))
        pairs.append(["".join(t for t, r in segments if not r), "".join(t for t, r in segments if r)])
        if len(chosen) == options.rows:
            break
    write_store(folder, chosen)
    (folder / "pairs.json").write_text(json.dumps(pairs))


def one(method: str, folder: Path) -> dict[str, Any] | str:
    words = [sys.executable, __file__, *sys.argv[1:], "--one", method, "--store", str(folder)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed"
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def hardware(device: str | None) -> str:
    import torch

    if torch.cuda.is_available() and device != "cpu":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")),
            name,
        )
    return f"{name}, {torch.get_num_threads()} threads"


def spearman(a: list[float], b: list[float]) -> float:
    x, y = (np.argsort(np.argsort(v)) for v in (a, b))
    return float(np.corrcoef(x, y)[0, 1])


def main() -> None:
    options = arguments()
    if options.one:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options, folder)
        results: dict[str, list[dict[str, Any]]] = {}
        for repeat in range(options.repeats):
            for method in [*options.methods, "ladder"]:
                found = one(method, folder)
                if isinstance(found, str):
                    if not repeat:
                        print(f"{method}: left out ({found})")
                    continue
                results.setdefault(method, []).append(found)
                print(f"  run {repeat + 1}, {method}: {found['seconds']:.2f} s", file=sys.stderr, flush=True)
    show(options, results)


def show(options: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    n = len(results["ours"][0]["losses"])
    reference = results.get("paper", results["ours"])[0]["losses"]
    seconds = {name: statistics.median(r["seconds"] for r in runs) for name, runs in results.items()}
    needed = results["paper"][0]["computed"] if "paper" in results else results["ours"][0]["computed"]
    rates: dict[str, float] = {}
    for name, runs in results.items():
        rates[precision(options, name)] = max(*(r["rate"] for r in runs), rates.get(precision(options, name), 0.0))
    rate = rates[options.dtype]
    print(
        f"\n{hardware(options.device)}; {options.model} in {options.dtype}; {n} rows, {needed} tokens, {options.repeats} repeats"
    )
    told = ", ".join(f"{value / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, value in rates.items())
    print(f"matrix products at the model's shapes: {told}")
    floor = min(r["operations"] for r in results["ours"]) / rate
    print(f"floor of one pass (operations of the tokens that must be computed / that rate): {floor:.2f} s\n")
    heads = ("method", "s a pass", "rows/s", "tokens/s", "ours is", "computed", "peak MB", "max diff", "rho", "of rate")
    print("".join(f"{h:>13}" for h in heads))
    for name, runs in results.items():
        if name == "ladder":
            continue
        s = seconds[name]
        difference = float(np.abs(np.asarray(runs[0]["losses"]) - reference).max())
        cells = [name, f"{s:.2f}", f"{n / s:.2f}", f"{needed / s:,.0f}", f"{s / seconds['ours']:.2f}x"]
        cells += [
            f"{runs[0]['computed'] / needed:.2f}",
            f"{max(r['peak'] for r in runs) / 1e6:,.0f}",
            f"{difference:.1e}",
        ]
        cells += [
            f"{spearman(runs[0]['losses'], reference):.4f}",
            f"{runs[0]['operations'] / s / rates[precision(options, name)]:.0%}",
        ]
        print("".join(f"{c:>13}" for c in cells))
    if "ladder" in results:
        s = seconds["ladder"]
        switching = statistics.median(r["switching"] for r in results["ladder"])
        print(
            f"\nall subnets of {options.subnets}: {s:.2f} s, of which switching {switching:.2f} s ({switching / s:.1%})"
        )


if __name__ == "__main__":
    main()
