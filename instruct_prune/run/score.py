"""Score: read, encode, measure the loss of every row under every subnet, put the parts together."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from instruct_prune.config import DataConfig, EmbedConfig, EncodeConfig, ScoreConfig, SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.measure.engine import Work, run_batch
from instruct_prune.measure.ranks import Ranks
from instruct_prune.models.model import Items, Model
from instruct_prune.progress import clock, say
from instruct_prune.rows import Source
from instruct_prune.rows.table import RowTable
from instruct_prune.run.asked import check_budget
from instruct_prune.run.check import check_batches, check_tolerance
from instruct_prune.run.embed import embed as embed_rows
from instruct_prune.run.encode import encode, make_model
from instruct_prune.run.first import First
from instruct_prune.run.folder import RunFolder, left_of
from instruct_prune.run.lock import alone
from instruct_prune.run.measure import batch_cost
from instruct_prune.run.merge import merge
from instruct_prune.run.records import EmbedFacts, EncodeFacts, RowsFacts, ScoreFacts
from instruct_prune.run.reuse import BEFORE, Before, before_of, keep_before
from instruct_prune.run.row_facts import check_columns
from instruct_prune.run.rows import InMemory, read_rows
from instruct_prune.run.waves import Measured, Wanted, Waves
from instruct_prune.score.table import ScoreTable

if TYPE_CHECKING:
    import datasets

Made = TypeVar("Made")

TIMED_BATCHES = 4


@dataclass(frozen=True)
class Scoring:
    """Every row scored under every subnet, on as many processes as were launched.

    Attributes:
        folder: the run.
        data: what to read.
        encoding: how rows become what the model is given.
        config: the model and its subnets.
        select: the selection that will follow, so that a budget that cannot be met is told before the work.
        embed: the embedding that will follow, so that vectors of the model itself are read in the same pass.
        memory: rows made in Python, in place of files.
        loaded: a model made in Python: (model, tokenizer), or (module, transform) for pictures.
        source: the data, where they are open already.
        dedup_first: leave out the rows that ``select`` would take out as near-duplicates or contaminated.
        target: probes that the target which will follow reads; scores that are there are not measured again for them.
    """

    folder: RunFolder
    data: DataConfig
    encoding: EncodeConfig
    config: ScoreConfig
    select: SelectConfig | None = None
    embed: EmbedConfig | None = None
    memory: InMemory | datasets.Dataset | None = None
    loaded: Any = None
    source: Source | None = None
    dedup_first: bool = False
    target: tuple[str, ...] = ()

    @cached_property
    def ranks(self) -> Ranks:
        """The processes."""
        return Ranks()

    def run(self) -> ScoreTable | None:
        """Score; parts of unfinished work are gone on with.

        Returns:
            The table, on the main process; None on the others and for a dry run.

        Raises:
            InputError: something given is wrong.
            IncompleteRunError: parts are missing; the same command completes the run.
        """
        self._check()
        with alone(self.folder, self.ranks):
            scored = self._run()
            self.ranks.close()
            return scored

    def _run(self) -> ScoreTable | None:
        """As `run`, alone in the folder."""
        folder, config, ranks = self.folder, self.config, self.ranks
        before = self._before()
        ranks.on_main(self._read)
        table = RowTable.open(folder / "rows")
        if self.select is not None:
            choice = self.select
            ranks.on_main(lambda: check_columns(table, choice))
        kind, data_format = table.facts.model_kind, table.facts.format
        model = self._first_on_main(lambda: make_model(config, self.encoding, kind, data_format, self.loaded))
        # What is wrong with it is told before encoding.
        wanted = self._first_on_main(lambda: Wanted(model, config, self.embed, self.target))
        dtype = model.dtype(config.dtype, ranks.device)
        load_first = config.restart in ("encode", "score")  # scores are not discarded for a model that cannot be loaded
        if load_first:
            self._load(model, dtype)
        encode(folder, table, model, config, self.encoding, self.data.strict, ranks)
        items = model.open_items(folder / "items")
        if self.select is not None:
            ranks.on_main(lambda: check_budget(choice, items.n_response[items.scorable]))
        identity = wanted.identity | {"dtype": dtype, "batch": batch_cost(model, config, ranks.device.type)}
        first = First(folder, model, items, self.select, self.embed) if self.dedup_first else None
        identity |= {} if first is None else {"dedup_first": first.identity}
        if self._finished(wanted, identity):
            return self._skipped()
        if before is not None:
            ranks.on_main(lambda: before.check(identity))
        if first is not None and not config.dry_run:
            ranks.on_main(first.put_aside)
            items = left_of(items, first.read())
        if not load_first:
            self._load(model, dtype)
        waves = Waves(folder, model, items, wanted, identity, before)
        ranks.on_main(lambda: self._announce(model, items, waves, dtype))
        measured = None if config.dry_run else waves.run(folder, config, ranks)
        return None if measured is None else self._finish(items, measured, wanted, dtype, first)

    def _check(self) -> None:
        check_tolerance(self.config)
        check_batches(self.config)
        if self.config.device_map == "auto" and self.ranks.world > 1:
            raise InputError(
                f"--device-map auto spreads one model over all devices, but {self.ranks.world} processes were started. Start one "
                "process (no accelerate launch, no torchrun), or leave --device-map out so that each process has its own copy."
            )

    def _read(self) -> None:
        """Read the rows into the folder. The table itself is opened by each process: it is not handed from one to another."""
        read_rows(self.folder, self.data, self.config.restart == "read", self.memory, self.source, self.config.update)

    def _before(self) -> Before | None:
        """What was measured before and may be reused."""
        if self.config.update:
            self.ranks.on_main(lambda: keep_before(self.folder))
        return self._first_on_main(lambda: before_of(self.folder, self.config.update, self.config.reuse))

    def _first_on_main(self, make: Callable[[], Made]) -> Made:
        """Make it on the main process first, so that a GGUF file is converted once and errors are told once."""
        found: list[Made] = []
        self.ranks.on_main(lambda: found.append(make()))  # it is no value to hand on: most models cannot be pickled
        return found[0] if found else make()

    def _load(self, model: Model, dtype: str) -> None:
        offload = self.folder / "parts" / "offload" if self.config.device_map == "auto" else None
        model.load(dtype, self.ranks.device, offload)
        model.shortcuts = self.ranks.broadcast(model.shortcuts)

    def _finished(self, wanted: Wanted, identity: dict[str, Any]) -> bool:
        """Claim the stage on the main process; True, on every process, when it is done already.

        It is also done where all but the states that the embedder and the target ask for were measured: `embed` and `target` read
        these in passes of their own, and nothing is scored again for another embedder or target.
        """
        work_kept = (self.folder / "parts" / "score").exists()

        def claim() -> bool:
            known = self.folder.find(ScoreFacts)
            same = known is not None and set(wanted.for_score) <= set(known.config["probes"])
            config = {**identity, "probes": known.config["probes"]} if known is not None and same else identity
            again, inputs = self.config.restart == "score", (RowsFacts, EncodeFacts)
            return not self.config.dry_run and self.folder.begin(ScoreFacts, config, inputs, again, work_kept=work_kept)

        return self.ranks.on_main(claim)

    def _skipped(self) -> ScoreTable | None:
        """What a finished stage left, on the main process."""
        if not self.ranks.is_main:
            return None
        say("score: done before, skipped")
        shutil.rmtree(self.folder / BEFORE, ignore_errors=True)
        return self.folder.read_scores()

    def _announce(self, model: Model, items: Items, waves: Waves, dtype: str) -> None:
        say(f"scoring with {model.name} in {dtype}, {self.ranks.describe()}: {waves.describe()}")
        for remark in model.remarks:
            say(f"note: {remark}")
        if self.config.dry_run:
            _dry_run(model, items, waves, self.ranks)
            if self.dedup_first:
                say("note: --dedup-first sets rows aside when they are scored; here they are all counted")

    def _finish(self, items: Items, measured: Measured, wanted: Wanted, dtype: str, first: First | None) -> ScoreTable:
        """On the main process, when all parts are there: the table, vectors of the model's own, and no parts any more.

        Without an embedding that follows, by the embedder that was asked for, a model that embeds leaves its vectors now.
        """
        aside = None if first is None else first.facts()
        scores = merge(self.folder, items, measured, wanted, dtype, self.ranks, aside)
        if measured.model.embeds and self.embed is None and self.folder.find(EmbedFacts) is None:
            embed_rows(self.folder, EmbedConfig(), restart=True, model=measured.model)
        for name in ("parts", BEFORE):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return scores


def _dry_run(model: Model, items: Items, waves: Waves, ranks: Ranks) -> None:
    plans = [one.plan for work in waves.works for one in work.passes]
    if not any(plan.n_tokens for plan in plans):
        print("dry run: every row was measured before, so there is nothing to measure")
        return
    plan = waves.first.passes[0].plan
    rate = measure_speed(model, waves.first)
    total = sum(each.n_tokens + each.n_padding for each in plans)
    n_chunks = sum(len(each.chunks) for each in plans)
    response = int(items.n_response[items.scorable].sum())
    prompt = int(items.lengths[items.scorable].sum()) - response
    about = "about" if waves.pilot is None else "at most"
    print(
        f"dry run: {waves.describe()}\n"
        f"{model.unit} in the rows: {prompt:,} prompt + {response:,} response\n"
        f"chunks per process: {-(-n_chunks // ranks.world)}\n"
        f"longest batch: {plan.chunks[0][0].width} {model.unit} wide\n"
        f"measured {rate:,.0f} {model.unit}/s a process; all passes would take {about} {clock(total / rate / ranks.world)}"
    )


def measure_speed(model: Model, work: Work) -> float:
    """Padded tokens (or pictures) a second of the first pass, from batches spread over the plan's lengths."""
    planned = work.passes[0]
    planned.start(model)
    batches = [batch for chunk in planned.plan.chunks for batch in chunk if batch.width]
    if not batches:  # all rows were measured before
        return float("inf")
    chosen = [batches[i] for i in np.unique(np.linspace(0, len(batches) - 1, TIMED_BATCHES).round().astype(int))]
    run_batch(model, planned.a_pass, planned.items, chosen[-1])  # warm-up
    cost, began = 0, time.perf_counter()
    for batch in chosen:
        run_batch(model, planned.a_pass, planned.items, batch).cpu()
        cost += batch.width * len(batch.rows)
    return cost / (time.perf_counter() - began)
