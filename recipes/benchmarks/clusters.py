"""Do clusters of embeddings agree with labels that people gave: the file that a row is from, or a column of the data?

    python recipes/benchmarks/clusters.py --data alpaca.json dolly.json gsm8k.json --rows 300 --embedder all-minilm-l6-v2 model
    python recipes/benchmarks/clusters.py --data dolly.json --rows 1000 --column category --embedder all-minilm-l6-v2 model

Rows are clustered as ``instruct-prune select`` clusters them, with several seeds; means and standard deviations over the
seeds are printed. Purity is the share of rows whose label is the most frequent one of their cluster; NMI and AMI are the
mutual information of clusters and labels, normalised, and adjusted so that chance gives 0; "neighbour" is the share of rows
whose nearest other row has the same label, which needs no clusters.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from embedders import vectors_of
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from instruct_prune import EncodeConfig, Row, ScoreConfig, load_data
from instruct_prune.arrays import Float32
from instruct_prune.geometry import nearest_neighbors
from instruct_prune.select.clusters import cluster
from instruct_prune.select.data import Embeddings

Labels = NDArray[np.str_]


def drawn(path: str, n: int, seed: int) -> list[Row]:
    """At most n random rows of a file."""
    rows = [row for row in load_data([path]) if isinstance(row, Row)]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:n]
    return [rows[i] for i in np.sort(chosen)]


def agreement(vectors: Float32, labels: Labels, k: int, seed: int) -> tuple[float, float, float]:
    """Purity, NMI and AMI of k clusters."""
    found = cluster(Embeddings(np.arange(len(vectors)), vectors, "benchmark"), k, seed).labels
    table = contingency_matrix(labels, found)
    return (
        float(table.max(axis=0).sum() / table.sum()),
        float(normalized_mutual_info_score(labels, found)),
        float(adjusted_mutual_info_score(labels, found)),
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--rows", type=int, default=300, help="random rows of each file")
    parser.add_argument("--column", help="take labels from this column of the data; a row's file when not given")
    parser.add_argument("--clusters", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=5, help="of the clusters")
    parser.add_argument(
        "--embedder", nargs="+", default=["all-minilm-l6-v2", "model"], help="as in duplicates.py beside this file"
    )
    parser.add_argument("--raw", action="store_true", help="the model's states also without taking off their mean")
    parser.add_argument("--model", help="whose states: the scoring model")
    parser.add_argument("--max-length", type=int, help="tokens of a row that the model sees")
    parser.add_argument("--seed", type=int, default=0, help="of the rows")
    parser.add_argument("--keep-files", type=Path, help="folder in which vectors stay, so that work can go on")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    rows = [row for path in options.data for row in drawn(path, options.rows, options.seed)]
    rows = [dataclasses.replace(row, row_id=i) for i, row in enumerate(rows)]
    labels = np.asarray([str(row.columns[options.column]) if options.column else row.source for row in rows])
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep_files or Path(temporary)
        config, encode = ScoreConfig(model=options.model), EncodeConfig(max_length=options.max_length)
        data_format = load_data(options.data).format
        found = vectors_of(options.embedder, rows, config, encode, data_format, folder, options.raw)
    # A row that has nothing to score has no state of the model: it counts for no embedder.
    there = np.all([vectors.any(axis=1) for vectors in found.values()], axis=0)
    found, labels = {name: vectors[there] for name, vectors in found.items()}, labels[there]
    told = f"{len(labels):,} rows, {len(rows) - len(labels)} left out, {len(set(labels.tolist()))} labels"
    print(f"{told}, {options.clusters} clusters, {options.seeds} seeds\n")
    print(f"{'embedder':<24}{'purity':>16}{'NMI':>16}{'AMI':>16}{'neighbour':>12}")
    for name, vectors in found.items():
        every = np.asarray([agreement(vectors, labels, options.clusters, seed) for seed in range(options.seeds)])
        cells = "".join(f"{m:>9.3f} ±{s:.3f}" for m, s in zip(every.mean(axis=0), every.std(axis=0), strict=True))
        nearest = nearest_neighbors(vectors, 1)[0][:, 0]
        print(f"{name:<24}{cells}{(labels[nearest] == labels).mean():>12.1%}", flush=True)


if __name__ == "__main__":
    main()
