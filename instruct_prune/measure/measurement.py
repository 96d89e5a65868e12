"""Measurement = model x view x subnet x probe, and the passes that take several of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from instruct_prune.errors import InputError
from instruct_prune.measure.ladder import FAMILIES
from instruct_prune.measure.probes import Loss, Probe
from instruct_prune.measure.subnet import ALONE, BLIND, DENSE, FULL, SubnetSpec


@dataclass(frozen=True)
class Measurement:
    """One column (or one vector a row) of a run.

    Attributes:
        spec: which weights, seeing what of the row; with a depth for losses that are read early.
        probe: what is read.
    """

    spec: SubnetSpec
    probe: Probe

    @property
    def column(self) -> str:
        """``loss_magnitude_0800``, ``mean_dense``: its name in the parts and in ``scores.parquet``."""
        return f"{self.probe.name}_{self.spec.name}"


@dataclass(frozen=True)
class Pass:
    """The measurements that one sweep of forward passes takes.

    Attributes:
        weights: what is done to the weights.
        view: what of the row the model sees.
        measurements: what is read, in order.
    """

    weights: SubnetSpec
    view: str
    measurements: tuple[Measurement, ...]

    @property
    def name(self) -> str:
        """Of its folder of parts."""
        return replace(self.weights, view=self.view).name + ("_gradients" if self.needs_grad else "")

    @property
    def needs_grad(self) -> bool:
        return any(m.probe.needs_grad for m in self.measurements)

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths that are read beside the end of the model, ascending."""
        return tuple(sorted({m.probe.depth for m in self.measurements if m.probe.depth is not None}))

    @property
    def pooled(self) -> bool:
        return any(m.probe.pooled for m in self.measurements)


def measurements_of(ladder: Iterable[SubnetSpec], probes: Iterable[Probe]) -> tuple[Measurement, ...]:
    """The loss under each subnet of a ladder, each once, and further readings of the dense model.

    Raises:
        InputError: two of them would have columns of one name.
    """
    found = [Measurement(spec, Loss(spec.depth)) for spec in dict.fromkeys(ladder)]
    found += [Measurement(DENSE, probe) for probe in {(type(probe), probe.name): probe for probe in probes}.values()]
    graded = [one.probe.name for one in found if one.probe.needs_grad]
    if len(graded) > 1:
        raise InputError(f"--probes: {' and '.join(graded)} both read gradients; one of them is read in a run.")
    names = [one.column for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"two of the --subnets and --probes would both be the column {twice!r}. Give one of them another name: a column is "
            "named after the function or the probe, and a value has three decimals."
        )
    return tuple(found)


def plan_passes(measurements: Sequence[Measurement]) -> tuple[Pass, ...]:
    """Group measurements into passes, ordered so that weights change little: densities of a family from high to low.

    What is read of the same weights and view shares a pass, with gradients too: their way forward leaves the loss and the states.
    """
    found: dict[tuple[SubnetSpec, str], list[Measurement]] = {}
    for one in measurements:
        found.setdefault((one.spec.weights, one.spec.view), []).append(one)
    views = sorted({view for _, view in found}, key=lambda view: (view not in (FULL, ALONE, BLIND), view != FULL, view))
    families = [*FAMILIES, *sorted({w.kind for w, _ in found} - FAMILIES.keys())]

    def order(key: tuple[SubnetSpec, str]) -> tuple[int, int, str, int, float]:
        weights, view = key
        return views.index(view), families.index(weights.kind), weights.scope, weights.seed, -weights.value

    return tuple(Pass(key[0], key[1], tuple(found[key])) for key in sorted(found, key=order))
