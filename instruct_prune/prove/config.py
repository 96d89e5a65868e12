"""Options of ``instruct-prune prove``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from instruct_prune.config import Name, Number, Text, Texts
from instruct_prune.errors import InputError

Extra = Literal["more", "length", "whole", "total", "third"]
LEAST_RANDOM = 6
"""Random arms below which nothing is said: their spread would not be known."""


@dataclass(frozen=True)
class ProveConfig:
    """Is the subset worth more than random rows? Train on both, and compare."""

    out: Name = ""
    """The run folder."""
    test: Texts = ()
    """Files of rows to judge by, that nothing was selected by: FILE, or NAME=FILE. Held-out rows of the pool when not given."""
    rules: Texts = ()
    """What is compared with random: selection (the run's own), any --method, METHOD:SCORE such as hardest:loss, targeted:BY such as
    targeted:rds, balanced or balanced:COLUMN (as many tokens of each source), oracle:COLUMN=VALUE (random rows of that source).
    The run's own selection when not given, else flexrand and, where there is a target, targeted."""
    budget_minutes: float = 60.0
    """Time to plan for; the plan is printed, and refused where it cannot hold six random arms and one arm of each rule."""
    train_model: Text = None
    """The model that is trained: Hub id, folder, GGUF file or embedded default; the scoring model when not given."""
    keep_tokens: Number = None
    """Response tokens of an arm; those of the run's selection when not given, else those of 100 average rows, half of the pool at most."""
    epochs: float = 2.0
    """How often an arm sees its rows."""
    batch_size: int = 4
    """Average rows in an optimiser step. Steps are equal in response tokens, and so the same number for every arm."""
    learning_rates: tuple[float, ...] = (2e-4, 6e-4, 2e-3)
    """The one with the lowest loss on held-out rows is taken, tried on random rows alone."""
    random_arms: int = 24
    """Random arms at most, shared by all rules; fewer where the budget says so, never below 6."""
    rule_arms: int = 3
    """Arms of each rule at most."""
    extras: tuple[Extra, ...] = ("more", "length", "whole", "total", "third")
    """What else is trained, as far as the budget goes, in this order: random rows of 2 and 4 times the tokens (what is the subset
    worth?), random rows of each rule's lengths, the whole pool, each rule at equal total tokens, the best again at a third of the rate.
    Nothing after it: none of them."""
    lm_eval: Texts = ()
    """Tasks of lm-evaluation-harness that judge every arm beside the loss: names, or YAML files of your own. They need
    `pip install 'instruct-prune[lm-eval]'`."""
    test_rows: int = 200
    """Rows of each test at most, drawn at random."""
    held_out: int = 100
    """Rows of the pool that no arm trains on, at most a fifth: what is forgotten, and the learning rate, are read off them."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the hardware multiplies it natively."""
    seed: int = 0
    """Seed of what is held out and of the arms."""
    study: Text = None
    """Folder of the arms; RUN/prove when not given. Studies in one folder, also of several runs, share the arms that are the same."""

    def __post_init__(self) -> None:
        for name in ("test", "rules", "lm_eval"):
            given: Any = getattr(self, name)
            if isinstance(given, str):  # ProveConfig(rules="hardest") in Python
                object.__setattr__(self, name, (given,))

    def check(self) -> None:
        """Refuse numbers that make no study.

        Raises:
            InputError: one is out of range, or something is named twice.
        """
        least = {
            "batch_size": 1,
            "rule_arms": 1,
            "test_rows": 10,
            "held_out": 10,
            "seed": 0,
            "random_arms": LEAST_RANDOM,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least {value}.")
        for name in ("budget_minutes", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be above 0.")
        if self.keep_tokens is not None and self.keep_tokens < 1:
            raise InputError(f"--keep-tokens {self.keep_tokens}: at least 1.")
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise InputError("--learning-rates: give rates above 0, as in 2e-4 6e-4.")
        if unknown := [name for name in self.extras if name not in get_args(Extra)]:
            raise InputError(f"--extras {unknown[0]}: known are {', '.join(get_args(Extra))}.")
        for option in ("rules", "extras", "learning_rates", "lm_eval"):
            values = getattr(self, option)
            if len(set(values)) < len(values):
                raise InputError(f"--{option.replace('_', '-')}: one is named twice.")
