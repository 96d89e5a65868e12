"""One model, loaded once, on which every arm is trained and judged."""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from instruct_prune.encode.item import Encoded
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.prove.arms import Arm
from instruct_prune.prove.harness import Tasks
from instruct_prune.prove.readings import Judged, read
from instruct_prune.storage import digest
from instruct_prune.train import (
    TrainConfig,
    attach_lora,
    compute_device,
    evaluate,
    resolved_dtype,
    steps_of,
    train_by_tokens,
    train_rows,
)

if TYPE_CHECKING:
    from instruct_prune.train import Base

VERSION = 2
"""Of what an arm is: one that was made by another version is made anew."""
DECISIVE = (
    "rank",
    "alpha",
    "dropout",
    "target_modules",
    "learning_rate",
    "warmup",
    "schedule",
    "weight_decay",
    "dtype",
)
"""Options of a training that take part in an arm; rows, steps and seeds are its own."""
TIMED_STEPS = 3
TIMED_SHARE = 10


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        train: seconds of training for each token that is seen, prompts included.
        judge: seconds of judging an arm on all sets and tasks.
    """

    train: float
    judge: float


class Bench:
    """Trains and judges arms; each by itself, so that their order and their processes change nothing.

    Args:
        base: the model.
        config: how it is trained; an arm has its own learning rate and seed.
        pool: {row id: its tokens} of all rows that an arm has.
        sets: {name: rows to judge by}.
        tasks: of lm-evaluation-harness to judge by, loaded.
    """

    def __init__(
        self,
        base: Base,
        config: TrainConfig,
        pool: Mapping[int, Encoded],
        sets: Mapping[str, Sequence[Encoded]],
        tasks: Tasks,
    ) -> None:
        self.base, self.config, self.pool, self.sets, self.tasks = base, config, pool, sets, tasks

    @cached_property
    def _held(self) -> CausalLM:
        """The model as it measures, with whatever adapter it has. What it can do was tried before it had any."""
        model = self.base.load(self.config).to(compute_device())
        return self.base.held or CausalLM.holding(model)

    @property
    def _model(self) -> Any:
        return self._held.module

    @cached_property
    def _common(self) -> list[Any]:
        sets = {name: [row.content_hash for row in rows] for name, rows in self.sets.items()}
        return [VERSION, self.base.identity(), sets, *([self.tasks.identity] if self.tasks else [])]

    @cached_property
    def _tokenizer(self) -> Any:
        return copy.deepcopy(self.base.tokenizer)  # the harness gives it a token for padding where it has none

    def _options(self, arm: Arm) -> TrainConfig:
        return dataclasses.replace(self.config, learning_rate=arm.learning_rate, seed=arm.seed)

    def identity(self, arm: Arm) -> str:
        """Digest of all that decides an arm's numbers: model, options, rows, steps, what it is judged by."""
        rows = [self.pool[row].content_hash for row in arm.rows]
        return digest([*self._common, self.training(arm.learning_rate), arm.seed, rows, arm.steps, arm.epochs])

    def training(self, rate: float) -> dict[str, Any]:
        """The options that decide what a training does."""
        options = {name: value for name, value in dataclasses.asdict(self.config).items() if name in DECISIVE}
        return {**options, "learning_rate": rate, "dtype": resolved_dtype(self.config.dtype)}

    def run(self, arm: Arm) -> Judged:
        """Train an arm and judge it; the model is as it was afterwards."""
        if arm.kind == "untrained":
            return self._judge(self._model)
        with self._adapted(arm) as model:
            self._train(model, arm, None)
            return self._judge(model)

    @contextmanager
    def _adapted(self, arm: Arm) -> Iterator[Any]:
        """The model with a fresh adapter; without it again afterwards."""
        with warnings.catch_warnings():
            # peft asks transformers 5 for an attribute by its old name; users can do nothing about it.
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            model = attach_lora(self._model, self._options(arm))
        try:
            yield model
        finally:
            model.unload()

    def rates(self, arm: Arm) -> Rates:
        """Measure what a few steps of an arm and a part of the judging take."""
        with self._adapted(arm) as model:
            self._train(model, arm, 1)  # the first step makes what all others find ready
            began = time.monotonic()
            seen = self._train(model, arm, TIMED_STEPS)
            trained = time.monotonic() - began
            judged = 0.0
            for rows in self.sets.values():
                some = rows[::TIMED_SHARE]
                began = time.monotonic()
                evaluate(model, some, held=self._held)
                took = time.monotonic() - began
                judged += took * sum(len(r.input_ids) for r in rows) / sum(len(r.input_ids) for r in some)
            if self.tasks:
                judged += self.tasks.seconds(model, self._tokenizer)
        return Rates(trained / seen, judged)

    def _train(self, model: Any, arm: Arm, steps: int | None) -> int:
        """All steps of an arm, or the first; returns the tokens that were seen."""
        rows = train_rows(self.pool[row] for row in arm.rows)
        sizes = [row.n_targets for row in rows]
        plan = steps_of(sizes, arm.steps, round(arm.epochs * sum(sizes)), arm.seed)[:steps]
        train_by_tokens(model, rows, plan, self._options(arm), self._held)
        return sum(len(rows[piece.row]) for step in plan for piece in step)

    def _judge(self, model: Any) -> Judged:
        found = {name: evaluate(model, rows, held=self._held) for name, rows in self.sets.items()}
        readings = {name: read(losses.values, losses.offset) for name, losses in found.items()}
        return Judged(readings, self.tasks.judge(model, self._tokenizer) if self.tasks else {})

    def tokens(self, arm: Arm) -> tuple[int, int]:
        """Response tokens and all tokens of an arm's rows."""
        rows = [self.pool[row] for row in arm.rows]
        return sum(int(row.response_mask.sum()) for row in rows), sum(len(row.input_ids) for row in rows)
