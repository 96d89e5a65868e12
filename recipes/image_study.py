"""The paper's image experiment on one command: does a pruned subset beat a random one of the same size?

    python recipes/image_study.py --train TREE --test TREE --test-split test --out STUDY
    python recipes/image_scores.py --data TREE --epochs 10 --out TRAINED
    python recipes/image_study.py --train TREE --test TREE --test-split test --mode full --runs trained=TRAINED --out STUDY

Scores the training pictures (DLC and knn_lc) and selects with every rule, keep rate and seed inside classes: an arm each. An arm is judged by
the test accuracy of a linear probe on frozen features, or (--mode full) of the whole network, trained on the arm's pictures alone. All arms of a
rate have equally many steps; random arms are shared by all rules. Every arm is a file in STUDY/arms: what is there is not trained
again, so the same command goes on after an interruption or a budget. Written to be copied and changed.

A rule is a name in RULES or your own, NAME=SPEC, as in "few=dlc flexrand split=0.1": the run (dlc, knn, or one of --runs), the
selection method, and parameters of the method; score= takes another score of the run.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from instruct_prune import InputError, Run, ScoreConfig, SelectConfig, verdicts
from instruct_prune.train import (
    Classifier,
    Pictures,
    accuracy_of,
    decoded_once,
    features_of,
    fine_tune,
    load_backbone,
    load_pictures,
    principal_components,
    probe_accuracy,
    run_script,
    say,
)

FROM_TRAINING = ("el2n", "grand", "forgetting", "aum", "entropy", "margin", "least_confidence", "gain")
RULES = {
    name: f"dlc {name}" for name in ("random", "flexrand", "easiest", "hardest", "easy_diverse", "herding", "k_center")
}
RULES |= {f"knn_lc + {name}": f"knn {name}" for name in ("flexrand", "ccs", "easiest")}
RULES |= {name: f"trained hardest score=image_scores:{name}" for name in FROM_TRAINING}
RULES |= {
    "ccs": "trained ccs score=image_scores:aum",
    "d2": "trained d2 score=image_scores:aum",
    "moderate": "trained moderate",
}
KEEP = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Rows = NDArray[np.int64]
Judge = Callable[[Rows, int], float]
"""(positions of training pictures, seed) -> accuracy on the test pictures."""


@dataclass(frozen=True)
class Rule:
    """One way to select: a run, and the options of `select`."""

    name: str
    run: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Rule:
        name, _, spec = text.partition("=")
        words = (spec or RULES.get(text, "")).split()
        if len(words) < 2:
            raise InputError(f"unknown rule {text!r}. Known: {', '.join(RULES)}; or write NAME=RUN METHOD ...")
        score = next((word.removeprefix("score=") for word in words if word.startswith("score=")), None)
        params = tuple(word for word in words[2:] if not word.startswith("score="))
        return cls(name, words[0], {"method": words[1], "param": params, "score": score})

    def rows(self, runs: dict[str, Run], keep: int, seed: int) -> Rows:
        """Positions of the pictures that it keeps; classes are the strata of every rule, random too."""
        config = SelectConfig(keep=keep, seed=seed, stratify="label", **self.options)
        return np.flatnonzero(runs[self.run].select(config).selected)


# ---- judging ----


def probing(train: Pictures, test: Pictures, runs: dict[str, Run], given: argparse.Namespace) -> Judge:
    """Ridge regression on principal components of the frozen backbone's features."""
    backbone, _ = load_backbone(given.model, train.short_side, given.image_size)
    x = np.load(runs["dlc"].folder / "embeddings.npy", allow_pickle=False)
    mean, components = principal_components(x, given.probe_dims)
    x, test_x = (x - mean) @ components, (features_of(backbone, test.items) - mean) @ components
    names = len(train.names)
    return lambda rows, seed: probe_accuracy(x[rows], train.labels[rows], test_x, test.labels, names)


def training(train: Pictures, test: Pictures, given: argparse.Namespace) -> Judge:
    """The whole network, from the same weights each time; pictures are decoded once for all arms."""
    out = Path(given.out)
    size = given.image_size if given.network == given.model else None
    backbone, _ = load_backbone(given.network, train.short_side, size)
    train = decoded_once(backbone, train, out / "pixels_train.npy")
    test = decoded_once(backbone, test, out / "pixels_test.npy")
    model = Classifier(backbone, len(train.names))
    begin = {name: value.clone() for name, value in model.state_dict().items()}

    def judge(rows: Rows, seed: int) -> float:
        model.load_state_dict(begin)
        pictures = [train.items[i] for i in rows]
        if pictures:
            how = {"rate": given.rate, "seed": seed, "scratch": given.scratch, "tell": lambda text: None}
            fine_tune(model, pictures, given.epochs, **how)
        return float(accuracy_of(model, test))

    return judge


