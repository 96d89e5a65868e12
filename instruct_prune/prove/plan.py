"""How many arms fit into the time, and the smallest difference that they can see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from instruct_prune.errors import InputError
from instruct_prune.progress import clock, say
from instruct_prune.prove.config import LEAST_RANDOM
from instruct_prune.prove.statistics import detectable

TYPICAL_SPREAD = 0.015
"""Standard deviation of the test loss over random arms, in nats a token, as plans suppose it: measured with SmolLM2-135M on random
subsets of 79 average rows (docs/study.md). Verdicts go by the spread of the study's own random arms."""
MORE_TIMES, MORE_ARMS, WHOLE_ARMS, LENGTH_ARMS = (2.0, 4.0), 2, 2, (4, 2)


@dataclass(frozen=True)
class Costs:
    """Seconds, for one process.

    Attributes:
        judge: of one arm.
        random: training of one random arm.
        rules: {rule: training of one of its arms}.
        total: {rule: training of one of its arms at equal total tokens}.
        length: {rule: training of one random arm of its lengths}.
        rates: how many learning rates are tried.
        tests: how many tests there are.
        more: multiples of the budget that the pool can fill.
    """

    judge: float
    random: float
    rules: Mapping[str, float]
    total: Mapping[str, float]
    length: Mapping[str, float]
    rates: int
    tests: int
    more: Sequence[float]


@dataclass(frozen=True)
class Plan:
    """What will be trained.

    Attributes:
        random, rule: arms of the band, and of each rule.
        length: arms of random rows of each rule's lengths, 0 for none.
        extras: what else, by name.
        left_out: extras for which there is no time.
        arms: of all kinds together.
        seconds: estimate, for one process.
        detectable: the smallest difference that is called one.
    """

    random: int
    rule: int
    length: int
    extras: tuple[str, ...]
    left_out: tuple[str, ...]
    arms: int
    seconds: float
    detectable: float

    def words(self, rules: Sequence[str], rates: int) -> str:
        """For people, before anything is trained."""
        left_out = f"; no time for: {', '.join(self.left_out)}" if self.left_out else ""
        each = f"the rule {rules[0]}" if len(rules) == 1 else f"each of {len(rules)} rules ({', '.join(rules)})"
        return (
            f"plan: {self.random} random arms, {self.rule} of {each}, {rates} learning rate{'s' if rates > 1 else ''}; "
            f"beside it: {', '.join(self.extras) or 'nothing'}{left_out}\n"
            f"plan: {self.arms} arms, about {clock(self.seconds)} in one process; a difference above {self.detectable:.4f} nats a token "
            f"will be seen, if random arms spread by {TYPICAL_SPREAD:g} as they commonly do"
        )


def make_plan(
    costs: Costs,
    seconds: float,
    random_arms: int,
    rule_arms: int,
    extras: Sequence[str],
    spread: float = TYPICAL_SPREAD,
) -> Plan:
    """The arms that see the smallest difference within the time; extras in their order with what is left.

    Args:
        costs: measured.
        seconds: there are.
        random_arms: at most.
        rule_arms: at most.
        extras: wanted.
        spread: standard deviation of the loss over random arms.

    Raises:
        InputError: not even six random arms and one arm of each rule fit.
    """
    choices = [(r, n) for r in range(LEAST_RANDOM, random_arms + 1) for n in range(1, rule_arms + 1)]
    fitting = [(r, n) for r, n in choices if _core(costs, r, n) <= seconds]
    if not fitting:
        raise InputError(_too_short(costs, seconds))
    rules = len(costs.rules)
    r, n = min(fitting, key=lambda pair: (detectable(spread, pair[1], pair[0], rules), _core(costs, *pair)))
    spent, count, length = _core(costs, r, n), costs.rates - 1 + r + 1 + n * rules, 0
    taken: list[str] = []
    for name in extras:
        for arms in LENGTH_ARMS if name == "length" else (0,):
            price, more = _extra(costs, name, n, arms)
            if price <= seconds - spent:
                spent, count, length = spent + price, count + more, arms or length
                taken.append(name)
                break
    left_out = tuple(name for name in extras if name not in taken)
    return Plan(r, n, length, tuple(taken), left_out, count, spent, detectable(spread, n, r, rules))


def _core(costs: Costs, random: int, rule: int) -> float:
    """Seconds of the untrained model, the learning rates (one of which is that of the band), the band, the rules."""
    rates = (costs.rates - 1 + random) * (costs.random + costs.judge)
    return costs.judge + rates + rule * sum(cost + costs.judge for cost in costs.rules.values())


def _extra(costs: Costs, name: str, rule: int, length: int) -> tuple[float, int]:
    """Seconds and arms of an extra."""
    finalists = min(costs.tests, len(costs.rules))
    training: dict[str, list[float]] = {
        "more": [times * costs.random for times in costs.more for _ in range(MORE_ARMS)],
        "length": length * list(costs.length.values()),
        "whole": WHOLE_ARMS * [costs.random],
        "total": rule * list(costs.total.values()),
        "third": LEAST_RANDOM * [costs.random] + finalists * rule * [max(costs.rules.values())],
    }
    return sum(cost + costs.judge for cost in training[name]), len(training[name])


def choose_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The learning rate with the lowest loss, which is said where there was a choice.

    Raises:
        InputError: training diverged at every one.
    """
    finite = {rate: loss for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)}
    if not finite:
        raise InputError("--learning-rates: training diverged at every one of them. Give lower ones.")
    found = min(finite, key=lambda rate: finite[rate])
    if len(rates) == 1:
        return found
    edge = found in (min(rates), max(rates))
    say(
        f"learning rate {found:g}, by the held-out loss of random rows"
        + ("; it is the last of --learning-rates on this side: one beyond it may be better" if edge else "")
    )
    return found


def _too_short(costs: Costs, seconds: float) -> str:
    least = _core(costs, LEAST_RANDOM, 1)
    random, judge = costs.random / 60, costs.judge / 60
    return (
        f"--budget-minutes {seconds / 60:g} holds no study: six random arms and one arm of each rule, {len(costs.rules)} in all, take about "
        f"{least / 60:.1f} minutes here (a random arm {random:.1f} to train and {judge:.1f} to judge). Give --budget-minutes "
        f"{math.ceil(least / 60 * 1.1)}, fewer --rules, fewer --keep-tokens (training), or fewer --test-rows, --held-out and --lm-eval (judging)."
    )
