"""Rules of a proof: what ``--rules`` names, and the rows that each of them takes for a budget of response tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from instruct_prune.arrays import Int64, positions_of
from instruct_prune.config import SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.prove.arms import draw_among
from instruct_prune.prove.config import ProveConfig
from instruct_prune.registry import suggestion
from instruct_prune.run.asked import check_selection
from instruct_prune.run.by import find_by
from instruct_prune.run.drawing import Drawing, prepare
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import SelectFacts
from instruct_prune.run.row_facts import SOURCE, stratum_of
from instruct_prune.run.rows import rows_of
from instruct_prune.run.select import selection_of
from instruct_prune.run.target_facts import TargetFacts
from instruct_prune.score.scores import find_score
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import METHODS

SELECTION, BALANCED, ORACLE = "selection", "balanced", "oracle"
OWN = (SELECTION, BALANCED, ORACLE)
"""Rules that are no ``--method``."""

Draw = Callable[[int, int], Int64]
"""A rule: (response tokens, seed) -> positions among the rows that arms may have, ascending."""


def named_rules(folder: RunFolder, config: ProveConfig) -> tuple[str, ...]:
    """The rules that are asked for; without a name the run's own selection, else what the run would select by."""
    if config.rules:
        return config.rules
    if folder.find(SelectFacts) is not None:
        return (SELECTION,)
    return ("flexrand", *(("targeted",) if folder.find(TargetFacts) is not None else ()))


def check_rule(rule: str) -> None:
    """Refuse what is no rule, before anything is loaded.

    Raises:
        InputError: there is no such rule, score or way to compare.
    """
    head, _, variant = rule.partition(":")
    if head == ORACLE:
        column, sign, value = variant.partition("=")
        if not (column and sign and value):
            raise InputError(f"--rules {rule}: write oracle:COLUMN=VALUE, as in oracle:source=gsm8k.")
    elif head != SELECTION:
        if ":" not in rule and head not in (*METHODS, BALANCED):
            known = [*OWN, *METHODS]
            raise InputError(f"unknown --rules {rule!r}.{suggestion(rule, known)} Known: {', '.join(known)}; or your own, as "
                             "package.module:function.")  # fmt: skip
        check_selection(select_config(rule))
    elif variant:
        raise InputError(f"--rules {rule}: {SELECTION} has no variants.")


def select_config(rule: str, keep_tokens: int = 1) -> SelectConfig:
    """The selection that a rule stands for: a method, METHOD:SCORE, targeted:BY, or the user's own package.module:function."""
    head, _, variant = rule.partition(":")
    if head == BALANCED:
        return SelectConfig(method="random", stratify=variant or SOURCE, balanced=True, keep_tokens=keep_tokens)
    if head not in METHODS:
        return SelectConfig(method=rule, keep_tokens=keep_tokens)
    config = SelectConfig(method=head, keep_tokens=keep_tokens)
    if not variant:
        return config
    if head == "targeted":
        find_by(variant)
        return dataclasses.replace(config, by=variant)
    find_score(variant)
    return dataclasses.replace(config, score=variant)


class Rules:
    """Draws of every rule from the rows that arms may have.

    Args:
        folder: a scored run.
        table: its scores; rows that no arm may have are not scored in it.
    """

    def __init__(self, folder: RunFolder, table: ScoreTable) -> None:
        self.folder, self.table = folder, table
        self.row_id: Int64 = table.row_id[table.scored]
        self.response: Int64 = table.n_response[table.scored].astype(np.int64)
        self.total: Int64 = self.response + table.n_prompt[table.scored]
        self._drawings: dict[str, Drawing] = {}

    def selected(self) -> Int64:
        """Positions of the rows that the run's own selection keeps, of those that arms may have."""
        return np.flatnonzero(np.isin(self.row_id, selection_of(self.folder).kept))

    def find(self, rule: str, budget: int) -> Draw:
        """The draw of a rule.

        Args:
            rule: as `check_rule` takes it.
            budget: response tokens of the arms, for which the run's selection is taken as it is where it has them.

        Raises:
            InputError: what the rule needs is not there, or the rows that it may take have fewer tokens.
        """
        head, _, variant = rule.partition(":")
        if head == ORACLE:
            return self._oracle(rule, variant, budget)
        if head == SELECTION:
            return self._selection()
        return self._method(rule, select_config(rule, budget))

    def _selection(self) -> Draw:
        kept = self.selected()
        own = int(self.response[kept].sum())
        again = self._method(SELECTION, self._options)
        return lambda tokens, seed: kept if tokens == own else again(tokens, seed)

    @cached_property
    def _options(self) -> SelectConfig:
        """The options of the run's selection, for another budget; rows that had to be kept do not."""
        known: Mapping[str, Any] = self.folder.require(SelectFacts).config
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in known.items()
        }
        options["decontaminate"] = tuple(path for path, _ in known.get("decontaminate", ()))
        return dataclasses.replace(SelectConfig(**options), keep=None, keep_tokens=1, must_keep=None)

    def _method(self, name: str, config: SelectConfig) -> Draw:
        def draw(tokens: int, seed: int) -> Int64:
            if name not in self._drawings:
                try:
                    self._drawings[name] = prepare(self.folder, config, self.table)
                except InputError as error:
                    raise InputError(f"--rules {name}: {error}") from None
            drawing = self._drawings[name]
            kept = drawing.draw(drawing.table, keep_tokens=tokens, seed=seed).kept
            return positions_of(kept, self.row_id, "the pool")

        return draw

    def _oracle(self, rule: str, variant: str, budget: int) -> Draw:
        column, _, value = variant.partition("=")
        found = np.asarray(self._values(column))
        own = np.flatnonzero(found == value)
        tokens = int(self.response[own].sum())
        if tokens < budget:
            raise InputError(
                f"--rules {rule}: {len(own)} rows that arms may have are of {value!r}, with {tokens} response tokens of the {budget} that "
                f"an arm has. There is: {', '.join(sorted(set(found.tolist()))[:10])}."
            )
        return lambda tokens, seed: draw_among(own, self.response, tokens, seed)

    def _values(self, column: str) -> list[str]:
        """A column of the data for the rows that arms may have, as text."""
        values = [stratum_of(row, column) for row in rows_of(self.folder).take(self.row_id)]
        if all(value is None for value in values):
            raise InputError(f"--rules: the data have no column {column!r} (or it is empty in every row).")
        return ["(none)" if value is None else str(value) for value in values]
