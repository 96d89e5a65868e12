"""What the options ask to be measured."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from instruct_prune.config import EmbedConfig, ScoreConfig
from instruct_prune.errors import InputError
from instruct_prune.measure.adapter import AdapterFolder
from instruct_prune.measure.ladder import AUTO, PRESETS, Preset, parse_subnets, score_name_of
from instruct_prune.measure.measurement import Measurement, measurements_of
from instruct_prune.measure.probes import Probe, State, parse_probe
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models.model import Model
from instruct_prune.registry import class_name, own_code
from instruct_prune.run.embed import by_model
from instruct_prune.score.pilot import PILOT

EVERY = "every"
"""In a preset's probes: the mean state at every depth of the model."""


class Wanted:
    """What the options ask to be measured.

    Attributes:
        ladder: the subnets, repeated as often as they count.
        score: what they are made into.
        tolerance: with ``--subnets auto``, the rank correlation at which passes are saved; else None.
        for_score: the probes that are asked for, beside those that the embedder and the target read, in a pass of their own if need be.
        texts: all probes.
    """

    def __init__(
        self, model: Model, config: ScoreConfig, embed: EmbedConfig | None, target: tuple[str, ...] = ()
    ) -> None:
        presets = {**PRESETS, **{name: Preset(*entry) for name, entry in model.ladders.items()}}
        self.model = model
        self.config = config
        self.ladder: tuple[SubnetSpec, ...] = parse_subnets(config.subnets, config.subnet_seeds, presets)
        self.score = score_name_of(config.subnets, presets)
        self.tolerance = config.tolerance if AUTO in config.subnets else None
        named = [word for text in config.subnets if text in presets for word in presets[text].probes]
        if len(config.subnets) > 1 and EVERY in named:
            raise InputError(f"--subnets {self.score} stands alone: it is read off the states of the dense model.")
        if not any(spec.is_averaged for spec in self.ladder):
            raise InputError(
                f"--subnets {' '.join(config.subnets)}: no score can be made of it, since adapters and losses of the response alone "
                "are not averaged. Name dense beside it."
            )
        if model.compares and any(spec.depth is not None for spec in self.ladder):
            raise InputError(
                f"--subnets depth is for language models: {type(model).__name__} compares states of the whole model. Use dlc, "
                "knn_lc or magnitude-global:0.9."
            )
        pooling = by_model(model, embed)
        reference = ["mean"] if model.compares else []
        self.for_score = tuple(dict.fromkeys([*named, *config.probes, *reference]))
        self.texts = tuple(dict.fromkeys([*self.for_score, *target, *([pooling] if pooling else [])]))

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the numbers beside rows, dtype and batches."""
        adapters = {s.name: AdapterFolder.open(s.folder).identity for s in self.ladder if s.kind == "adapter"}
        return {
            "model": dict(self.model.identity),
            "subnets": [spec.name for spec in self.ladder],
            "probes": list(self.texts),
            "include_head": self.config.include_head,
            "share_prefix": self.config.share_prefix,
            **({} if self.tolerance is None else {"auto": {"tolerance": self.tolerance, "pilot": PILOT}}),
            **({"adapters": adapters} if adapters else {}),
            **own_code([class_name(self.model)], "--model"),
            **own_code([name for spec in self.ladder for name in (spec.kind, spec.view)], "--subnets"),
            **own_code(self.texts, "--probes"),
        }

    @cached_property
    def measurements(self) -> tuple[Measurement, ...]:
        """Known when the weights are: a preset may ask for every depth."""
        probes: list[Probe] = []
        for text in self.texts:
            probes += [State("mean", d) for d in self.model.depths()] if text == EVERY else [parse_probe(text)]
        return measurements_of(self.ladder, probes)