# ---- arms ----


@dataclass
class Arms:
    """Trains arms and keeps them as files."""

    folder: Path
    judge: Judge
    identity: dict[str, Any]  # all that decides an arm's accuracy beside its pictures and its seed
    until: float  # no arm may be under way any more then
    a_picture: float = 0.0  # seconds that the last arm took for one of its pictures
    left: int = 0  # arms that the budget left out

    def accuracy(self, name: str, rows: Rows, seed: int) -> float | None:
        """Of an arm, read or trained now; None where the budget is spent."""
        which = {**self.identity, "rows": rows.tolist(), "seed": seed}
        path = self.folder / f"{hashlib.sha256(json.dumps(which).encode()).hexdigest()[:16]}.json"
        if path.exists():
            return float(json.loads(path.read_text(encoding="utf-8"))["accuracy"])
        began = time.monotonic()
        if began + self.a_picture * len(rows) > self.until:
            self.left += 1
            return None
        found = self.judge(rows, seed)
        seconds = time.monotonic() - began
        self.a_picture = seconds / max(len(rows), 1)
        arm = {**self.identity, "arm": name, "seed": seed, "accuracy": found, "seconds": seconds}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(arm), encoding="utf-8")
        os.replace(temporary, path)
        say(f"{name}: {len(rows)} pictures, seed {seed}: accuracy {found:.2%} ({seconds:.0f} s)")
        return found


def plan(rules: Sequence[Rule], given: argparse.Namespace) -> Iterator[tuple[Rule, float, int]]:
    """Seed after seed, so that a budget leaves fewer seeds rather than fewer rules; random has more arms than the others."""
    for seed in range(given.seeds):
        for keep in given.keep:
            for rule in rules:
                last = given.random_arms if rule.name == "random" else seed + 1
                yield from ((rule, keep, one) for one in range(seed, max(last, seed + 1), given.seeds))


# ---- what it says ----


def table_of(found: dict[str, dict[float, list[float]]]) -> str:
    """Accuracies of random arms, and gaps to them in points with 95% intervals; bold: better or worse (docs/prove.md)."""
    random = {keep: [100 * a for a in arms] for keep, arms in found["random"].items()}
    others = {name: arms for name, arms in found.items() if name != "random"}
    cells: dict[str, list[str]] = {name: [] for name in others}
    for keep, band in random.items():
        there = [name for name, arms in others.items() if arms.get(keep) and len(band) > 1]
        lost = verdicts([[-100 * a for a in others[name][keep]] for name in there], [-a for a in band]) if there else []
        said = dict.fromkeys(others, "")
        for name, verdict in zip(there, lost, strict=True):
            error = np.std(band, ddof=1) * np.sqrt(1 / verdict.arms + 1 / len(band))
            text = f"{-verdict.difference:+.2f} ± {scipy.stats.t.ppf(0.975, len(band) - 1) * error:.2f}"
            said[name] = text if verdict.word == "cannot tell" else f"**{text}**"
        for name, text in said.items():
            cells[name].append(text)
    told = [
        f"{np.mean(band):.2f} ({np.std(band, ddof=min(1, len(band) - 1)):.2f}, {len(band)})" for band in random.values()
    ]
    rows = {"rule": [f"{keep:.0%}" for keep in random], "---": ["---"] * len(random)}
    rows |= {"random: accuracy, % (sd, arms)": told, **cells}
    return "\n".join(f"| {name} | " + " | ".join(row) + " |" for name, row in rows.items())


# ---- the study ----


def scored(out: Path, pictures: Path, subnets: Sequence[str], given: argparse.Namespace) -> Run:
    """A scored run in ``out``; scored before, it is only read."""
    run = Run(out)
    run.score(str(pictures), ScoreConfig(given.model, subnets=tuple(subnets), image_size=given.image_size))
    return run


