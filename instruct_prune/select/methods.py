"""What a selection method declares: the columns it needs, its strata and its parameters; and the methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from instruct_prune.errors import InputError
from instruct_prune.parameter import Value
from instruct_prune.plugin import Needs, Plugin, find_plugin
from instruct_prune.registry import suggestion
from instruct_prune.select.data import Pool
from instruct_prune.select.draw import Draw
from instruct_prune.select.stratum import Codes

METHODS: dict[str, str] = {
    "flexrand": "instruct_prune.select.flexrand:flexrand",
    "easy_diverse": "instruct_prune.select.ranked:easy_diverse",
    "easiest": "instruct_prune.select.ranked:easiest",
    "hardest": "instruct_prune.select.ranked:hardest",
    "random": "instruct_prune.select.ranked:random",
    "longest": "instruct_prune.select.ranked:longest",
    "perplexity_middle": "instruct_prune.select.ranked:perplexity_middle",
    "ifd": "instruct_prune.select.ifd:ifd",
    "ccs": "instruct_prune.select.ccs:ccs",
    "moderate": "instruct_prune.select.moderate:moderate",
    "k_center": "instruct_prune.select.k_center:k_center",
    "herding": "instruct_prune.select.herding:herding",
    "facility_location": "instruct_prune.select.facility_location:facility_location",
    "deita": "instruct_prune.select.deita:deita",
    "d2": "instruct_prune.select.d2:d2",
    "targeted": "instruct_prune.select.targeted:targeted",
}
"""{name: "module:function"}. One file and one line here add a method."""

LOSSES = "losses:"
Strata = Literal["clusters", "all"]
Rule = Callable[..., Codes]
"""A method's function: a Stratum by position, its parameters by name -> Codes."""
Prepare = Callable[[Draw, Mapping[str, Value]], tuple[dict[str, Value], dict[str, Any]]]
"""Settles parameters that depend on the whole selection, before the strata are drawn: takes the selection (without its
method) and all parameters, returns the parameters to draw with and what to note about them in ``Selection.params``."""


@dataclass(frozen=True)
class Method(Plugin):
    """A selection method: a function of a stratum, with what it declares.

    Attributes:
        needs: columns of the pool: "score", "embeddings", "target", "losses:NAME" (the loss under the subnet NAME).
        strata: "clusters" or "all" (one stratum), unless the user says otherwise.
        prepare: see `Prepare`; None for most methods.
    """

    word: ClassVar[str] = "method"

    strata: Strata = "all"
    prepare: Prepare | None = None

    def __call__(self, *stratum: Any, **parameters: Any) -> Codes:
        codes: Codes = self.function(*stratum, **parameters)
        return codes

    def needs_of(self, params: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        needs = super().needs_of(params)
        known = ("score", "embeddings", "target", LOSSES + "dense")
        for need in needs:
            if need not in known and not need.startswith(LOSSES):
                raise InputError(
                    f"{self} says that it needs {need!r}, which is no column of a pool.{suggestion(need, known)} "
                    "Columns are score, embeddings, target and losses:NAME."
                )
        return needs

    def check(self, pool: Pool, params: Mapping[str, Any] | None) -> None:
        """Refuse a pool that lacks what the method needs.

        Raises:
            InputError: it does; the message says how to get it. Or the parameters are wrong.
        """
        for need in self.needs_of(params):
            if need == "embeddings" and pool.embeddings is None:
                raise InputError(f"{self} compares embeddings and there are none: run `instruct-prune embed` first.")
            if need == "target" and pool.target is None:
                raise InputError(
                    f"{self} needs rows that show what the model should become good at: give them with --target FILE."
                )
            if need.startswith(LOSSES) and need.removeprefix(LOSSES) not in pool.losses:
                raise InputError(
                    f"{self} needs the loss of each row under {need.removeprefix(LOSSES)!r}; this run has "
                    f"{', '.join(pool.losses) or 'none'}. Score again with `--subnets` that include it."
                )


def method(
    *, needs: Needs = ("score",), strata: Strata = "all", prepare: Prepare | None = None
) -> Callable[[Rule], Method]:
    """Declare a selection method. Its keyword parameters are read off its signature and reach the command line.

    Example:
        >>> @method(needs=("score", "embeddings"), strata="clusters")
        ... def far_and_hard(stratum: Stratum, *, weight: float = 0.5) -> Codes:
        ...     "The hardest rows, those far from the centre first."
        ...     far = np.linalg.norm(stratum.vectors() - stratum.vectors().mean(axis=0), axis=1)
        ...     return stratum.take(np.argsort(-(stratum.score + weight * far), kind="stable"))

    Args:
        needs: names of columns, or a function that takes the parameters by name and returns such names.
        strata: what the strata are unless the user says otherwise.
        prepare: settles parameters that depend on the whole selection.
    """

    def declare(rule: Rule) -> Method:
        return Method(rule.__name__, rule, needs, strata, prepare)

    return declare


def find_method(name: str | Rule | Method, option: str = "--method") -> Method:
    """The method of this name, or one of the user's own.

    Args:
        name: a name in METHODS, a ``package.module:function`` of the user's, or, in Python, the function itself. A
            function that declares nothing needs a score and takes all rows as one stratum.
        option: where the name was written, for messages.

    Raises:
        InputError: there is no such method.
    """
    return find_plugin(Method, METHODS, name, option, method())
