"""What a score declares: the columns it needs and its parameters; the scores by name; and one score a row of measured columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Float32
from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.plugin import Needs, Plugin, find_plugin
from instruct_prune.score.columns import ADAPTED, LABEL, LOSS, POOLED, Columns
from instruct_prune.score.table import ScoreTable

SCORES: dict[str, str] = {
    "dlc": "instruct_prune.score.losses:dlc",
    "lc": "instruct_prune.score.losses:lc",
    "loss": "instruct_prune.score.losses:loss",
    "perplexity": "instruct_prune.score.losses:perplexity",
    "ifd": "instruct_prune.score.losses:ifd",
    "drop": "instruct_prune.score.losses:drop",
    "visual": "instruct_prune.score.losses:visual",
    "knn_lc": "instruct_prune.score.knn:knn_lc",
}
"""{name: "module:function"}. One file and one line here add a score."""

LADDER = "ladder"
"""The need of all subnets that are averaged."""

Rule = Callable[..., Float32]
"""A score's function: Columns by position, its parameters by name -> float32 [n], higher = harder."""


@dataclass(frozen=True)
class Score(Plugin):
    """A score: a function of measured columns, with what it declares.

    Attributes:
        needs: names of columns ("loss_dense", "loss_alone", "label", those of the user's probes), "ladder" (the subnets
            that are averaged), "pooled_" (pooled states of any depths) or "loss_adapter_" (the loss with any adapter).
    """

    word: ClassVar[str] = "score"

    def __call__(self, *columns: Columns, **parameters: Any) -> Float32:
        values: Float32 = self.function(*columns, **parameters)
        return values

    def check(self, columns: Columns, params: Mapping[str, Any] | None = None) -> None:
        """Refuse columns that lack what the score needs.

        Raises:
            InputError: they do; the message says what is missing. Or the parameters are wrong.
        """
        for need in self.needs_of(params):
            if need == LADDER:
                if not columns.ladder:
                    raise InputError(
                        f"{self}: no subnet is left to average; all were left out (collapsed or weight 0). Score milder "
                        "subnets, or pass --include-collapsed."
                    )
                missing = [name for name in columns.ladder if name not in columns]
            elif need == POOLED:
                missing = [] if columns.pooled() else ["the pooled states"]
            elif need == ADAPTED:
                missing = (
                    [] if columns.adapted() else ["the loss with an adapter, as in --subnets dense adapter:FOLDER"]
                )
            else:
                missing = [] if need in columns else [need]
            if missing:
                raise InputError(
                    f"{self} needs {_named(missing[0])}, which was not measured (there are: {', '.join(columns)}). "
                    "Score again with it."
                )


def score(*, needs: Needs = ()) -> Callable[[Rule], Score]:
    """Declare a score. Its keyword parameters are read off its signature and reach the command line.

    Example:
        >>> @score(needs=("loss_dense", "loss_magnitude_0500"))
        ... def drop(columns: Columns, *, power: float = 1.0) -> Float32:
        ...     "How much half of the weights matter for a row."
        ...     return (columns["loss_magnitude_0500"] - columns["loss_dense"]) ** power

    Args:
        needs: names of columns, or a function that takes the parameters by name and returns such names.
    """

    def declare(rule: Rule) -> Score:
        return Score(rule.__name__, rule, needs)

    return declare


def find_score(name: str | Rule | Score) -> Score:
    """The score of this name, or one of the user's own.

    Args:
        name: a name in SCORES, a ``package.module:function`` of the user's, or, in Python, the function itself. A
            function that declares nothing is called, and refused when it reads a column that was not measured.

    Raises:
        InputError: there is no such score.
    """
    return find_plugin(Score, SCORES, name, "--score", score())


def _named(column: str) -> str:
    if column == LABEL:
        return "the class of each row"
    return f"the subnet {column.removeprefix(LOSS)!r}" if column.startswith(LOSS) else column


def aggregate(columns: Columns, name: str | Rule | Score = "dlc", params: Mapping[str, Any] | None = None) -> Float32:
    """One score a row from measured columns, higher = harder; NaN where a column is NaN.

    Example:
        >>> aggregate(Columns({"loss_dense": np.array([1.0, 2.0])}), "perplexity")
        array([2.7182817, 7.389056 ], dtype=float32)

    Args:
        columns: of n rows.
        name: as `find_score` takes it.
        params: the score's parameters by name.

    Returns:
        float32 [n].

    Raises:
        InputError: unknown score or parameter, a column that it needs is missing, nothing is left to average, or a score
            of the user's own returns something else than one number a row.
    """
    found = find_score(name)
    bound = found.bind(params)
    found.check(columns, bound)
    values = np.asarray(found(columns, **bound))
    if values.shape != (len(columns),) or values.dtype.kind not in "fiub":
        raise InputError(
            f"{found} returned {values.dtype} {values.shape} for {len(columns)} rows; it must return one number a row."
        )
    return values.astype(np.float32, copy=False)


def rescored(
    table: ScoreTable,
    name: str | Rule | Score,
    *,
    subnets: Sequence[SubnetSpec] | None = None,
    weights: Sequence[float] | None = None,
    leave_out: Sequence[str] = (),
    params: Mapping[str, Any] | None = None,
    more: Mapping[str, NDArray[Any]] | None = None,
) -> ScoreTable:
    """The same losses under another score.

    Args:
        table: of n rows.
        name: as `find_score` takes it.
        subnets: which are averaged, repeated as often as they count; those of `SubnetSpec.is_averaged` when not given.
        weights: one for each of ``subnets``.
        leave_out: names of collapsed subnets. Only an average can leave a subnet out: other scores name their columns.
        params: the score's parameters by name.
        more: further columns by name, [n] or [n, d] (pooled states, classes, those of the user's probes).

    Raises:
        InputError: as `aggregate` and `Columns.of_losses`.
    """
    losses = {spec: table.losses[:, j] for j, spec in enumerate(table.subnets)}
    out = [spec for spec in table.subnets if spec.name in leave_out]
    found = find_score(name)
    values = aggregate(Columns.of_losses(losses, subnets, weights, out, more), found, params)
    return replace(table, score=values, score_name=found.name)
