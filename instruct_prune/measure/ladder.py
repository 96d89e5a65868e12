"""From ``--subnets`` to the ladder: presets, and lists such as ``magnitude:1.0,0.8``. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from instruct_prune.config import Preset
from instruct_prune.errors import InputError
from instruct_prune.measure.adapter import AdapterFolder, adapter_name
from instruct_prune.measure.subnet import ALONE, BLIND, DENSE, FULL, SubnetSpec
from instruct_prune.registry import suggestion

FAMILIES = {
    "dense": "all weights; the default",
    "magnitude": "the largest weights of each layer, as magnitude:1.0,0.8 (shares that are kept)",
    "magnitude-global": "the largest weights of the whole model, as magnitude-global:0.9",
    "random": "a seeded choice of weights, as random:0.8",
    "dropout": "a fixed, seeded set of hidden units left out, as dropout:0.1,0.2 (shares that are left out)",
    "depth": "the first blocks only, as depth:6,12",
    "adapter": "all weights with a LoRA adapter switched on, as adapter:FOLDER or adapter:NAME=FOLDER",
}
EXAMPLES = {"depth": "6,12", "adapter": "FOLDER"}
VIEWS = (FULL, ALONE, BLIND)
OWN = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_]\w*)(?::(.*))?")
"""A user's own family, ``module:function`` or ``module:function:0.1,0.2``."""


Presets = Mapping[str, Preset]
AUTO = "auto"
"""The preset of which a pilot decides the passes."""

PRESETS: Presets = {
    "dlc": Preset(("magnitude:1.0,0.8,0.64",), "dlc", "the paper's ladder: interval 0.2, three subnets, compounding"),
    AUTO: Preset(("magnitude:1.0,0.8,0.64",), "dlc", "dlc, without the passes that a pilot finds to say nothing new"),
    "dlc-released": Preset(
        ("magnitude:1.0,0.8,0.8",), "dlc", "as the released LLM loop runs: its third subnet equals its second"
    ),
    "lc-dropout": Preset(("dropout:" + ",".join(f"0.{i}" for i in range(1, 10)),), "lc", "first version of the paper"),
    "perplexity": Preset(("dense",), "perplexity", "the dense model only"),
    "ifd": Preset(("dense", "alone"), "ifd", "instruction-following difficulty (Cherry_LLM)"),
}


def parse_subnets(texts: Sequence[str], n_seeds: int = 1, presets: Presets = PRESETS) -> tuple[SubnetSpec, ...]:
    """Read ``--subnets``: presets and lists such as ``magnitude:1.0,0.8``, ``magnitude-global:0.5`` or ``dense@alone``.

    What stands after ``@`` is the view. Repeated subnets stay repeated (``dlc-released``): they are scored once and
    weighted by their number.

    Args:
        texts: one entry for each word given.
        n_seeds: mask seeds 0..n_seeds-1 for random, dropout and the user's own subnets.
        presets: those of the kind of model.

    Raises:
        InputError: unknown name, a value that is not a number or out of range, two subnets of one name.
    """
    if AUTO in texts and len(texts) > 1:
        raise InputError(
            f"--subnets {AUTO} stands alone: it is the ladder {presets[AUTO].subnets[0]}, or what is needed of it."
        )
    if n_seeds < 1:
        raise InputError(f"--subnet-seeds {n_seeds}: at least one seed is needed.")
    found: list[SubnetSpec] = []
    for text in texts:
        for word in presets[text].subnets if text in presets else (text,):
            found += _parse_one(word, n_seeds, presets)
    if not found:
        raise InputError(
            "--subnets is empty. Name a preset (" + ", ".join(presets) + ") or a list such as magnitude:1.0,0.8."
        )
    named: dict[str, SubnetSpec] = {}
    for spec in found:
        if named.setdefault(spec.name, spec) != spec:
            raise InputError(
                f"--subnets: two different subnets would both be called {spec.name!r} ({_told(named[spec.name])} and "
                f"{_told(spec)}), and their losses could not be told apart. Rename your function, name adapters as in "
                "adapter:NAME=FOLDER, or choose values that differ in the first three decimals."
            )
    return tuple(found)


def _told(spec: SubnetSpec) -> str:
    return f"{spec.kind}:{spec.folder or format(spec.value, 'g')}@{spec.view}"


def score_name_of(texts: Sequence[str], presets: Presets = PRESETS) -> str:
    """The score a preset stands for; "dlc" for an explicit list, "loss" for a lone dense model, "drop" with one adapter beside it."""
    named = [presets[t].score for t in texts if t in presets]
    if named:
        return named[0]
    adapters = [text for text in texts if text.startswith("adapter:")]
    if set(texts) - set(adapters) != {"dense"}:
        return "dlc"
    return "drop" if len(adapters) == 1 else "loss"


def _parse_one(text: str, n_seeds: int, presets: Presets) -> list[SubnetSpec]:
    if text in (ALONE, BLIND):
        text = f"dense@{text}"
    weights, at, view = text.rpartition("@") if "@" in text else (text, "", "")
    if at and not (view in VIEWS or OWN.fullmatch(view)):
        raise InputError(
            f"--subnets {text}: unknown view {view!r}.{suggestion(view, VIEWS)} Known: {', '.join(VIEWS)}, or your own as "
            "module:function."
        )
    specs = _parse_weights(text, weights, n_seeds, presets)
    return [replace(spec, view=view) for spec in specs] if at else specs


def _parse_weights(text: str, weights: str, n_seeds: int, presets: Presets) -> list[SubnetSpec]:
    family, _, values = weights.partition(":")
    own = OWN.fullmatch(weights)
    if own is not None and family not in FAMILIES:
        numbers = [_number(text, word) for word in (own[2] or "1").split(",") if word.strip()]
        return [SubnetSpec(own[1], number, seed) for number in numbers for seed in range(n_seeds)]
    if family not in FAMILIES:
        raise InputError(
            f"unknown subnet {text!r} in --subnets.{suggestion(family, [*FAMILIES, ALONE, BLIND, *presets])} Presets: "
            f"{', '.join(presets)}. Families: {', '.join(FAMILIES)}, with values after a colon, as in "
            "magnitude:1.0,0.8,0.64, or your own as module:function:0.1,0.2."
        )
    if family == "dense":
        if values:
            raise InputError(f"--subnets {text}: {family} takes no values.")
        return [DENSE]
    if not values:
        raise InputError(
            f"--subnets {family}: give values after a colon, as in {family}:{EXAMPLES.get(family, '0.8')}."
        )
    if family == "adapter":
        return [_adapter(values)]
    numbers = [_number(text, word) for word in values.split(",") if word.strip()]
    return [spec for number in numbers for spec in _spec(text, family, number, n_seeds)]


def _adapter(text: str) -> SubnetSpec:
    """NAME=FOLDER, or FOLDER, which is then named after itself."""
    name, sign, folder = text.partition("=")
    if not sign or Path(text).expanduser().exists():
        name, folder = adapter_name(text), text
    if not re.fullmatch(r"\w+", name):
        raise InputError(
            f"--subnets adapter:{text}: {name!r} is no name for a column; take letters, digits and underscores."
        )
    AdapterFolder.open(folder)
    return SubnetSpec("adapter", folder=folder, label=name)


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
