"""Prove: is a selection worth more than random rows? Arms are planned into the time, trained, judged and compared."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.errors import InputError, told_together
from instruct_prune.models.names import check_model
from instruct_prune.progress import say
from instruct_prune.prove import plan as planning
from instruct_prune.prove.arms import TOLERANCE, Arm, Kind, at_total, draw_of_lengths, draw_random
from instruct_prune.prove.bench import Bench, Rates
from instruct_prune.prove.config import LEAST_RANDOM, ProveConfig
from instruct_prune.prove.harness import Tasks
from instruct_prune.prove.plan import Costs, Plan, choose_rate, make_plan
from instruct_prune.prove.results import Results, told_so_far
from instruct_prune.prove.study import Done, Study
from instruct_prune.prove.task_results import of_tasks
from instruct_prune.rows.inputs import IMAGES_AND_TEXT
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.prove_rows import HELD_OUT, ProveRows, absolute, tests_of
from instruct_prune.run.prove_rules import SELECTION, Rules, check_rule, named_rules
from instruct_prune.run.records import ScoreFacts, SelectFacts
from instruct_prune.run.target_facts import TargetFacts
from instruct_prune.storage import digest, json_able, write_json
from instruct_prune.train import TrainConfig, find_base

AVERAGE_ROWS = 100
"""Rows of average length whose tokens an arm has, where nothing else is said."""


def prove(folder: RunFolder, config: ProveConfig) -> dict[str, Any] | None:
    """Train the arms that are missing and write ``prove.json``; None on processes other than the first.

    Args:
        folder: a scored run over text.
        config: the options.

    Raises:
        InputError: an option is wrong, the pool is too small for what is asked, or the time is too short for any study.
    """
    folder.require(ScoreFacts)
    rules, tasks = named_rules(folder, config), Tasks(config.lm_eval)
    told_together(
        config.check,
        lambda: _check_model(config),
        lambda: tests_of(config),
        *(lambda rule=rule: check_rule(rule) for rule in rules),
        tasks.load,
    )
    proof = Proof(folder, config, rules, tasks)
    found = proof.run()
    if not _is_first():
        return None
    write_json(folder / "prove" / "prove.json", found)
    return found


def _is_first() -> bool:
    """Whether this process speaks for all that the launcher started. They never meet: each takes arms that nobody claims."""
    return os.environ.get("RANK", "0") == "0"


def _check_model(config: ProveConfig) -> None:
    if config.train_model is not None:
        check_model(config.train_model, option="--train-model")


class Proof:
    """One study: its rows, its arms, its plan.

    Args:
        folder: a scored run over text.
        config: the options, checked.
        rules: names.
        tasks: of lm-evaluation-harness, loaded.
    """

    def __init__(self, folder: RunFolder, config: ProveConfig, rules: Sequence[str], tasks: Tasks) -> None:
        self.folder, self.config, self.rules, self.tasks = folder, config, tuple(rules), tasks
        self.path = Path(config.study).expanduser() if config.study else folder / "prove"
        self.rows = ProveRows(folder, config)
        self.pool = Rules(folder, self.rows.table)
        self.budget = self._budget()
        average = float(self.pool.response.mean())
        self.steps = max(1, round(self.budget * config.epochs / average / config.batch_size))
        self.draws = {rule: self.pool.find(rule, self.budget) for rule in self.rules}
        self.base = find_base(self.rows.name, self.rows.revision, self.rows.pool.facts.model_kind == IMAGES_AND_TEXT)
        self.training = TrainConfig(dtype=config.dtype)
        self.more = [times for times in planning.MORE_TIMES if times * self.budget <= self.pool.response.sum()]
        self.tests = list(self.rows.tests) or [HELD_OUT]
        self._equal: dict[tuple[str, int], Int64 | None] = {}

    def _budget(self) -> int:
        response, asked = self.pool.response, self.config.keep_tokens
        most, whose = int(response.sum()) // 2, "--keep-tokens"
        if asked is None and SELECTION in self.rules:
            asked, whose = int(response[self.pool.selected()].sum()), "the run's selection has tokens for an arm:"
        asked = asked or min(round(AVERAGE_ROWS * float(response.mean())), most)
        if asked > most:
            raise InputError(
                f"{whose} {asked}: the {len(response)} rows that arms may have hold {response.sum()} response tokens. An arm may have "
                f"half of them at most: above that all subsets are much the same. Give --keep-tokens {most} or fewer."
            )
        if asked < 10 * float(np.median(response)):
            raise InputError(f"{whose} {asked}: fewer than ten rows. Give at least {round(10 * response.mean())}.")
        return asked

    def _made_from(self) -> dict[str, str]:
        """{stage: fingerprint} when the study begins: a selection or target made while it runs is another one."""
        stages = (ScoreFacts, *((SelectFacts,) if SELECTION in self.rules else ()))
        stages = (*stages, *((TargetFacts,) if any(rule.startswith("targeted") for rule in self.rules) else ()))
        return {kind.stage: self.folder.require(kind).fingerprint for kind in stages}

    # ---- arms ----

    def arm(self, kind: Kind, rule: str, seed: int, rate: float, at: Int64, epochs: float = 0, times: float = 1) -> Arm:
        """An arm of rows at these positions, after it was looked at."""
        tokens = int(self.pool.response[at].sum())
        if kind not in ("total", "whole") and abs(tokens / (times * self.budget) - 1) > TOLERANCE + 1e-9:
            raise InputError(
                f"--rules {rule or 'random'}: its rows have {tokens} response tokens; {times * self.budget:g} are wanted, within "
                f"{TOLERANCE:.0%}. Give more --keep-tokens, so that single rows weigh less."
            )
        rows = tuple(self.pool.row_id[at].tolist())
        return Arm(kind, rule, seed, rows, round(self.steps * times), epochs or self.config.epochs, rate, times)

    def random(self, seed: int, rate: float, kind: Kind = "random", times: float = 1) -> Arm:
        at = draw_random(self.pool.response, self.pool.total, self.budget, self._seed(seed), times)
        return self.arm(kind, "", seed, rate, at, times=times)

    def rule(self, rule: str, seed: int, rate: float, kind: Kind = "rule") -> Arm:
        return self.arm(kind, rule, seed, rate, self.draws[rule](self.budget, self._seed(seed)))

    def at_total(self, rule: str, seed: int, rate: float) -> Arm | None:
        """The rule's rows at the total tokens of an average random arm; None where it has no such rows."""
        if (rule, seed) not in self._equal:
            self._equal[rule, seed] = self._find_equal(rule, seed)
        at = self._equal[rule, seed]
        return None if at is None else self.arm("total", rule, seed, rate, at)

    def _find_equal(self, rule: str, seed: int) -> Int64 | None:
        draw, total, most = self.draws[rule], self.pool.total, int(self.pool.response.sum())
        wanted = round(self.budget * float(total.sum() / most))
        return at_total(lambda tokens: draw(tokens, self._seed(seed)), total, wanted, self.budget, most)

    def of_lengths(self, rule: str, seed: int, rate: float) -> Arm:
        like = self.draws[rule](self.budget, self._seed(seed))
        at = draw_of_lengths(like, self.pool.response, self.budget, self._seed(seed))
        return self.arm("length", rule, seed, rate, at)

    def whole(self, seed: int, rate: float) -> Arm:
        """Rows of the whole pool, each seen at most once, in as many steps and tokens as the others."""
        tokens = min(round(self.config.epochs * self.budget), int(self.pool.response.sum()))
        at = draw_random(self.pool.response, self.pool.total, tokens, self._seed(seed))
        epochs = self.config.epochs * self.budget / float(self.pool.response[at].sum())
        return self.arm("whole", "", seed, rate, at, epochs)

    def _seed(self, seed: int) -> int:
        return 1000 * self.config.seed + seed

    # ---- the study ----

    def run(self) -> dict[str, Any]:
        """All arms of the plan."""
        config, first = self.config, self.config.learning_rates[0]
        needed = [self.random(seed, first) for seed in range(config.random_arms)]
        needed += [self.rule(rule, seed, first) for rule in self.rules for seed in range(config.rule_arms)]
        needed += self._extras(first, planning.LENGTH_ARMS[0], config.rule_arms, config.extras)
        made_from = self._made_from()
        pool = self.rows.encoded(row for arm in needed for row in arm.rows)
        bench = Bench(self.base, self.training, pool, self.rows.sets, self.tasks)
        rate = [first]
        study = Study(self.path, bench, lambda done: told_so_far(done, self.rules, rate[0], self.tests[0]))
        plan = self._planned(bench, study, needed)
        tried = [self.random(0, each) for each in config.learning_rates]
        losses = [done.judged.readings[HELD_OUT].per_token for done in study.finish(tried)]
        rate[0] = choose_rate(config.learning_rates, losses)
        self._make(study, plan, rate[0])
        tried_rates = dict(zip(map(str, config.learning_rates), losses, strict=True))
        return {"made_from": made_from, **self._told(bench, study, plan, rate[0], tried_rates)}

    def _make(self, study: Study, plan: Plan, rate: float) -> None:
        """Everything after the learning rate, in an order in which a study that was stopped says something already."""
        random = [self.random(seed, rate) for seed in range(plan.random)]
        rules = [self.rule(rule, seed, rate) for seed in range(plan.rule) for rule in self.rules]
        untrained = Arm("untrained", "", 0, (), 0, 0.0, 0.0)
        study.finish([*random[:LEAST_RANDOM], untrained, *_mixed(rules, random[LEAST_RANDOM:])])
        study.finish(self._extras(rate, plan.length, plan.rule, plan.extras))
        if "third" in plan.extras:
            results = Results(list(study.done.values()), self.rules, rate)
            found = [results.verdicts(test) for test in self.tests]
            finalists = dict.fromkeys(min(each, key=lambda rule: each[rule].mean) for each in found)
            third = [self.random(seed, rate / 3, "third") for seed in range(LEAST_RANDOM)]
            third += [self.rule(rule, seed, rate / 3, "third") for rule in finalists for seed in range(plan.rule)]
            study.finish(third)

    def _extras(self, rate: float, length: int, rule_arms: int, extras: Sequence[str]) -> list[Arm]:
        made: dict[str, Callable[[], list[Arm | None]]] = {
            "more": lambda: [
                self.random(seed, rate, "more", times) for times in self.more for seed in range(planning.MORE_ARMS)
            ],
            "length": lambda: [self.of_lengths(rule, seed, rate) for rule in self.rules for seed in range(length)],
            "whole": lambda: [self.whole(seed, rate) for seed in range(planning.WHOLE_ARMS)],
            "total": lambda: [self.at_total(rule, seed, rate) for rule in self.rules for seed in range(rule_arms)],
        }
        return [arm for name in extras if name in made for arm in made[name]() if arm is not None]

    # ---- the plan ----

    def _planned(self, bench: Bench, study: Study, arms: Sequence[Arm]) -> Plan:
        """The plan that these options had when they were first given, so that a study goes on as it began; else a new one."""
        options = {  # the tasks by what they ask, as they are in an arm's identity, not by their names
            name: value
            for name, value in dataclasses.asdict(self.config).items()
            if name not in ("study", "out", "lm_eval")
        }
        identity = digest([options, self.rules, bench.identity(arms[0]), self.budget])
        path = self.path / "plans" / f"{identity[:12]}.json"
        study.once(path, lambda: self._new_plan(bench, arms))
        found = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
        plan = Plan(**values)
        if _is_first():
            self._say(plan, bench)
        study.expect(plan.arms, plan.seconds)
        return plan

    def _new_plan(self, bench: Bench, arms: Sequence[Arm]) -> dict[str, Any]:
        say("measuring how long an arm takes ...")
        config, costs = self.config, self._costs(bench.rates(arms[0]), arms)
        seconds = config.budget_minutes * 60 * int(os.environ.get("WORLD_SIZE", "1"))
        return dataclasses.asdict(make_plan(costs, seconds, config.random_arms, config.rule_arms, config.extras))

    def _costs(self, rates: Rates, arms: Sequence[Arm]) -> Costs:
        def seconds(kind: Kind, rule: str) -> float:
            seen = [arm.epochs * self.pool.total[np.isin(self.pool.row_id, arm.rows)].sum() for arm in arms
                    if (arm.kind, arm.rule) == (kind, rule)]  # fmt: skip
            return rates.train * float(np.mean(seen)) if seen else 0.0

        def of(kind: Kind) -> Mapping[str, float]:
            return {rule: cost for rule in self.rules if (cost := seconds(kind, rule))}

        return Costs(rates.judge, seconds("random", ""), of("rule"), of("total"), of("length"),
                     len(self.config.learning_rates), len(self.tests), self.more)  # fmt: skip

    def _say(self, plan: Plan, bench: Bench) -> None:
        sets = ", ".join(f"{name} {len(rows)} rows" for name, rows in bench.sets.items())
        sets += bench.tasks.words()
        average = self.budget / float(self.pool.response.mean())
        seeds = range(plan.rule if "total" in plan.extras else 0)
        unequal = [rule for rule in self.rules if any(self.at_total(rule, seed, 0.0) is None for seed in seeds)]
        if unequal:
            say(
                f"note: no subset by {', '.join(unequal)} comes within {TOLERANCE:.0%} of the total tokens of average rows; equal total "
                "tokens cannot be compared there"
            )
        say(
            f"model {self.rows.name}; pool {len(self.pool.row_id)} rows; judged on: {sets}\n"
            f"an arm: {self.budget} response tokens (of {average:.0f} average rows), {self.steps} steps, {self.config.epochs:g} "
            f"epoch{'' if self.config.epochs == 1 else 's'}\n" + plan.words(self.rules, len(self.config.learning_rates))
        )

    # ---- what came of it ----

    def _told(self, bench: Bench, study: Study, plan: Plan, rate: float, tried: Mapping[str, float]) -> dict[str, Any]:
        done: list[Done] = list(study.done.values())
        results = Results(done, self.rules, rate)
        options = dataclasses.asdict(absolute(self.config))
        found: dict[str, Any] = {
            "options": {name: value for name, value in options.items() if name not in ("study", "out")},
            "scoring_model": self.folder.facts(ScoreFacts).model,
            "model": self.base.identity(),
            "training": bench.training(rate),
            "learning_rates": tried,
            "pool": {"rows": len(self.pool.row_id), "response_tokens": int(self.pool.response.sum()),
                     "held_out": len(self.rows.held_out)},
            "budget": {"response_tokens": self.budget, "steps": self.steps, "epochs": self.config.epochs},
            "plan": {name: value for name, value in dataclasses.asdict(plan).items() if name != "seconds"},
            "test_files": {name: dataclasses.asdict(facts) for name, facts in self.rows.tests.items()},
            "tests": {name: results.of_test(name, HELD_OUT) for name in self.tests},
            "arms": [each.facts() for each in sorted(done, key=lambda d: (d.arm.name, d.arm.learning_rate))],
        }  # fmt: skip
        if self.tasks:
            found["lm_eval"] = of_tasks(results, self.tasks)
        return {name: json_able(value) for name, value in found.items()}


def _mixed(rules: Sequence[Arm], random: Sequence[Arm]) -> list[Arm]:
    """Both lists in turn, so that either is as far along as the other at any time."""
    keyed = [((i + 0.5) / len(arms), arm) for arms in (rules, random) for i, arm in enumerate(arms)]
    return [arm for _, arm in sorted(keyed, key=lambda pair: pair[0])]
