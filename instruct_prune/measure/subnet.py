"""Which weights of the model: the name of one sub-network."""

from __future__ import annotations

from dataclasses import dataclass

SUBNET_KINDS = ("dense", "magnitude", "random", "dropout", "depth", "alone")


@dataclass(frozen=True, slots=True, order=True)
class SubnetSpec:
    """One sub-network of the base model (METHOD: part of its capacity removed, nothing trained).

    Attributes:
        kind: one of SUBNET_KINDS. "alone" is the dense model on the response without its prompt (for IFD).
        value: density in (0, 1] for magnitude and random, rate in [0, 1) for dropout, number of blocks for depth.
        seed: for random and dropout.
        scope: "layerwise" or "global", for magnitude.
    """

    kind: str
    value: float = 1.0
    seed: int = 0
    scope: str = "layerwise"

    @property
    def name(self) -> str:
        """The column suffix: ``magnitude_0800``, ``random_0800_s1``, ``dropout_0100_s0``, ``depth_06``."""
        thousandths = f"{round(self.value * 1000):04d}"
        if self.kind in ("dense", "alone", "features"):
            return self.kind
        if self.kind == "magnitude":
            return f"magnitude_{thousandths}" + ("_global" if self.scope == "global" else "")
        if self.kind == "depth":
            return f"depth_{int(self.value):02d}"
        return f"{self.kind}_{thousandths}_s{self.seed}"
