"""The paper's image experiment on one command: does a pruned subset beat a random one of the same size?

    python recipes/image_study.py --train TREE --test TREE --test-split test --out STUDY

Scores the training pictures (DLC and knn_lc), selects with every method, keep rate and seed inside classes, fits a linear
probe on cached features of each subset, and compares the accuracy with that of a random subset of the same seed. STUDY then
has study.json and study.md. Scores and features are kept, so a second run with other rates scores nothing again. Written to be
copied and changed.
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
import scipy.stats
import torch
from numpy.typing import NDArray

from instruct_prune import DataConfig, InputError, Run, ScoreConfig, ScoreTable, SelectConfig
from instruct_prune.train import (
    Classifier,
    Pictures,
    features_of,
    fine_tune,
    load_backbone,
    load_pictures,
    principal_components,
    probe_accuracy,
    run_script,
    say,
)

METHODS = ("random", "flexrand", "easiest", "hardest", "easy_diverse", "herding", "k_center", "knn_lc + flexrand")
KEEP = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PROBE_EPOCHS = 20
TURNS = 4  # of scoring and training, for their times

Accuracies = dict[str, dict[float, list[float]]]
Vectors = NDArray[np.float32]


def scored(out: Path, pictures: Path, subnets: Sequence[str], given: argparse.Namespace) -> tuple[Run, ScoreTable]:
    """A scored run in ``out``; scored before, it is only read."""
    run = Run(out)
    config = ScoreConfig(model=given.model, subnets=tuple(subnets), image_size=given.image_size)
    table = run.score(DataConfig((str(pictures),)), config)
    assert table is not None  # None: another process than the main one, and this is the only one
    return run, table


def accuracies(
    runs: dict[str, Run], train: Pictures, test: Pictures, vectors: dict[str, Vectors], given: Any
) -> Accuracies:
    """{method: {keep: accuracy of each seed}}; classes are the strata of every method, random too."""
    mean, components = principal_components(vectors["train"], given.probe_dims)
    x, test_x = ((vectors[name] - mean) @ components for name in ("train", "test"))
    found: Accuracies = {}
    for method in given.methods:
        source, rule = ("knn", "flexrand") if method.startswith("knn_lc") else ("dlc", method)
        for keep in given.keep:
            rows = max(len(train.names), round(keep * len(train)))
            for seed in range(given.seeds):
                config = SelectConfig(keep=rows, method=rule, seed=seed, stratify="label")
                selected = runs[source].select(config).selected
                accuracy = probe_accuracy(x[selected], train.labels[selected], test_x, test.labels, len(train.names))
                found.setdefault(method, {}).setdefault(keep, []).append(accuracy)
        say(f"{method}: done")
    return found


def saved(path: Path, make: Any) -> Vectors:
    """An array that is made once and kept."""
    if not path.exists():
        with open(path.with_suffix(".tmp"), "wb") as file:
            np.save(file, make(), allow_pickle=False)
        path.with_suffix(".tmp").rename(path)
    array: Vectors = np.load(path, allow_pickle=False)
    return array


# ---- does the score predict training? ----


def probe_training_losses(x: Vectors, y: NDArray[np.int64], n_classes: int, seed: int = 0) -> Vectors:
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


def spread(n_pictures: int, n: int) -> list[int]:
    """At most ``n`` positions, evenly spread: of a sorted tree, the same share of every class."""
    return [int(i) for i in np.linspace(0, n_pictures - 1, min(n, n_pictures)).round()]


def correlations(
    tables: dict[str, ScoreTable], train: Pictures, vectors: Vectors, size: int | None, given: Any
) -> dict[str, Any]:
    """Spearman correlation of each score with the loss met in training: of a probe, and of the whole backbone."""
    chosen = spread(len(train), given.train_rows)

    def backbone_losses() -> Vectors:
        classifier = Classifier(load_backbone(given.model, train.short_side, size)[0], len(train.names))
        return fine_tune(classifier, [train.items[i] for i in chosen], given.train_epochs)

    met = saved(Path(given.out) / "training_losses.npy", backbone_losses)
    if met.shape != (given.train_epochs, len(chosen)):
        raise InputError(
            f"{given.out} holds a training of {met.shape[1]} pictures over {met.shape[0]} epochs. Use another --out."
        )
    probe = probe_training_losses(vectors, train.labels, len(train.names))
    dlc = tables["dlc"]
    dense = [spec.kind for spec in dlc.subnets].index("dense")
    scores = {name: table.score[table.scored] for name, table in tables.items()}
    scores["dense loss"] = dlc.losses[dlc.scored][:, dense]
    facts: dict[str, Any] = {
        "pictures that the backbone was trained on": len(chosen),
        "epochs of that training": len(met),
    }
    for name, score in scores.items():
        facts[f"rho({name}, mean loss over probe training)"] = rho(score, probe)
        facts[f"rho({name}, mean loss over backbone training)"] = rho(score[chosen], met.mean(axis=0))
    return facts


def rho(a: Vectors, b: Vectors) -> float:
    return float(scipy.stats.spearmanr(a, b).statistic)


def costs(train: Pictures, passes: int, size: int | None, given: Any) -> dict[str, Any]:
    """CPU seconds of scoring and of full fine-tuning, measured in turns on the same pictures.

    CPU seconds of this process, not those of the clock: what else the machine does shall not count.
    """
    backbone, _ = load_backbone(given.model, train.short_side, size)
    few = [train.items[i] for i in spread(len(train), 64)]
    classifier = Classifier(backbone, len(train.names))
    scoring, training = [], []
    for _ in range(TURNS):
        began = time.process_time()
        features_of(backbone, few)
        turned = time.process_time()
        fine_tune(classifier, few, 1)
        scoring.append((turned - began) / len(few))
        training.append((time.process_time() - turned) / len(few))
    a_pass, an_epoch = float(np.median(scoring[1:])), float(np.median(training[1:]))  # the first turn warms caches
    return {
        "CPU seconds of a scoring pass, all pictures": a_pass * len(train),
        f"CPU seconds of DLC, {passes} passes": a_pass * len(train) * passes,
        f"CPU seconds of full fine-tuning, {given.epochs} epochs": an_epoch * len(train) * given.epochs,
        "training over scoring": an_epoch * given.epochs / (a_pass * passes),
    }


# ---- what it says ----


def table_of(found: Accuracies) -> str:
    """Accuracy gap over random in points, mean over seeds and 95% interval of the paired gaps (Student's t)."""
    random = found["random"]
    keeps = list(random)
    lines = ["| method | " + " | ".join(f"{k:.0%}" for k in keeps) + " |", "|---" * (len(keeps) + 1) + "|"]
    lines.append("| random (accuracy, %) | " + " | ".join(f"{100 * np.mean(random[k]):.2f}" for k in keeps) + " |")
    for method, values in found.items():
        if method != "random":
            pairs = [100 * (np.asarray(values[k]) - np.asarray(random[k])) for k in keeps]
            lines.append(
                f"| {method} | " + " | ".join(f"{gap.mean():+.2f} ± {half_interval(gap):.2f}" for gap in pairs) + " |"
            )
    return "\n".join(lines)


def half_interval(values: NDArray[np.float64]) -> float:
    """Half of the 95% confidence interval of a mean; nan for one value."""
    if len(values) < 2:
        return float("nan")
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))


