"""The paper's image experiment on one command: does a pruned subset beat a random one of the same size?

    python recipes/image_study.py --train TREE --test TREE --test-split test --out STUDY

Scores the training pictures (DLC and knn_lc), selects with every method, keep rate and seed inside classes, fits a linear
probe on cached features of each subset, and compares the accuracy with that of a random subset of the same seed. STUDY then
has study.json, study.md and study.svg. Scores and features are kept, so a second run with other rates takes seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_finetune import Classifier, features_of, labels_of, pictures_of, principal, probe_accuracy, train_full

from instruct_prune.arrays import Float32, Int64
from instruct_prune.config import DataConfig, ScoreConfig
from instruct_prune.encode.item import LabelledImage
from instruct_prune.encode.pictures import ImageIndex
from instruct_prune.errors import InputError
from instruct_prune.models.image_encoder import ImageModel
from instruct_prune.models.image_names import find_image_model, load_image_model, size_for
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Row
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.images import score_images
from instruct_prune.score.health import spearman
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import build_pool, select_rows
from instruct_prune.select.data import Budget
from instruct_prune.storage import atomic, write_json

METHODS = ("random", "flexrand", "easiest", "hardest", "easy_diverse", "herding", "k_center", "knn_lc + flexrand")
KEEP = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}  # Student's t, two-sided
PROBE_EPOCHS = 20
TURNS = 4  # of scoring and training, for their times


def listed(data: str, split: str | None, per_class: int | None, target: Path) -> str:
    """A listing of the first ``per_class`` pictures of each class; the data as they are, where all are wanted."""
    if per_class is None and split is None:
        return data
    source = open_data([data], format="image-classification", split=split)
    counts: dict[str, int] = {}
    with atomic(target, "w") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for row in source:
            if isinstance(row, Row) and counts.get(row.columns["label"], 0) < (per_class or sys.maxsize):
                path, label = row.columns["path"], row.columns["label"]
                counts[label] = counts.get(label, 0) + 1
                writer.writerow([str(Path(path).resolve()), label])
    return str(target)


def scored(out: Path, data: str, subnets: Sequence[str], given: Any) -> tuple[RunFolder, ScoreTable]:
    folder = RunFolder(out)
    config = ScoreConfig(model=given.model, subnets=tuple(subnets), image_size=given.image_size)
    table = score_images(folder, DataConfig((data,)), config)
    assert table is not None
    return folder, table


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95% confidence interval."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(T95.get(len(values) - 1, 1.96) * spread)


def probe_training_losses(x: Float32, y: Int64, n_classes: int, seed: int = 0) -> Float32:
    """float32 [n]: each picture's loss averaged over a short training of a softmax layer (SGD, PROBE_EPOCHS epochs)."""
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    layer = torch.nn.Linear(x.shape[1], n_classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    total = torch.zeros(len(x))
    for _ in range(PROBE_EPOCHS):
        for rows in torch.split(torch.randperm(len(x), generator=generator), 64):
            loss = torch.nn.functional.cross_entropy(layer(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            total += torch.nn.functional.cross_entropy(layer(inputs), targets, reduction="none")
    return (total / PROBE_EPOCHS).numpy()


def accuracies(
    tables: dict[str, ScoreTable],
    folder: RunFolder,
    labels: list[str],
    test: tuple[Float32, Int64],
    names: list[str],
    given: Any,
) -> dict[str, dict[float, list[float]]]:
    """{method: {keep: accuracy of each seed}}; classes are the strata of every method, random too."""
    embeddings = folder.read_embeddings()
    mean, components = principal(embeddings.vectors, given.probe_dims)
    x, test_x = ((vectors - mean) @ components for vectors in (embeddings.vectors, test[0]))
    number = {name: i for i, name in enumerate(names)}
    found: dict[str, dict[float, list[float]]] = {}
    for method in given.methods:
        source, rule = ("knn", "flexrand") if method.startswith("knn_lc") else ("dlc", method)
        table = tables[source]
        pool = build_pool(table, embeddings=embeddings, values=labels)
        y = np.asarray([number[pool.strata_names[s]] for s in pool.strata], dtype=np.int64)
        at = np.searchsorted(embeddings.row_id, pool.row_id)
        for keep in given.keep:
            budget = Budget(rows=max(len(names), round(keep * len(pool))))
            for seed in range(given.seeds):
                selected = select_rows(pool, budget, method=rule, seed=seed).selected
                accuracy = probe_accuracy(x[at[selected]], y[selected], test_x, test[1], len(names))
                found.setdefault(method, {}).setdefault(keep, []).append(accuracy)
        print(f"{method}: done", file=sys.stderr, flush=True)
    return found


def spread(pictures: Sequence[LabelledImage], n: int) -> list[int]:
    """At most ``n`` positions, evenly spread: of a sorted tree, the same share of every class."""
    return [int(i) for i in np.linspace(0, len(pictures) - 1, min(n, len(pictures))).round()]


def seconds_a_picture(
    image_model: ImageModel, pictures: Sequence[LabelledImage], n_classes: int
) -> tuple[float, float]:
    """CPU seconds that one picture costs in a scoring pass and in an epoch of full fine-tuning, in turns on the same pictures.

    CPU seconds of this process, not those of the clock: what else the machine does shall not count.
    """
    classifier = Classifier(image_model, n_classes)
    scoring, training = [], []
    for _ in range(TURNS):
        began = time.process_time()
        features_of(image_model, pictures)
        turned = time.process_time()
        train_full(classifier, pictures, 1)
        scoring.append((turned - began) / len(pictures))
        training.append((time.process_time() - turned) / len(pictures))
    return float(np.median(scoring[1:])), float(np.median(training[1:]))  # the first turn warms caches


def table_of(found: dict[str, dict[float, list[float]]]) -> str:
    """Accuracy gap over random in points, mean over seeds and 95% interval of the paired gaps."""
    keeps = list(next(iter(found.values())))
    lines = ["| method | " + " | ".join(f"{k:.0%}" for k in keeps) + " |", "|---" * (len(keeps) + 1) + "|"]
    random = found["random"]
    lines.append("| random (accuracy, %) | " + " | ".join(f"{100 * np.mean(random[k]):.2f}" for k in keeps) + " |")
    for method, values in found.items():
        if method == "random":
            continue
        cells = []
        for k in keeps:
            gap, half = t_interval([100 * (a - b) for a, b in zip(values[k], random[k], strict=True)])
            cells.append(f"{gap:+.2f} ± {half:.2f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_of(found: dict[str, dict[float, list[float]]]) -> str:
    """An SVG of the gaps over random."""
    random = found["random"]
    keeps = list(random)
    gaps = {m: [100 * (np.mean(v[k]) - np.mean(random[k])) for k in keeps] for m, v in found.items()}
    low, high = min(map(min, gaps.values())) - 0.5, max(map(max, gaps.values())) + 0.5
    colours = ("#666666", "#d62728", "#1f77b4", "#9467bd", "#2ca02c", "#8c564b", "#e377c2", "#ff7f0e")

    def place(i: int, gap: float) -> str:
        return f"{60 + 480 * i / max(1, len(keeps) - 1):.1f},{20 + 280 * (high - gap) / (high - low):.1f}"

    lines = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 350" font-family="sans-serif" font-size="12">']
    lines.append(
        '<rect width="720" height="350" fill="white"/><text x="60" y="14">accuracy gap over random (points) by share kept</text>'
    )
    for i, keep in enumerate(keeps):
        lines.append(
            f'<text x="{60 + 480 * i / max(1, len(keeps) - 1):.0f}" y="325" text-anchor="middle">{keep:.0%}</text>'
        )
    for gap in np.linspace(low, high, 6):
        lines.append(
            f'<text x="52" y="{float(place(0, gap).split(",")[1]) + 4:.0f}" text-anchor="end">{gap:+.1f}</text>'
        )
    for j, (method, values) in enumerate(gaps.items()):
        colour = colours[j % len(colours)]
        points = " ".join(place(i, float(gap)) for i, gap in enumerate(values))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="560" y="{40 + 20 * j}" fill="{colour}">{method}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--train-split")
    parser.add_argument("--test-split")
    parser.add_argument("--train-per-class", type=int)
    parser.add_argument("--test-per-class", type=int)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--subnets", nargs="+", default=["dlc"])
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEP))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--probe-dims", type=int, default=256, help="principal components that the probe sees")
    parser.add_argument(
        "--image-size", type=int, help="of the embedded backbone; fitted to the pictures when not given"
    )
    parser.add_argument("--train-rows", type=int, default=1000, help="pictures that the backbone is really trained on")
    parser.add_argument("--train-epochs", type=int, default=3, help="of that training")
    parser.add_argument(
        "--epochs", type=int, default=10, help="of the training that training-based scores need, for its time"
    )
    parser.add_argument("--out", required=True)
    given = parser.parse_args(words)
    if "random" not in given.methods:
        given.methods.insert(0, "random")
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    train = listed(given.train, given.train_split, given.train_per_class, out / "train.csv")
    test = listed(given.test, given.test_split, given.test_per_class, out / "test.csv")
    folder, dlc = scored(out / "dlc", train, given.subnets, given)
    tables = {"dlc": dlc}
    if any(m.startswith("knn_lc") for m in given.methods):
        tables["knn"] = scored(out / "knn", train, ["knn_lc"], given)[1]
    index = ImageIndex.open(folder / "images")
    names = list(index.classes)
    test_pictures, test_names = pictures_of(test)
    source = find_image_model(given.model)
    size = size_for(source, index.typical_short_side, given.image_size)
    cached = out / "test_features.npy"
    if not cached.exists():
        image_model = load_image_model(source, "float32", size=size)
        with atomic(cached) as file:
            np.save(file, features_of(image_model, test_pictures), allow_pickle=False)
    test_y = np.asarray([names.index(test_names[i]) for i in labels_of(test_pictures)], dtype=np.int64)
    (labels,) = index.text_columns("label")
    test_set = (np.load(cached, allow_pickle=False), test_y)
    found = accuracies(tables, folder, labels, test_set, names, given)

    scores = dlc.score[dlc.scored]
    vectors = np.array(folder.read_embeddings().vectors)
    rows = np.flatnonzero(index.scorable)
    trained = probe_training_losses(vectors, index.labels[rows].astype(np.int64), len(names))
    dense = dlc.losses[dlc.scored][:, [s.kind for s in dlc.subnets].index("dense")]
    pictures = [index[int(i)] for i in rows]
    chosen = spread(pictures, given.train_rows)
    cached = out / "training_losses.npy"
    if not cached.exists():
        classifier = Classifier(load_image_model(source, "float32", size=size), len(names))
        with atomic(cached) as file:
            np.save(
                file,
                train_full(classifier, [pictures[i] for i in chosen], given.train_epochs, seed=0),
                allow_pickle=False,
            )
    met = np.load(cached, allow_pickle=False).mean(axis=0)
    few = [pictures[i] for i in spread(pictures, 64)]
    a_pass, an_epoch = seconds_a_picture(load_image_model(source, "float32", size=size), few, len(names))
    passes = len({s.name for s in dlc.subnets} | {"dense"})
    stage = folder.stage("score")
    summary = {
        "training pictures": int(dlc.scored.sum()),
        "test pictures": len(test_y),
        "model": given.model,
        "image size": size,
        "subnets": [s.name for s in dlc.subnets],
        "accuracy": {m: {str(k): v for k, v in values.items()} for m, values in found.items()},
        "rho(dlc, mean loss over probe training)": spearman(scores, trained),
        "rho(dense loss, mean loss over probe training)": spearman(dense, trained),
        "pictures that the backbone was trained on": len(chosen),
        "epochs of that training": len(np.load(cached, allow_pickle=False)),
        "rho(dlc, mean loss over backbone training)": spearman(scores[chosen], met),
        "rho(dense loss, mean loss over backbone training)": spearman(dense[chosen], met),
        "seconds of the clock to score": stage["seconds"],
        "CPU seconds of a scoring pass, all pictures": a_pass * len(pictures),
        f"CPU seconds of DLC, {passes} passes": a_pass * len(pictures) * passes,
        f"CPU seconds of full fine-tuning, {given.epochs} epochs": an_epoch * len(pictures) * given.epochs,
        "training over scoring": an_epoch * given.epochs / (a_pass * passes),
    }
    if "knn" in tables:
        knn = tables["knn"]
        summary["rho(knn_lc, mean loss over probe training)"] = spearman(knn.score[knn.scored], trained)
        summary["rho(knn_lc, mean loss over backbone training)"] = spearman(knn.score[knn.scored][chosen], met)
    write_json(out / "study.json", summary)
    facts = "\n".join(f"- {k}: {json.dumps(v)}" for k, v in summary.items() if k != "accuracy")
    with atomic(out / "study.md", "w") as file:
        file.write(f"{table_of(found)}\n\n{facts}\n")
    with atomic(out / "study.svg", "w") as file:
        file.write(plot_of(found))
    print((out / "study.md").read_text(encoding="utf-8"))
    return summary


if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        sys.exit(f"image_study.py: {problem}")
