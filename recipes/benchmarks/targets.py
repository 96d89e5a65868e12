"""How long selection towards a target takes, and how much memory: a million rows, 500 queries, 4,096 numbers.

    python recipes/benchmarks/targets.py
    python recipes/benchmarks/targets.py --rows 100000 --alike 0.9

Vectors are made up, in half precision, and memory-mapped from a temporary file of 8 GB, as a run's are. With --alike, queries
share a direction (their cosine), so that all of them want the same rows. The second line is decontamination: made-up texts of
100 words, looked through for the 13-grams of 1,000 others. Each line is measured in a process of its own; memory is the peak
resident set.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from instruct_prune.select import select_rows
from instruct_prune.select.contamination import References
from instruct_prune.select.data import Budget, Pool
from instruct_prune.select.target import Cosine, Target

BLOCK, WORDS = 10_000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--keep", type=int, default=5000)
    parser.add_argument("--alike", type=float, default=0.0, help="cosine between queries")
    parser.add_argument("--folder", help="where the temporary file goes")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, numpy {np.__version__}, Python {sys.version.split()[0]}")
    print(f"{'rows':>10}  {'step':<36}{'wall s':>8}{'CPU s':>8}{'µs/row':>9}{'peak GB':>9}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "vectors.npy"
        make_vectors(path, options.rows, options.width)
        step = f"{options.keep:,} rows for {options.queries} queries"
        report(options.rows, step, in_own_process(targeted, path, options.queries, options.keep, options.alike))
    report(options.rows, "decontaminate", in_own_process(decontaminate, options.rows))


def targeted(path: Path, queries: int, keep: int, alike: float) -> tuple[float, float, float]:
    vectors = np.load(path, mmap_mode="r")
    n, width = vectors.shape
    rng = np.random.default_rng(1)
    asked = np.sqrt(1 - alike) * rng.standard_normal((queries, width)) + np.sqrt(alike) * rng.standard_normal(width)
    task = (np.arange(queries) >= queries // 2).astype(np.int32)
    target = Target(("a", "b"), task, np.arange(queries), Cosine(asked.astype(np.float32), vectors), np.arange(n))
    score, length = rng.random(n, dtype=np.float32), rng.integers(1, 400, n, dtype=np.int32)
    pool = Pool(np.arange(n), score, length, np.zeros(n, dtype=np.int32), target=target)
    wall, cpu = time.perf_counter(), time.process_time()
    assert len(select_rows(pool, Budget(rows=keep), method="targeted").kept) == keep
    return time.perf_counter() - wall, time.process_time() - cpu, peak()


def decontaminate(n: int) -> tuple[float, float, float]:
    def texts(count: int, seed: int) -> Iterator[str]:
        words = np.array([f"word{i}" for i in range(5000)])
        rng = np.random.default_rng(seed)
        return (" ".join(words[rng.integers(0, 5000, WORDS)]) for _ in range(count))

    references = References(texts(1000, 0))
    pool = list(texts(min(n, BLOCK), 1))  # making texts up takes longer than looking through them
    wall, cpu = time.perf_counter(), time.process_time()
    references.repeated_by(pool[i % len(pool)] for i in range(n))
    return time.perf_counter() - wall, time.process_time() - cpu, peak()


def make_vectors(path: Path, n: int, width: int) -> None:
    """Random bits with exponents below that of 2: numbers of many sizes, and quick to make."""
    rng = np.random.default_rng(0)
    header = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, width))
    start = header.offset
    del header
    with open(path, "r+b") as file:
        file.seek(start)
        for first in range(0, n, BLOCK):
            bits = np.frombuffer(rng.bytes(2 * min(BLOCK, n - first) * width), dtype=np.uint16)
            file.write((bits & np.uint16(0xBFFF)).tobytes())


def peak() -> float:
    """GB. ru_maxrss is in bytes on macOS and in kilobytes elsewhere."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def in_own_process(work: Callable[..., tuple[float, float, float]], *arguments: object) -> tuple[float, float, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def report(n: int, step: str, took: tuple[float, float, float]) -> None:
    wall, cpu, gigabytes = took
    print(f"{n:>10,}  {step:<36}{wall:>8.2f}{cpu:>8.2f}{1e6 * cpu / n:>9.2f}{gigabytes:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
