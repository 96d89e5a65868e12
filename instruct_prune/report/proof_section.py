"""The section of the page that says what the selection is worth: a band of random arms, the arms of each rule, tokens to match."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from instruct_prune.report.proof import NOT_NORMAL, NOT_NORMAL_WORDS, rules_of, task_name, task_notes, worth_words
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import STAGES

WIDTH, MARGIN = 320, 8
"""Of the drawing of a line's arms, in pixels."""
CURVE = (460, 220)
CURVE_MARGIN = (58, 14, 34, 12)
"""Left, right, bottom, top."""


@dataclass(frozen=True)
class Line:
    """One line of a test's table.

    Attributes:
        name: of the rule; "random" for the band.
        dots: where its arms stand, in pixels.
        mean: where their mean stands.
        loss: their mean, in words.
        difference: to random.
        verdict: in words.
        worth: random tokens that it is worth, in words.
        held_out: difference to random on the held-out rows.
        word: "better", "worse", "cannot tell" or "".
    """

    name: str
    dots: tuple[float, ...]
    mean: float
    loss: str
    difference: str
    verdict: str
    worth: str
    held_out: str
    word: str


@dataclass(frozen=True)
class Curve:
    """Loss of random rows against their tokens.

    Attributes:
        points: (x, y, words) of each multiple of the tokens.
        path: the same as SVG wants it.
        rules: (y, name, word) of each rule.
        ticks: (y, words) of the axis.
    """

    points: tuple[tuple[float, float, str], ...]
    path: str
    rules: tuple[tuple[float, str, str], ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class TestView:
    """What is shown of one test.

    Attributes:
        name: of the test.
        lines: random first, then the rules, best first.
        band: lowest and highest random arm, in pixels.
        scale: losses at the left and right end of the drawings.
        note: rows, spread and arms in words.
        curve: None where random rows of more tokens were not trained.
    """

    name: str
    lines: tuple[Line, ...]
    band: tuple[float, float]
    scale: tuple[str, str]
    note: str
    curve: Curve | None


@dataclass(frozen=True)
class TaskLine:
    """One line of the table of tasks.

    Attributes:
        task: with its metric, on the first line of each.
        name: of the rule, "random" or "untrained".
        mean: over its arms, in words.
        difference: to random; of random, its standard deviation.
        verdict: in words.
    """

    task: str
    name: str
    mean: str
    difference: str
    verdict: str


@dataclass(frozen=True)
class ProofView:
    """The whole section.

    Attributes:
        stale: the stage that was made anew since, or "" where the numbers hold; then no test is shown.
        made: how, in words.
        tests: one each.
        tasks: lines on tasks of lm-evaluation-harness; none where none was asked for.
        harness: its version.
        notes: on the tasks.
    """

    stale: str
    made: str
    tests: tuple[TestView, ...]
    tasks: tuple[TaskLine, ...] = ()
    harness: str = ""
    notes: tuple[str, ...] = ()


def proof_section(folder: RunFolder) -> ProofView | None:
    """What ``RUN/prove/prove.json`` says, ready to be drawn; None where nothing was proven."""
    path = folder / "prove" / "prove.json"
    if not path.exists():
        return None
    proof = json.loads(path.read_text(encoding="utf-8"))
    kinds = {kind.stage: kind for kind in STAGES}
    for stage, fingerprint in proof["made_from"].items():
        record = folder.find(kinds[stage])
        if record is None or record.fingerprint != fingerprint:
            return ProofView(stage, "", ())
    budget, training = proof["budget"], proof["training"]
    made = (
        f"{proof['model']['name']}, LoRA rank {training['rank']}, learning rate {training['learning_rate']:.3g}; every arm "
        f"{budget['response_tokens']:,} response tokens, {budget['epochs']:g} epoch{'' if budget['epochs'] == 1 else 's'}, {budget['steps']} steps"
    )
    tests = tuple(_test(name, proof) for name in proof["tests"])
    if "lm_eval" not in proof:
        return ProofView("", made, tests)
    return ProofView("", made, tests, tuple(_task_lines(proof)), proof["lm_eval"]["version"], tuple(task_notes(proof)))


def _task_lines(proof: Mapping[str, Any]) -> Iterator[TaskLine]:
    for found in proof["lm_eval"]["compared"]:
        random = found["random"]
        yield TaskLine(task_name(found), "untrained", f"{found['untrained']:.4f}", "", "")
        yield TaskLine("", "random", f"{random['mean']:.4f}", f"± {random['sd']:.4f}", "")
        for rule, of_rule in rules_of(found):
            yield TaskLine("", rule, f"{of_rule['mean']:.4f}", f"{of_rule['difference']:+.4f}", of_rule["verdict"])


def _test(name: str, proof: Mapping[str, Any]) -> TestView:
    test = proof["tests"][name]
    random = sorted(
        arm["losses"][name]["per_token"]
        for arm in proof["arms"]
        if arm["kind"] == "random" and arm["learning_rate"] == proof["training"]["learning_rate"]
    )
    rules = sorted(test["rules"].items(), key=lambda pair: pair[1]["mean"])
    every = [*random, *(loss for _, rule in rules for loss in rule["losses"])]
    low, high = min(every), max(every)

    def place(loss: float) -> float:
        share = (loss - low) / (high - low) if high > low else 0.5
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)

    mean = test["random"]["mean"]
    lines = [Line("random", tuple(map(place, random)), place(mean), f"{mean:.4f}", "", "", "", "", "")]
    for rule, found in rules:
        lines.append(
            Line(
                name=rule,
                dots=tuple(map(place, found["losses"])),
                mean=place(found["mean"]),
                loss=f"{found['mean']:.4f}",
                difference=f"{found['difference']:+.4f}",
                verdict=found["verdict"],
                worth=worth_words(found["worth"]),
                held_out=f"{found['held_out']:+.4f}",
                word=found["word"],
            )
        )
    rows = proof["test_files"][name]["rows"] if name in proof["test_files"] else proof["pool"]["held_out"]
    note = f"{rows:,} rows. {len(random)} random arms, spread {test['random']['sd']:.4f}."
    if test["untrained"] is not None:
        note += f" Untrained {test['untrained']:.4f}."
    if test["whole"] is not None:
        note += f" Rows of the whole pool, in as many steps: {test['whole']:.4f}."
    if test["random"]["normal_p"] < NOT_NORMAL:
        note += f" Note: {NOT_NORMAL_WORDS}"
    band = (place(random[0]), place(random[-1]))
    return TestView(name, tuple(lines), band, (f"{low:.4f}", f"{high:.4f}"), note, _curve(test))


def _curve(test: Mapping[str, Any]) -> Curve | None:
    times, losses = test["curve"]["times"], test["curve"]["losses"]
    if len(times) < 2:
        return None
    left, right, bottom, top = CURVE_MARGIN
    means = {rule: found["mean"] for rule, found in test["rules"].items()}
    low, high = min([*losses, *means.values()]), max([*losses, *means.values()])

    def x(value: float) -> float:
        return round(left + math.log2(value) / math.log2(times[-1]) * (CURVE[0] - left - right), 1)

    def y(loss: float) -> float:
        share = (high - loss) / (high - low) if high > low else 0.5
        return round(top + share * (CURVE[1] - top - bottom), 1)

    points = tuple((x(t), y(loss), f"{t:g}x") for t, loss in zip(times, losses, strict=True))
    path = " ".join(f"{'L' if i else 'M'}{px},{py}" for i, (px, py, _) in enumerate(points))
    rules = tuple((y(mean), rule, test["rules"][rule]["word"]) for rule, mean in means.items())
    return Curve(points, path, rules, ((y(low), f"{low:.3f}"), (y(high), f"{high:.3f}")))
