"""Which weights of the model, on which view of the row: what one column of losses was measured with."""

from __future__ import annotations

from dataclasses import dataclass, replace

FULL, ALONE, BLIND = "full", "alone", "blind"
"""Views that every run knows: the whole row, the response without its prompt (for IFD), and the row without its pictures."""


@dataclass(frozen=True, slots=True, order=True)
class SubnetSpec:
    """One sub-network of the base model: part of its capacity removed, or an adapter added (docs/method.md, section 2).

    Attributes:
        kind: "dense", "magnitude", "random", "dropout", "depth", "adapter", or the user's own as ``module:function``.
        value: density in (0, 1] for magnitude and random, rate in [0, 1) for dropout, number of blocks for depth.
        seed: for random, dropout and the user's own.
        scope: "layerwise" or "global", for magnitude.
        view: what of the row the model sees: "full", "alone", "blind", or the user's own as ``module:function``.
        folder: of an adapter.
        label: what an adapter is called.
    """

    kind: str
    value: float = 1.0
    seed: int = 0
    scope: str = "layerwise"
    view: str = FULL
    folder: str = ""
    label: str = ""

    @property
    def name(self) -> str:
        """The column suffix: ``magnitude_0800``, ``random_0800_s1``, ``depth_06``, ``adapter_math``, ``alone``,
        ``magnitude_0800_alone``."""
        if self.view == FULL:
            return self._weights_name
        view = self.view.rpartition(":")[2]
        return view if self.kind == "dense" else f"{self._weights_name}_{view}"

    @property
    def _weights_name(self) -> str:
        thousandths = f"{round(self.value * 1000):04d}"
        if self.kind == "dense":
            return "dense"
        if self.kind == "magnitude":
            return f"magnitude_{thousandths}" + ("_global" if self.scope == "global" else "")
        if self.kind == "adapter":
            return f"adapter_{self.label}"
        if self.kind == "depth":
            return f"depth_{int(self.value):02d}"
        return f"{self.kind.rpartition(':')[2]}_{thousandths}_s{self.seed}"

    @property
    def is_full(self) -> bool:
        """Whether the model sees the whole row."""
        return self.view == FULL

    @property
    def is_averaged(self) -> bool:
        """Whether its losses are averaged into a score: those of the whole row, without an adapter."""
        return self.is_full and self.kind != "adapter"

    @property
    def depth(self) -> int | None:
        """The number of blocks after which the loss is read, None for all of them."""
        return int(self.value) if self.kind == "depth" else None

    @property
    def weights(self) -> SubnetSpec:
        """What has to be done to the weights, whatever is read and seen: the same for all exit depths and views."""
        return DENSE if self.kind == "depth" else replace(self, view=FULL)


DENSE = SubnetSpec("dense")
