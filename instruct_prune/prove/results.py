"""From finished arms to what is said of each rule: one dictionary, which is ``prove.json``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from instruct_prune.errors import InputError
from instruct_prune.prove.arms import Kind
from instruct_prune.prove.config import LEAST_RANDOM
from instruct_prune.prove.readings import Readings
from instruct_prune.prove.statistics import Verdict, lean, tokens_to_match, verdicts
from instruct_prune.prove.study import Done

READINGS = tuple(field.name for field in dataclasses.fields(Readings))


class Results:
    """Finished arms, asked for their losses.

    Args:
        done: arms; those of learning rates that were not chosen are left out.
        rules: names, in the order in which they were asked for.
        rate: the chosen learning rate; arms at a third of it are the extra of that name.

    Raises:
        InputError: the training of one of these arms diverged.
    """

    def __init__(self, done: Sequence[Done], rules: Sequence[str], rate: float) -> None:
        self.rules = list(rules)
        self.done = [d for d in done if d.arm.kind in ("third", "untrained") or d.arm.learning_rate == rate]
        for d in self.done:
            if not all(math.isfinite(readings.per_token) for readings in d.judged.readings.values()):
                raise InputError(
                    f"an arm of {d.arm.rule or 'random rows'} (seed {d.arm.seed}) diverged at the learning rate {d.arm.learning_rate:g}: "
                    "its loss is not a number. Give lower --learning-rates."
                )

    def arms(self, kind: Kind, rule: str, times: float = 1.0) -> list[Done]:
        """Those of a kind and rule, by seed."""
        found = [d for d in self.done if (d.arm.kind, d.arm.rule, d.arm.times) == (kind, rule, times)]
        return sorted(found, key=lambda d: d.arm.seed)

    def losses(self, kind: Kind, rule: str, name: str, reading: str = "per_token", times: float = 1.0) -> list[float]:
        """Of the arms of a kind and rule on one set, by seed."""
        return [getattr(d.judged.readings[name], reading) for d in self.arms(kind, rule, times)]

    def verdicts(
        self, name: str, kind: Kind = "rule", reading: str = "per_token", against: Kind = "random"
    ) -> dict[str, Verdict]:
        """Of every rule that has arms of this kind; {} where there are too few random arms to compare with."""
        rules = {rule: self.losses(kind, rule, name, reading) for rule in self.rules}
        rules = {rule: losses for rule, losses in rules.items() if losses}
        random = self.losses(against, "", name, reading)
        if len(random) < LEAST_RANDOM or not rules:
            return {}
        return dict(zip(rules, verdicts(list(rules.values()), random), strict=True))

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Multiples of the budget, and the mean loss of random rows of so many tokens."""
        times = sorted({d.arm.times for d in self.done if d.arm.kind == "more"})
        means = [self.losses("random", "", name), *(self.losses("more", "", name, times=t) for t in times)]
        return [1.0, *times], [float(np.mean(losses)) for losses in means]

    def of_test(self, name: str, held_out: str) -> dict[str, Any]:
        """All that is known on one test."""
        random = self.losses("random", "", name)
        times, means = self.curve(name)
        found: dict[str, Any] = {
            "untrained": _mean(self.losses("untrained", "", name)),
            "random": spread(random),
            "whole": _mean(self.losses("whole", "", name)),
            "curve": {"times": times, "losses": means},
            "rules": {},
        }
        decided, total, third = (
            self.verdicts(name),
            self.verdicts(name, "total"),
            self.verdicts(name, "third", against="third"),
        )
        readings = {reading: self.verdicts(name, reading=reading) for reading in READINGS[1:]}
        forgotten = self.verdicts(held_out)
        for rule, verdict in decided.items():
            length = self.losses("length", rule, name)
            found["rules"][rule] = {
                **dataclasses.asdict(verdict),
                "verdict": str(verdict),
                "losses": self.losses("rule", rule, name),
                "worth": dataclasses.asdict(tokens_to_match(verdict.mean, times, means)) if len(times) > 1 else None,
                "readings": {reading: of[rule].difference for reading, of in readings.items()},
                "held_out": forgotten[rule].difference,
                "random_of_its_lengths": {"arms": len(length), "difference": verdict.mean - _mean(length)} if length else None,
                "equal_total_tokens": dataclasses.asdict(total[rule]) if rule in total else None,
                "third_of_the_rate": dataclasses.asdict(third[rule]) if rule in third else None,
            }  # fmt: skip
        return found


def spread(random: Sequence[float]) -> dict[str, Any]:
    """What is said of the random arms themselves."""
    return {
        "arms": len(random),
        "mean": _mean(random),
        "sd": float(np.std(random, ddof=1)),
        "normal_p": lean(random),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def told_so_far(done: Sequence[Done], rules: Sequence[str], rate: float, name: str) -> str:
    """The verdicts until now, in a few words; "" before six random arms are there."""
    found = Results(done, rules, rate).verdicts(name)
    said: dict[str, list[str]] = {}
    for rule, verdict in found.items():
        said.setdefault(verdict.word, []).append(f"{rule} {verdict.difference:+.4f}")
    return "; ".join(f"{word}: {', '.join(said[word])}" for word in ("better", "worse", "cannot tell") if word in said)