def runs_of(train: Pictures, rules: Sequence[Rule], given: argparse.Namespace) -> dict[str, Run]:
    """The runs that the rules select from, all over the same pictures."""
    out = Path(given.out)
    with open(out / "train.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        table.writerows((Path(p).resolve(), train.names[y]) for p, y in zip(train.paths, train.labels, strict=True))
    runs = {"dlc": scored(out / "dlc", out / "train.csv", given.subnets, given)}
    runs |= {name: Run(folder) for name, _, folder in (text.partition("=") for text in given.runs)}
    wanted = {rule.run: rule.name for rule in rules}
    if "knn" in wanted and "knn" not in runs:
        runs["knn"] = scored(out / "knn", out / "train.csv", ["knn_lc"], given)
    for name, rule in wanted.items():
        if name not in runs:
            raise InputError(f"the rule {rule!r} selects from the run {name!r}. Name its folder: --runs {name}=FOLDER")
    for name, run in runs.items():
        contents = [table.content_hash[table.scored] for table in (run.scores, runs["dlc"].scores)]
        if len(contents[0]) != len(train) or not np.array_equal(*contents):
            raise InputError(f"the run {name} ({run.folder.path}) has no score of some pictures, or is over others.")
    return runs


def run_study(given: argparse.Namespace) -> dict[str, Any]:
    """Everything, in order; returns what study.json says."""
    out = Path(given.out)
    (out / "arms").mkdir(parents=True, exist_ok=True)
    given.runs = given.runs or []
    there = {"dlc", "knn", *(text.partition("=")[0] for text in given.runs)}
    rules = [Rule.parse(text) for text in given.rules or [n for n, spec in RULES.items() if spec.split()[0] in there]]
    rules = [Rule.parse("random"), *(rule for rule in rules if rule.name != "random")]
    train = load_pictures(given.train, given.train_split, per_class=given.train_per_class)
    test = load_pictures(given.test, given.test_split, names=train.names, per_class=given.test_per_class)
    runs = runs_of(train, rules, given)
    full = given.mode == "full"
    names = ("network", "image_size", "epochs", "rate", "scratch") if full else ("model", "image_size", "probe_dims")
    content = hashlib.sha256("".join([*runs["dlc"].scores.content_hash, *test.paths]).encode()).hexdigest()
    identity = {"pictures": content, "mode": given.mode, **{name: getattr(given, name) for name in names}}
    judge = training(train, test, given) if full else probing(train, test, runs, given)
    arms = Arms(out / "arms", judge, identity, until=time.monotonic() + 60 * given.budget_minutes)
    facts: dict[str, Any] = {"training pictures": len(train), "test pictures": len(test), **identity}
    found: dict[str, dict[float, list[float]]] = {rule.name: {} for rule in rules}
    for rule, keep, seed in plan(rules, given):
        rows = rule.rows(runs, max(len(train.names), round(keep * len(train))), seed)
        accuracy = arms.accuracy(f"{rule.name} {keep:.0%}", rows, seed)
        if accuracy is not None:
            found[rule.name].setdefault(keep, []).append(accuracy)
    everything = np.arange(len(train))
    if full:
        facts["accuracy without training"] = arms.accuracy("untrained", everything[:0], 0)
    facts["accuracy of all training pictures"] = arms.accuracy("all", everything, 0)
    if arms.left:
        say(f"the budget of {given.budget_minutes:g} minutes left out {arms.left} arms; the same command goes on.")
    facts["arms left out by the budget"] = arms.left
    text = "\n".join([table_of(found), "", *(f"- {name}: {json.dumps(value)}" for name, value in facts.items()), ""])
    (out / f"study_{given.mode}.md").write_text(text, encoding="utf-8")
    summary = {**facts, "accuracy": {name: {str(k): v for k, v in values.items()} for name, values in found.items()}}
    (out / f"study_{given.mode}.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    print(text)
    return summary


def main(words: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--train", required=True, help="pictures as files: a tree or a listing")
    flags.add_argument("--test", required=True)
    flags.add_argument("--train-split")
    flags.add_argument("--test-split")
    flags.add_argument("--train-per-class", type=int)
    flags.add_argument("--test-per-class", type=int)
    flags.add_argument("--mode", choices=("probe", "full"), default="probe")
    flags.add_argument("--model", default="efficientnet-lite0", help="that scores, and is probed")
    flags.add_argument("--network", default="efficientnet-lite0", help="that --mode full trains")
    flags.add_argument("--image-size", type=int, help="of the embedded backbone; fitted to the pictures when not given")
    flags.add_argument("--subnets", nargs="+", default=["dlc"], help="of the run dlc")
    flags.add_argument("--runs", nargs="+", metavar="NAME=FOLDER", help="further scored runs over the same pictures")
    flags.add_argument(
        "--rules", nargs="+", help="names in RULES, or NAME=SPEC; all whose runs are there when not given"
    )
    flags.add_argument("--keep", type=float, nargs="+", default=list(KEEP))
    flags.add_argument("--seeds", type=int, default=5)
    flags.add_argument("--random-arms", type=int, default=10, help="arms of random pictures, at each keep rate")
    flags.add_argument("--probe-dims", type=int, default=256, help="principal components that the probe sees")
    flags.add_argument("--epochs", type=int, default=10, help="of training an arm")
    flags.add_argument("--rate", type=float, default=1e-4, help="learning rate of the backbone")
    flags.add_argument("--scratch", action="store_true", help="the network's weights were not trained before")
    flags.add_argument("--budget-minutes", type=float, default=float("inf"))
    flags.add_argument("--out", required=True)
    given = flags.parse_args(words)
    return run_script("image_study", lambda: run_study(given))


if __name__ == "__main__":
    sys.exit(main())