# ---- the study ----


def run_study(given: argparse.Namespace) -> dict[str, Any]:
    """Everything, in order; returns what study.json says."""
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    train = load_pictures(given.train, given.train_split, per_class=given.train_per_class)
    test = load_pictures(given.test, given.test_split, names=train.names, per_class=given.test_per_class)
    listing = out / "train.csv"
    with open(listing, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows(
            (str(Path(p).resolve()), train.names[y]) for p, y in zip(train.paths, train.labels, strict=True)
        )
    made = {"dlc": scored(out / "dlc", listing, given.subnets, given)}
    if any(method.startswith("knn_lc") for method in given.methods):
        made["knn"] = scored(out / "knn", listing, ["knn_lc"], given)
    runs, tables = ({name: pair[i] for name, pair in made.items()} for i in (0, 1))
    if int(tables["dlc"].scored.sum()) != len(train):
        raise InputError(
            f"{given.train}: some pictures got no score; see {out / 'dlc' / 'rejected.jsonl'} and take them out."
        )
    backbone, size = load_backbone(given.model, train.short_side, given.image_size)
    vectors = {
        "train": np.asarray(np.load(out / "dlc" / "embeddings.npy", allow_pickle=False)),
        "test": saved(out / "test_features.npy", lambda: features_of(backbone, test.items)),
    }
    if len(vectors["test"]) != len(test):
        raise InputError(f"{out} holds the features of {len(vectors['test'])} other test pictures. Use another --out.")
    found = accuracies(runs, train, test, vectors, given)
    subnets = [spec.name for spec in tables["dlc"].subnets]
    facts: dict[str, Any] = {
        "training pictures": len(train),
        "test pictures": len(test),
        "model": given.model,
        "image size": size,
        "subnets": subnets,
        **correlations(tables, train, vectors["train"], size, given),
        **costs(train, len(subnets), size, given),
    }
    text = "\n".join([table_of(found), "", *(f"- {name}: {json.dumps(value)}" for name, value in facts.items()), ""])
    (out / "study.md").write_text(text, encoding="utf-8")
    summary = {**facts, "accuracy": {m: {str(k): v for k, v in values.items()} for m, values in found.items()}}
    (out / "study.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    print(text)
    return summary


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--train", required=True, help="pictures as files: a tree or a listing")
    flags.add_argument("--test", required=True)
    flags.add_argument("--train-split")
    flags.add_argument("--test-split")
    flags.add_argument("--train-per-class", type=int)
    flags.add_argument("--test-per-class", type=int)
    flags.add_argument("--model", default="efficientnet-lite0")
    flags.add_argument("--subnets", nargs="+", default=["dlc"])
    flags.add_argument("--keep", type=float, nargs="+", default=list(KEEP))
    flags.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    flags.add_argument("--seeds", type=int, default=5)
    flags.add_argument("--probe-dims", type=int, default=256, help="principal components that the probe sees")
    flags.add_argument("--image-size", type=int, help="of the embedded backbone; fitted to the pictures when not given")
    flags.add_argument("--train-rows", type=int, default=1000, help="pictures that the backbone is really trained on")
    flags.add_argument("--train-epochs", type=int, default=3, help="of that training")
    flags.add_argument(
        "--epochs", type=int, default=10, help="of the training that training-based scores need, for its time"
    )
    flags.add_argument("--out", required=True)
    return flags


def main(words: Sequence[str] | None = None) -> int:
    given = parser().parse_args(words)
    if "random" not in given.methods:
        given.methods.insert(0, "random")
    return run_script("image_study", lambda: run_study(given))


if __name__ == "__main__":
    sys.exit(main())
