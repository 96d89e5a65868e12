"""What is read off a batch: one file a probe."""

from __future__ import annotations

from instruct_prune.errors import InputError
from instruct_prune.measure.probes.gradient import Gradient
from instruct_prune.measure.probes.loss import Loss
from instruct_prune.measure.probes.probe import Probe
from instruct_prune.measure.probes.state import HOW, State
from instruct_prune.registry import load_attribute, suggestion

__all__ = ["Gradient", "Loss", "Probe", "State", "parse_probe"]


def parse_probe(text: str) -> Probe:
    """Read one entry of ``--probes``: ``mean``, ``weighted@12`` (after 12 blocks), ``last``, ``gradient``, ``gradient@8192`` (of
    another width), or ``module:Class``.

    Raises:
        InputError: an unknown name, a depth that is no number, or a class that is no `Probe`.
    """
    if ":" in text:
        found = load_attribute(text, "--probes")
        probe = found() if isinstance(found, type) else found
        if not isinstance(probe, Probe):
            raise InputError(f"--probes {text}: expected a subclass of instruct_prune.Probe, found {found!r}.")
        return probe
    how, at, depth = text.partition("@")
    if how == "gradient":
        if at and not depth.isdigit():
            raise InputError(f"--probes {text}: the width of a gradient sketch is a number, such as gradient@8192.")
        return Gradient(int(depth)) if at else Gradient()
    if how not in HOW:
        raise InputError(
            f"--probes {text}: unknown probe {how!r}.{suggestion(how, (*HOW, 'gradient'))} Known: {', '.join(HOW)}, each with "
            "@DEPTH where you like, gradient (or gradient@WIDTH), or your own as module:Class."
        )
    if at and not (depth.isdigit() and int(depth)):
        raise InputError(f"--probes {text}: a depth is a number of blocks, 1 or more.")
    return State(how, int(depth) if at else None)
