"""Score: read, encode, measure the loss of every row under every subnet, put the parts together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from instruct_prune.config import DataConfig, EmbedConfig, EncodeConfig, ScoreConfig, SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.measure.ladder import PRESETS, Preset, parse_subnets, score_name_of
from instruct_prune.measure.measurement import Measurement, measurements_of
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.probes import Loss, Probe, State, parse_probe
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.speed import measure_speed
from instruct_prune.measure.stored import find
from instruct_prune.measure.subnet import DENSE, SubnetSpec
from instruct_prune.models.model import Items, Model
from instruct_prune.progress import clock, say
from instruct_prune.registry import class_name, own_code
from instruct_prune.rows import Source
from instruct_prune.rows.table import RowTable
from instruct_prune.run.embed import by_model
from instruct_prune.run.embed import embed as embed_rows
from instruct_prune.run.encode import encode, make_model
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.measure import batch_cost, describe, plan_work, run_work
from instruct_prune.run.merge import Measured, merge
from instruct_prune.run.records import EmbedFacts, EncodeFacts, RowsFacts, ScoreFacts
from instruct_prune.run.rows import InMemory, read_rows
from instruct_prune.run.select import check_budget
from instruct_prune.score.table import ScoreTable
from instruct_prune.storage import digest

if TYPE_CHECKING:
    import datasets

Made = TypeVar("Made")
EVERY = "every"
"""In a preset's probes: the mean state at every depth of the model."""


def score(
    folder: RunFolder,
    data: DataConfig,
    encoding: EncodeConfig,
    config: ScoreConfig,
    select: SelectConfig | None = None,
    embed: EmbedConfig | None = None,
    memory: InMemory | datasets.Dataset | None = None,
    loaded: Any = None,
    source: Source | None = None,
) -> ScoreTable | None:
    """Score every row under every subnet, on as many processes as were launched.

    Args:
        folder: the run.
        data: what to read.
        encoding: how rows become what the model is given.
        config: the model and its subnets.
        select: the selection that will follow, so that a budget that cannot be met is told before the work.
        embed: the embedding that will follow, so that vectors of the model itself are read in the same pass.
        memory: rows made in Python, in place of files.
        loaded: a model made in Python: (model, tokenizer), or (module, transform) for pictures.
        source: the data, where they are open already.

    Returns:
        The table, on the main process; None on the others and for a dry run.

    Raises:
        InputError: something given is wrong.
        IncompleteRunError: parts are missing; the same command completes the run.
    """
    ranks = Ranks()
    _check(config, ranks)
    ranks.on_main(lambda: read_rows(folder, data, config.restart == "read", memory, source))
    table = RowTable.open(folder / "rows")
    kind, data_format = table.facts.model_kind, table.facts.format
    model = _first_on_main(ranks, lambda: make_model(config, encoding, kind, data_format, loaded))
    wanted = _first_on_main(
        ranks, lambda: Wanted(model, config, embed)
    )  # what is wrong with it is told before encoding
    ranks.on_main(lambda: encode(folder, table, model, config, encoding, data.strict))
    items = model.open_items(folder / "items")
    if select is not None:
        ranks.on_main(lambda: check_budget(select, int(items.scorable.sum())))
    dtype = model.dtype(config.dtype, ranks.device)
    identity = wanted.identity | {"dtype": dtype, "batch": batch_cost(model, config, ranks.device.type)}
    if _finished(folder, wanted, identity, config, ranks):
        if ranks.is_main:
            say("score: done before, skipped")
        ranks.close()
        return folder.read_scores() if ranks.is_main else None
    model.load(dtype, ranks.device, folder / "parts" / "offload" if config.device_map == "auto" else None)
    model.shortcuts = ranks.broadcast(model.shortcuts)
    waves = Waves(folder, model, items, wanted, identity)
    ranks.on_main(lambda: _announce(model, items, waves, dtype, ranks, config.dry_run))
    if config.dry_run:
        ranks.close()
        return None
    measured = waves.run(folder, config, ranks)
    return None if measured is None else _finish(folder, items, measured, wanted, dtype, ranks, embed is not None)


def _finish(
    folder: RunFolder,
    items: Items,
    measured: Measured,
    wanted: Wanted,
    dtype: str,
    ranks: Ranks,
    embeds_later: bool,
) -> ScoreTable:
    """On the main process, when all parts are there: the table, vectors of the model's own, and no parts any more.

    With ``embeds_later`` the embed stage follows, with the embedder that was asked for.
    """
    scores = merge(folder, items, measured, wanted.ladder, wanted.score, dtype, ranks)
    if measured.model.embeds and not embeds_later and folder.find(EmbedFacts) is None:
        embed_rows(folder, EmbedConfig(), restart=True)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    ranks.close()
    return scores


