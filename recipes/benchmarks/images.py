"""What scores of pictures cost side by side: DLC under several ladders, k-NN confidence, and a training that notes scores.

    python recipes/benchmarks/images.py --data TREE --per-class 100 --epochs 10

Each row is the program that a user runs (`instruct-prune score`, `recipes/image_scores.py`), one after the other on the same pictures, in CPU seconds
of all its processes, which what else the machine does hardly changes. What Python needs to start is measured on two pictures a class and
taken off. The training makes all training-based scores at once: EL2N, GraNd, forgetting, area under the margin, entropy, ...
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cost import timed

from instruct_prune.train import load_pictures

TRAINING = Path(__file__).parents[1] / "image_scores.py"
LADDERS = {
    "dense loss": ["dense"],
    "DLC, --subnets auto": ["auto"],
    "DLC, --subnets dlc (densities 1.0, 0.8, 0.7)": ["dlc"],
    "DLC, densities 1.0, 0.9, 0.8, 0.7, 0.6, 0.5": ["magnitude-global:1.0,0.9,0.8,0.7,0.6,0.5"],
    "knn_lc": ["knn_lc"],
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


def main(words: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data", required=True, help="a tree of class folders, or a listing")
    flags.add_argument("--per-class", type=int, default=100)
    flags.add_argument("--model", default="efficientnet-lite0")
    flags.add_argument("--epochs", type=int, default=10)
    given = flags.parse_args(words)
    score = [sys.executable, "-m", "instruct_prune", "score", "--model", given.model, "--subnets"]
    train = [sys.executable, str(TRAINING), "--model", given.model, "--epochs", str(given.epochs)]
    programs = {name: [*score, *subnets] for name, subnets in LADDERS.items()}
    name_of_training = f"a training of {given.epochs} epochs: all training-based scores"
    programs[name_of_training] = train
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        few, all_ = (listing(given.data, n, Path(folder) / f"{n}.csv") for n in (2, given.per_class))
        for name, program in programs.items():
            both = [
                timed([*program, "--data", str(data), "--out", f"{folder}/{len(seconds)}-{data.stem}"])
                for data in (few, all_)
            ]
            seconds[name] = both[1].cpu - both[0].cpu
            print(
                f"{name}: {both[1].cpu:.1f} CPU seconds, {both[0].cpu:.1f} of them to start",
                file=sys.stderr,
                flush=True,
            )
    print("| score | CPU seconds | training over it |\n|---|---:|---:|")
    for name, spent in seconds.items():
        print(f"| {name} | {spent:.1f} | {seconds[name_of_training] / max(spent, 1e-9):.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
