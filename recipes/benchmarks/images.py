"""What scores of pictures cost side by side: DLC under several ladders, k-NN confidence, and a training that notes scores.

    python recipes/benchmarks/images.py --data TREE --per-class 100 --epochs 10

Each is a whole stage as a user runs it (`Run.score`, `recipes/image_scores.py`), decoding included, one after the other in this process on the same
pictures: CPU seconds, which what else the machine does hardly changes. The training makes all training-based scores at once: EL2N,
GraNd, forgetting, area under the margin, entropy, ...
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from instruct_prune import Run, ScoreConfig
from instruct_prune.train import load_pictures

sys.path.insert(0, str(Path(__file__).parents[1]))
import image_scores

LADDERS = {
    "dense loss": "dense",
    "DLC, --subnets auto": "auto",
    "DLC, --subnets dlc (densities 1.0, 0.8, 0.7)": "dlc",
    "DLC, densities 1.0, 0.9, 0.8, 0.7, 0.6, 0.5": "magnitude-global:1.0,0.9,0.8,0.7,0.6,0.5",
    "knn_lc": "knn_lc",
}


def listing(data: str, per_class: int, path: Path) -> Path:
    """A CSV of the first pictures of each class."""
    pictures = load_pictures(data, per_class=per_class)
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        table.writerows(
            (Path(p).resolve(), pictures.names[y]) for p, y in zip(pictures.paths, pictures.labels, strict=True)
        )
    return path


def cpu_seconds(action: Callable[[], object]) -> float:
    """Of all threads of this process, while the action runs."""
    began = time.process_time()
    action()
    return time.process_time() - began


def main(words: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data", required=True, help="a tree of class folders, or a listing")
    flags.add_argument("--per-class", type=int, default=100)
    flags.add_argument("--model", default="efficientnet-lite0")
    flags.add_argument("--epochs", type=int, default=10)
    given = flags.parse_args(words)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        few, pictures = (listing(given.data, n, Path(folder) / f"{n}.csv") for n in (1, given.per_class))

        def score(data: Path, subnets: str, out: str) -> Callable[[], object]:
            config = ScoreConfig(given.model, subnets=(subnets,))
            return lambda: Run(f"{folder}/{out}").score(str(data), config)

        def train(data: Path, epochs: int, out: str) -> Callable[[], object]:
            options = ["--model", given.model, "--epochs", str(epochs), "--out", f"{folder}/{out}"]
            return lambda: image_scores.main(["--data", str(data), *options])

        score(few, "dense", "first")()  # imports, and caches of the libraries
        train(few, 1, "first training")()
        for name, subnets in LADDERS.items():
            seconds[name] = cpu_seconds(score(pictures, subnets, name))
        training = f"a training of {given.epochs} epochs: all training-based scores"
        seconds[training] = cpu_seconds(train(pictures, given.epochs, "training"))
    print("| score | CPU seconds | training over it |\n|---|---:|---:|")
    for name, spent in seconds.items():
        print(f"| {name} | {spent:.1f} | {seconds[training] / max(spent, 1e-9):.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