class Wanted:
    """What the options ask to be measured."""

    def __init__(self, model: Model, config: ScoreConfig, embed: EmbedConfig | None) -> None:
        presets = {**PRESETS, **{name: Preset(*entry) for name, entry in model.ladders.items()}}
        self.model = model
        self.config = config
        self.ladder: tuple[SubnetSpec, ...] = parse_subnets(config.subnets, config.subnet_seeds, presets)
        self.score = score_name_of(config.subnets, presets)
        named = [word for text in config.subnets if text in presets for word in presets[text].probes]
        if len(config.subnets) > 1 and EVERY in named:
            raise InputError(f"--subnets {self.score} stands alone: it is read off the states of the dense model.")
        if model.compares and any(spec.depth is not None for spec in self.ladder):
            raise InputError(
                f"--subnets depth is for language models: {type(model).__name__} compares states of the whole model. Use dlc, "
                "knn_lc or magnitude-global:0.9."
            )
        pooling = by_model(model, embed)
        reference = ["mean"] if model.compares else []
        self.for_score = tuple(dict.fromkeys([*named, *config.probes, *reference]))
        self.texts = tuple(dict.fromkeys([*self.for_score, *([pooling] if pooling else [])]))

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the numbers beside rows, dtype and batches."""
        return {
            "model": dict(self.model.identity),
            "subnets": [spec.name for spec in self.ladder],
            "probes": list(self.texts),
            "include_head": self.config.include_head,
            "share_prefix": self.config.share_prefix,
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


class Waves:
    """The passes in one wave, or in two where losses are relative to states of the dense model, which come first."""

    def __init__(self, folder: RunFolder, model: Model, items: Items, wanted: Wanted, identity: dict[str, Any]) -> None:
        self.model, self.items = model, items
        # Shortcuts change no number, but they decide which rows lie in which part.
        parts = PartStore(folder / "parts" / "score", digest(identity | {"shortcuts": repr(model.shortcuts)}))
        first, rest = list(wanted.measurements), []
        self.derived: tuple[Measurement, ...] = ()
        if model.compares:
            self.derived = tuple(m for m in first if isinstance(m.probe, Loss) and m.spec == DENSE)
            rest = [m for m in first if isinstance(m.probe, Loss) and m.spec != DENSE]
            first = [m for m in first if not isinstance(m.probe, Loss)]
        batch = identity["batch"]
        self.first = plan_work(model, items, first, batch, parts)
        self.rest = plan_work(model, items, rest, batch, parts) if rest else None

    def describe(self) -> str:
        passes = [*self.first.passes, *(self.rest.passes if self.rest else ())]
        return describe(self.first, self.model, [a_pass.name for a_pass in passes])

    def run(self, folder: RunFolder, config: ScoreConfig, ranks: Ranks) -> Measured | None:
        """Both waves; what was measured, on the main process."""
        took = run_work(folder, self.model, self.first, config, ranks)
        if self.model.compares:
            ranks.broadcast(None)  # every process waits until the main one has seen that the first wave is whole
            reference = find(self.first, f"mean_{DENSE.name}")
            self.model.fit(reference.blocks, self.items)
        if self.rest is not None:
            took = took + run_work(folder, self.model, self.rest, config, ranks)
        if not ranks.is_main:
            return None
        return Measured(self.model, (self.first, *((self.rest,) if self.rest else ())), self.derived, took)


def _first_on_main(ranks: Ranks, make: Callable[[], Made]) -> Made:
    """Make it on the main process first, so that a GGUF file is converted once and errors are told once."""
    found: list[Made] = []
    ranks.on_main(lambda: found.append(make()))
    return found[0] if found else make()


def _check(config: ScoreConfig, ranks: Ranks) -> None:
    if config.device_map == "auto" and ranks.world > 1:
        raise InputError(
            f"--device-map auto spreads one model over all devices, but {ranks.world} processes were started. Start one "
            "process (no accelerate launch, no torchrun), or leave --device-map out so that each process has its own copy."
        )
    if config.batch_tokens is not None and config.batch_tokens < 1:
        raise InputError(f"--batch-tokens {config.batch_tokens}: at least 1 token (or picture) must fit in a batch.")


def _finished(folder: RunFolder, wanted: Wanted, identity: dict[str, Any], config: ScoreConfig, ranks: Ranks) -> bool:
    """Claim the stage on the main process; True, on every process, when it is done already.

    It is also done where all but the states that the embedder asks for were measured: `embed` reads these in a pass of
    their own, and nothing is scored again for another embedder.
    """
    done: list[bool] = []

    work_kept = (folder / "parts" / "score").exists()

    def claim() -> None:
        nonlocal identity
        known = folder.find(ScoreFacts)
        if known is not None and set(wanted.for_score) <= set(known.config["probes"]):
            identity = {**identity, "probes": known.config["probes"]}
        begun = not config.dry_run and folder.begin(
            ScoreFacts, identity, (RowsFacts, EncodeFacts), restart=config.restart == "score", work_kept=work_kept
        )
        done.append(begun)

    ranks.on_main(claim)
    return bool(ranks.broadcast(done[0] if done else None))


def _announce(model: Model, items: Items, waves: Waves, dtype: str, ranks: Ranks, dry_run: bool) -> None:
    say(f"scoring with {model.name} in {dtype}, {ranks.describe()}: {waves.describe()}")
    for remark in model.remarks:
        say(f"note: {remark}")
    if dry_run:
        _dry_run(model, items, waves, ranks)


def _dry_run(model: Model, items: Items, waves: Waves, ranks: Ranks) -> None:
    works = [waves.first, *([waves.rest] if waves.rest else [])]
    plan = waves.first.plans[0]
    rate = measure_speed(model, waves.first)
    total = sum(p.n_tokens + p.n_padding for work in works for p in work.plans)
    n_chunks = sum(len(p.chunks) for work in works for p in work.plans)
    response = int(items.n_response[items.scorable].sum())
    prompt = int(items.lengths[items.scorable].sum()) - response
    print(
        f"dry run: {waves.describe()}\n"
        f"{model.unit} in the rows: {prompt:,} prompt + {response:,} response\n"
        f"chunks per process: {-(-n_chunks // ranks.world)}\n"
        f"longest batch: {plan.chunks[0][0].width} {model.unit} wide\n"
        f"measured {rate:,.0f} {model.unit}/s a process; all passes would take about {clock(total / rate / ranks.world)}"
    )
