"""From subnet specifications to passes over the data: what one sweep of forward passes computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.registry import suggestion

DENSE = SubnetSpec("dense")
ALONE = SubnetSpec("alone")

ORDER = ("dense", "magnitude", "random", "dropout", "depth", "alone")


@dataclass(frozen=True)
class Preset:
    """A named list of subnets and the score that is made of them.

    Attributes:
        subnets: in the notation of ``--subnets``.
        score: name of the aggregate.
        about: one line for people.
    """

    subnets: tuple[str, ...]
    score: str
    about: str


PRESETS = {
    "dlc": Preset(("magnitude:1.0,0.8,0.64",), "dlc", "the paper's ladder: interval 0.2, three subnets, compounding"),
    "dlc-released": Preset(
        ("magnitude:1.0,0.8,0.8",), "dlc", "as the released LLM loop runs: its third subnet equals its second"
    ),
    "lc-dropout": Preset(("dropout:" + ",".join(f"0.{i}" for i in range(1, 10)),), "lc", "first version of the paper"),
    "perplexity": Preset(("dense",), "perplexity", "the dense model only"),
    "ifd": Preset(("dense", "alone"), "ifd", "instruction-following difficulty (Cherry_LLM)"),
}


@dataclass(frozen=True)
class Pass:
    """Subnets that one sweep over the data computes: one, or all exit depths together."""

    subnets: tuple[SubnetSpec, ...]

    @property
    def name(self) -> str:
        return (
            self.subnets[0].name
            if len(self.subnets) == 1
            else "depth_" + "_".join(f"{int(s.value):02d}" for s in self.subnets)
        )

    @property
    def alone(self) -> bool:
        return self.subnets[0].kind == "alone"


def parse_subnets(texts: Sequence[str], n_seeds: int = 1) -> tuple[SubnetSpec, ...]:
    """Read ``--subnets``: presets and lists such as ``magnitude:1.0,0.8`` or ``magnitude-global:0.5``.

    Repeated subnets stay repeated (``dlc-released``): they are scored once and weighted by their number.

    Args:
        texts: one entry for each word given.
        n_seeds: mask seeds 0..n_seeds-1 for random and dropout subnets.

    Raises:
        InputError: unknown name, a value that is not a number or out of range.
    """
    if n_seeds < 1:
        raise InputError(f"--subnet-seeds {n_seeds}: at least one seed is needed.")
    found: list[SubnetSpec] = []
    for text in texts:
        words = PRESETS[text].subnets if text in PRESETS else (text,)
        for word in words:
            found += _parse_one(word, n_seeds)
    if not found:
        raise InputError(
            "--subnets is empty. Name a preset (" + ", ".join(PRESETS) + ") or a list such as magnitude:1.0,0.8."
        )
    return tuple(found)


def score_name_of(texts: Sequence[str]) -> str:
    """The score a preset stands for; "dlc" for an explicit list, "perplexity" for a lone dense model."""
    named = [PRESETS[t].score for t in texts if t in PRESETS]
    if named:
        return named[0]
    return "loss" if list(texts) == ["dense"] else "dlc"


def _parse_one(text: str, n_seeds: int) -> list[SubnetSpec]:
    family, _, values = text.partition(":")
    kinds = [*ORDER, "magnitude-global"]
    if family not in kinds:
        raise InputError(
            f"unknown subnet {text!r} in --subnets.{suggestion(family, [*kinds, *PRESETS])} Presets: {', '.join(PRESETS)}. "
            f"Families: {', '.join(kinds)}, with values after a colon, as in magnitude:1.0,0.8,0.64."
        )
    if family in ("dense", "alone"):
        if values:
            raise InputError(f"--subnets {text}: {family} takes no values.")
        return [SubnetSpec(family)]
    if not values:
        raise InputError(
            f"--subnets {family}: give values after a colon, as in {family}:{'6,12' if family == 'depth' else '0.8'}."
        )
    numbers = [_number(text, word) for word in values.split(",") if word.strip()]
    specs: list[SubnetSpec] = []
    for number in numbers:
        specs += _spec(text, family, number, n_seeds)
    return specs


def _number(text: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise InputError(f"--subnets {text}: {word.strip()!r} is not a number.") from None


def _spec(text: str, family: str, value: float, n_seeds: int) -> list[SubnetSpec]:
    if family == "depth":
        if value != int(value) or value < 1:
            raise InputError(f"--subnets {text}: a depth is a number of blocks, 1 or more, not {value:g}.")
        return [SubnetSpec("depth", value)]
    if family == "dropout":
        if not 0 <= value < 1:
            raise InputError(f"--subnets {text}: a dropout rate lies in [0, 1), not {value:g}.")
        return [SubnetSpec("dropout", value, seed) for seed in range(n_seeds)] if value else [DENSE]
    if not 0 < value <= 1:
        raise InputError(f"--subnets {text}: a density lies in (0, 1], not {value:g}.")
    if round(value, 3) != value:
        raise InputError(f"--subnets {text}: give densities with at most three decimals, not {value!r}.")
    if value == 1:
        return [DENSE]
    if family == "random":
        return [SubnetSpec("random", value, seed) for seed in range(n_seeds)]
    return [SubnetSpec("magnitude", value, scope="global" if family == "magnitude-global" else "layerwise")]


def plan_passes(subnets: Iterable[SubnetSpec]) -> tuple[Pass, ...]:
    """Order the distinct subnets so that weights change little: families together, densities from high to low."""
    distinct = sorted(set(subnets), key=lambda s: (ORDER.index(s.kind), s.scope, s.seed, -s.value))
    depths = tuple(sorted((s for s in distinct if s.kind == "depth"), key=lambda s: s.value))
    passes = [Pass((s,)) for s in distinct if s.kind not in ("depth", "alone")]
    if depths:
        passes.append(Pass(depths))
    if ALONE in distinct:
        passes.append(Pass((ALONE,)))
    return tuple(passes)
