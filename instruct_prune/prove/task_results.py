"""What the tasks of lm-evaluation-harness say of each rule: by the statistic that the losses are compared by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from instruct_prune.prove.arms import Kind
from instruct_prune.prove.harness import Tasks
from instruct_prune.prove.results import Results, spread
from instruct_prune.prove.statistics import verdicts

NO_DIRECTION = "not compared: the task does not say whether higher is better"
NO_SPREAD = "cannot tell: all random arms have the same number, so the task is too coarse for them"


def of_tasks(results: Results, tasks: Tasks) -> dict[str, Any]:
    """Every task and metric of which all arms have a number, and the names of those that some arm has none of."""
    compared: list[dict[str, Any]] = []
    left_out: list[str] = []
    for task, ups in tasks.directions.items():
        seen = [done.judged.tasks[task] for done in results.done]
        metrics = list(dict.fromkeys(metric for numbers in seen for metric in numbers))
        for metric in metrics:
            if all(metric in numbers for numbers in seen):
                compared.append(_compared(results, task, metric, ups.get(metric.partition(",")[0])))
            else:
                left_out.append(f"{task} {metric}")
        left_out += [] if metrics else [task]
    return {"version": tasks.version, "documents": tasks.documents, "compared": compared, "left_out": left_out}


def _compared(results: Results, task: str, metric: str, up: bool | None) -> dict[str, Any]:
    def values(kind: Kind, rule: str = "") -> list[float]:
        return [done.judged.tasks[task][metric] for done in results.arms(kind, rule)]

    random = values("random")
    of_rule = {rule: values("rule", rule) for rule in results.rules}
    of_rule = {rule: found for rule, found in of_rule.items() if found}
    return {
        "task": task,
        "metric": metric,
        "higher_is_better": up,
        "untrained": float(np.mean(values("untrained"))),
        "random": spread(random),
        "rules": {
            rule: {**found, "values": of_rule[rule]}
            for rule, found in zip(of_rule, _judged(list(of_rule.values()), random, up), strict=True)
        },
    }


def _judged(rules: Sequence[Sequence[float]], random: Sequence[float], up: bool | None) -> list[dict[str, Any]]:
    """The verdict of each rule; where none can be given, its mean and why."""
    why = NO_DIRECTION if up is None else NO_SPREAD if not np.ptp(random) else ""
    sign = -1.0 if up else 1.0  # verdicts are made for losses, of which lower is better
    found = verdicts([[sign * value for value in values] for values in rules], [sign * value for value in random])
    told = []
    for verdict in found:
        facts = {**dataclasses.asdict(verdict), "verdict": str(verdict)}
        for name in ("mean", "difference", "t"):
            facts[name] = sign * facts[name] + 0.0  # no minus before zero
        if why:
            facts |= {"word": "cannot tell", "verdict": why} | dict.fromkeys(("t", "p", "p_holm", "detectable", "rank"))
        told.append(facts)
    return told
