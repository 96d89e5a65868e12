"""What the options ask to be measured, in waves: what later passes are made from, or decided by, is measured first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.arrays import Float32, Int64
from instruct_prune.config import EmbedConfig, ScoreConfig
from instruct_prune.errors import InputError
from instruct_prune.geometry import blocks
from instruct_prune.measure.adapter import AdapterFolder
from instruct_prune.measure.engine import Spent, Work
from instruct_prune.measure.ladder import AUTO, PRESETS, parse_subnets, score_name_of
from instruct_prune.measure.measurement import Measurement, measurements_of
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.probes import Loss, Probe, State, parse_probe
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.stored import Stored, find, merge_columns
from instruct_prune.measure.subnet import DENSE, SubnetSpec
from instruct_prune.models.model import Blocks, Items, Model
from instruct_prune.registry import class_name, own_code
from instruct_prune.run.embed import by_model
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.measure import describe, plan_work, run_work
from instruct_prune.run.records import EncodeFacts
from instruct_prune.run.reuse import Before
from instruct_prune.score.health import left_out_of, subnet_health
from instruct_prune.score.pilot import PILOT, Decision, decide, pilot_rows
from instruct_prune.storage import digest

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
        presets = {**PRESETS, **model.ladders}
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


@dataclass(frozen=True)
class Measured:
    """Finished passes.

    Attributes:
        model: that was measured.
        works: the waves of passes, all parts written.
        derived: losses that follow from stored states of the dense model.
        spent: what it took.
        piloted: with ``--subnets auto``, what the pilot said.
    """

    model: Model
    works: tuple[Work, ...]
    derived: tuple[Measurement, ...]
    spent: Spent
    piloted: Decision | None = None

    def columns(self, items: Items) -> tuple[dict[Measurement, Float32], dict[int, str]]:
        """Every measurement of one number a row, float32 [n], and {position: error of a failed row}."""
        found: dict[Measurement, Float32] = {}
        errors: dict[int, str] = {}
        for work in self.works:
            some, failed = merge_columns(work, len(items))
            for one, column in some.items():  # a pilot's rows are measured apart from the others
                found[one] = np.where(np.isnan(column), found[one], column) if one in found else column
            errors |= failed
        for one in self.derived:
            column = found[one] = np.full(len(items), np.nan, dtype=np.float32)
            for positions, values in find(self.works[0], f"mean_{DENSE.name}").blocks():
                column[positions] = self.model.losses_of(items, positions, values)
        return found, errors

    def vectors(self) -> list[Stored]:
        """The measurements of several numbers a row."""
        return [
            Stored(work.parts, planned, one)
            for work in self.works
            for planned in work.passes
            for one in planned.a_pass.measurements
            if one.probe.width(self.model) > 1
        ]


class Waves:
    """All passes that the options ask for.

    Without more ado there is one wave. Where losses are relative to states of the dense model, these come first. With
    ``--subnets auto`` the dense model comes first, then the other passes over the pilot, then those that it kept over the rest.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: Model,
        items: Items,
        wanted: Wanted,
        identity: dict[str, Any],
        before: Before | None = None,
    ) -> None:
        self.model, self.items, self.wanted, self.before = model, items, wanted, before
        self.rows = np.flatnonzero(items.scorable).astype(np.int64)
        # Shortcuts change no number, but they decide which rows lie in which part.
        made_from = {"shortcuts": repr(model.shortcuts), "items": folder.require(EncodeFacts).fingerprint}
        self._parts = PartStore(folder / "parts" / "score", digest(identity | made_from))
        self._batch = identity["batch"]
        first, later = list(wanted.measurements), []
        self.derived: tuple[Measurement, ...] = ()
        self.pilot_rows: Int64 | None = None
        if wanted.tolerance is not None:
            names = items.text_columns("content_hash")[0]
            hashes = [names[i] for i in self.rows.tolist()]
            self.pilot_rows = pilot_rows(self.rows, items.lengths[self.rows], hashes)
        if model.compares or self.pilot_rows is not None:
            later = [m for m in first if isinstance(m.probe, Loss) and m.spec != DENSE]
            first = [m for m in first if m not in later]
        if model.compares:
            self.derived = tuple(m for m in first if isinstance(m.probe, Loss))
            first = [m for m in first if m not in self.derived]
        self.first = self._plan(first, self.rows)
        self.pilot: Work | None = None
        self._later = later
        rest = self.rows
        if self.pilot_rows is not None:
            self.pilot = self._plan(later, self.pilot_rows, "pilot")
            rest = np.setdiff1d(self.rows, self.pilot_rows)
        self.rest = self._plan(later, rest) if later else None

    def _plan(self, measurements: Sequence[Measurement], rows: Int64, into: str = "") -> Work:
        parts = PartStore(self._parts.folder / into, self._parts.fingerprint)
        return plan_work(self.model, self.items, measurements, self._batch, parts, rows, self.before)

    @property
    def works(self) -> tuple[Work, ...]:
        """The waves, in order; before the pilot is measured, as if every pass were kept."""
        return tuple(work for work in (self.first, self.pilot, self.rest) if work is not None)

    def describe(self) -> str:
        passes = dict.fromkeys(one.name for work in self.works for one in work.passes)
        told = describe(self.first, self.model, list(passes))
        if self.wanted.tolerance is not None and self.pilot_rows is None:
            return f"{told}; too few rows for a pilot, so all go through the whole ladder"
        if self.pilot_rows is None:
            return told
        return f"{told}; a pilot of {len(self.pilot_rows):,} rows decides which passes the others go through"

    def run(self, folder: RunFolder, config: ScoreConfig, ranks: Ranks) -> Measured | None:
        """All waves; what was measured, on the main process."""
        spent = run_work(folder, self.model, self.first, config, ranks)
        if self.model.compares:
            ranks.broadcast(None)  # every process waits until the main one has seen that the first wave is whole
            self.model.fit(self._reference(folder.path), self.items)
        piloted: Decision | None = None
        if self.pilot is not None:
            spent += run_work(folder, self.model, self.pilot, config, ranks)
            piloted = ranks.broadcast(self._decide() if ranks.is_main else None)
            assert piloted is not None
            kept = [m for m in self._later if m.spec in piloted.kept]
            self.rest = self._plan(kept, np.setdiff1d(self.rows, piloted.rows)) if kept else None
        if self.rest is not None:
            spent += run_work(folder, self.model, self.rest, config, ranks)
        return Measured(self.model, self.works, self.derived, spent, piloted) if ranks.is_main else None

    def _reference(self, folder: Path) -> Blocks:
        """The dense states in the order of the rows, not of the parts: sums are then the same however rows were measured."""
        path = folder / "parts" / "score" / f"reference.{os.getpid()}.npy"
        find(self.first, f"mean_{DENSE.name}").save(path, self.rows)
        states = np.load(path, mmap_mode="r", allow_pickle=False)

        def each() -> Iterator[tuple[Int64, Float32]]:
            for block in blocks(len(self.rows)):
                yield self.rows[block], states[block]

        return each

    def _decide(self) -> Decision:
        assert self.pilot is not None
        assert self.pilot_rows is not None
        assert self.wanted.tolerance is not None
        measured = Measured(self.model, (self.first, self.pilot), self.derived, Spent())
        columns, _ = measured.columns(self.items)
        at, ladder = self.pilot_rows, self.wanted.ladder
        losses = {one.spec: columns[one][at] for one in columns if isinstance(one.probe, Loss)}
        losses = {spec: losses[spec] for spec in dict.fromkeys(ladder)}
        good = np.logical_and.reduce([np.isfinite(column) for column in losses.values()])
        guess = self.items.guess_losses(self.rows)
        guess = guess[np.searchsorted(self.rows, at[good])] if len(guess) else guess
        collapsed = left_out_of(subnet_health(losses, good, guess), ladder)
        decision = decide(losses, ladder, self.items.n_response[at], collapsed, self.wanted.tolerance)
        return replace(decision, rows=at)
