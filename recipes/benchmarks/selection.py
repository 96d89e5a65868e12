"""How long selection takes, and how much memory: FlexRand on 10M rows; clusters, FlexRand and near-duplicates on 100k and 1M.

    python recipes/benchmarks/selection.py
    python recipes/benchmarks/selection.py --rows 10000000 --numbers 256 --flexrand-rows

Embeddings are made up (384 numbers a row, 200 loose groups, 5% of the rows near-copies of others) and memory-mapped from a
temporary file, as a run's are. Each line is measured in a process of its own. *peak* is the resident set, which counts the pages
of the mapped file that happen to be in memory (1.5 GB for a million rows); *own* is without them.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from memory import own_memory

from instruct_prune.select import select_rows
from instruct_prune.select.clusters import cluster
from instruct_prune.select.data import Budget, Embeddings, Pool
from instruct_prune.select.duplicates import find_duplicates, keep_priority

GROUPS, COPIES, CLUSTERS, KEEP = 200, 0.05, 100, 0.3
T = TypeVar("T")
Seconds = dict[str, tuple[float, float]]
"""{step: (wall seconds, CPU seconds)}"""
Memory = tuple[float, float]
"""Peak and own, in GB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="rows with embeddings")
    parser.add_argument("--flexrand-rows", type=int, nargs="*", default=[1_000_000, 10_000_000], help="rows without")
    parser.add_argument("--numbers", type=int, default=384, help="of an embedding")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, numpy {np.__version__}, Python {sys.version.split()[0]}")
    print(f"{'rows':>10}  {'step':<36}{'wall s':>8}{'CPU s':>8}{'µs/row':>9}{'peak GB':>9}{'own GB':>9}")
    for n in options.flexrand_rows:
        report(n, *in_own_process(flexrand_alone, n))
    for n in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "embeddings.npy"
            make_embeddings(path, n, options.numbers)
            report(n, *in_own_process(with_embeddings, n, path))


def flexrand_alone(n: int) -> Seconds:
    seconds: Seconds = {}
    pool = make_pool(n, np.random.default_rng(0).integers(0, CLUSTERS, n).astype(np.int32))
    kept = timed(seconds, "FlexRand", lambda: select_rows(pool, Budget(rows=round(KEEP * n))))
    assert kept.selected.sum() == round(KEEP * n)
    return seconds


def with_embeddings(n: int, path: Path) -> Seconds:
    seconds: Seconds = {}
    vectors = np.load(path, mmap_mode="r")
    cluster(Embeddings(np.arange(64), vectors[:64], "made up"), 2)  # so that no import is counted
    clusters = timed(
        seconds, f"{CLUSTERS} clusters", lambda: cluster(Embeddings(np.arange(n), vectors, "made up"), CLUSTERS)
    )
    pool = make_pool(n, clusters.labels)
    twins = timed(
        seconds,
        "near-duplicates at 0.95",
        lambda: find_duplicates(pool.row_id, keep_priority(pool), vectors=vectors, threshold=0.95),
    )
    found = (twins >= 0).mean() / COPIES
    kept = timed(seconds, "FlexRand", lambda: select_rows(pool, Budget(rows=round(KEEP * n)), duplicate_of=twins))
    assert kept.selected.sum() == round(KEEP * n)
    total = tuple(sum(times) for times in zip(*seconds.values(), strict=True))
    seconds[f"all three ({found:.1%} of copies found)"] = (total[0], total[1])
    return seconds


def make_pool(n: int, strata: np.ndarray) -> Pool:
    rng = np.random.default_rng(1)
    score, length = rng.gamma(4, 0.5, n).astype(np.float32), rng.integers(1, 400, n, dtype=np.int32)
    return Pool(np.arange(n), score, length, strata, tuple(f"cluster {i}" for i in range(int(strata.max()) + 1)))


def make_embeddings(path: Path, n: int, width: int) -> None:
    rng = np.random.default_rng(2)
    centers = rng.standard_normal((GROUPS, width), dtype=np.float32)
    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, width))
    for start in range(0, n, 50_000):
        rows = min(50_000, n - start)
        block = centers[rng.integers(0, GROUPS, rows)] + rng.standard_normal((rows, width), dtype=np.float32)
        copies = round(COPIES * rows)
        block[-copies:] = block[:copies] + 0.25 * rng.standard_normal((copies, width), dtype=np.float32)
        vectors[start : start + rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    vectors.flush()


def timed(seconds: Seconds, step: str, work: Callable[[], T]) -> T:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds[step] = (time.perf_counter() - wall, time.process_time() - cpu)
    return result


def measured(work: Callable[..., Seconds], *arguments: object) -> tuple[Seconds, Memory]:
    with own_memory() as own:
        seconds = work(*arguments)
    return seconds, (peak(), own.bytes / 1e9)


def peak() -> float:
    """GB. ru_maxrss is in bytes on macOS and in kilobytes elsewhere."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def in_own_process(work: Callable[..., Seconds], *arguments: object) -> tuple[Seconds, Memory]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, work, *arguments).result()


def report(n: int, seconds: Seconds, gigabytes: Memory) -> None:
    for step, (wall, cpu) in seconds.items():
        print(
            f"{n:>10,}  {step:<36}{wall:>8.2f}{cpu:>8.2f}{1e6 * cpu / n:>9.2f}{gigabytes[0]:>9.2f}{gigabytes[1]:>9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
