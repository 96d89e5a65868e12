"""Score: read, encode, measure the loss of every row under every subnet, put the parts together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from instruct_prune.config import DataConfig, EmbedConfig, EncodeConfig, ScoreConfig, SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.speed import measure_speed
from instruct_prune.models.model import Items, Model
from instruct_prune.progress import clock, say
from instruct_prune.rows import Source
from instruct_prune.rows.table import RowTable
from instruct_prune.run.aside import left_of
from instruct_prune.run.asked import check_budget
from instruct_prune.run.check import check_tolerance
from instruct_prune.run.embed import embed as embed_rows
from instruct_prune.run.encode import encode, make_model
from instruct_prune.run.first import First
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.lock import alone
from instruct_prune.run.measure import batch_cost
from instruct_prune.run.merge import merge
from instruct_prune.run.records import EmbedFacts, EncodeFacts, RowsFacts, ScoreFacts, SetAside
from instruct_prune.run.reuse import BEFORE, Before, before_of, set_aside
from instruct_prune.run.rows import InMemory, read_rows
from instruct_prune.run.wanted import Wanted
from instruct_prune.run.waves import Measured, Waves
from instruct_prune.score.table import ScoreTable

if TYPE_CHECKING:
    import datasets

Made = TypeVar("Made")


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
    dedup_first: bool = False,
    target: tuple[str, ...] = (),
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
        dedup_first: leave out the rows that ``select`` would take out as near-duplicates or contaminated.
        target: probes that the target which will follow reads; scores that are there are not measured again for them.

    Returns:
        The table, on the main process; None on the others and for a dry run.

    Raises:
        InputError: something given is wrong.
        IncompleteRunError: parts are missing; the same command completes the run.
    """
    ranks = Ranks()
    _check(config, ranks)
    with alone(folder, ranks):
        scored = _score(
            folder, data, encoding, config, ranks, select, embed, memory, loaded, source, dedup_first, target
        )
        ranks.close()
        return scored


def _score(
    folder: RunFolder,
    data: DataConfig,
    encoding: EncodeConfig,
    config: ScoreConfig,
    ranks: Ranks,
    select: SelectConfig | None,
    embed: EmbedConfig | None,
    memory: InMemory | datasets.Dataset | None,
    loaded: Any,
    source: Source | None,
    dedup_first: bool,
    target: tuple[str, ...],
) -> ScoreTable | None:
    """As `score`, alone in the folder."""
    before = _before(folder, config, ranks)
    ranks.on_main(lambda: read_rows(folder, data, config.restart == "read", memory, source, config.update))
    table = RowTable.open(folder / "rows")
    kind, data_format = table.facts.model_kind, table.facts.format
    model = _first_on_main(ranks, lambda: make_model(config, encoding, kind, data_format, loaded))
    # What is wrong with it is told before encoding.
    wanted = _first_on_main(ranks, lambda: Wanted(model, config, embed, target))
    dtype = model.dtype(config.dtype, ranks.device)
    load_first = config.restart in ("encode", "score")  # scores are not discarded for a model that cannot be loaded
    if load_first:
        _load(folder, model, dtype, config, ranks)
    encode(folder, table, model, config, encoding, data.strict, ranks)
    items = model.open_items(folder / "items")
    if select is not None:
        ranks.on_main(lambda: check_budget(select, int(items.scorable.sum())))
    identity = wanted.identity | {"dtype": dtype, "batch": batch_cost(model, config, ranks.device.type)}
    first = First(folder, model, items, select, embed) if dedup_first else None
    identity |= {} if first is None else {"dedup_first": first.identity}
    if _finished(folder, wanted, identity, config, ranks):
        return _skipped(folder, ranks)
    if before is not None:
        ranks.on_main(lambda: before.check(identity))
    if first is not None and not config.dry_run:
        ranks.on_main(first.put_aside)
        items = left_of(items, first.read())
    if not load_first:
        _load(folder, model, dtype, config, ranks)
    waves = Waves(folder, model, items, wanted, identity, before)
    ranks.on_main(lambda: _announce(model, items, waves, dtype, ranks, config.dry_run))
    if config.dry_run and first is not None and ranks.is_main:
        say("note: --dedup-first sets rows aside when they are scored; here they are all counted")
    if config.dry_run:
        return None
    measured = waves.run(folder, config, ranks)
    if measured is None:
        return None
    aside = None if first is None else first.facts()
    return _finish(folder, items, measured, wanted, dtype, ranks, embed is not None, aside)


def _load(folder: RunFolder, model: Model, dtype: str, config: ScoreConfig, ranks: Ranks) -> None:
    model.load(dtype, ranks.device, folder / "parts" / "offload" if config.device_map == "auto" else None)
    model.shortcuts = ranks.broadcast(model.shortcuts)


def _skipped(folder: RunFolder, ranks: Ranks) -> ScoreTable | None:
    """What a finished stage left, on the main process."""
    if not ranks.is_main:
        return None
    say("score: done before, skipped")
    shutil.rmtree(folder / BEFORE, ignore_errors=True)
    return folder.read_scores()


def _finish(
    folder: RunFolder,
    items: Items,
    measured: Measured,
    wanted: Wanted,
    dtype: str,
    ranks: Ranks,
    embeds_later: bool,
    aside: SetAside | None,
) -> ScoreTable:
    """On the main process, when all parts are there: the table, vectors of the model's own, and no parts any more.

    With ``embeds_later`` the embed stage follows, with the embedder that was asked for.
    """
    scores = merge(folder, items, measured, wanted.ladder, wanted.score, dtype, ranks, aside)
    if measured.model.embeds and not embeds_later and folder.find(EmbedFacts) is None:
        embed_rows(folder, EmbedConfig(), restart=True, model=measured.model)
    for name in ("parts", BEFORE):
        shutil.rmtree(folder / name, ignore_errors=True)
    return scores


def _before(folder: RunFolder, config: ScoreConfig, ranks: Ranks) -> Before | None:
    """What was measured before and may be reused."""
    if config.update:
        ranks.on_main(lambda: set_aside(folder))
    return _first_on_main(ranks, lambda: before_of(folder, config.update, config.reuse))


def _first_on_main(ranks: Ranks, make: Callable[[], Made]) -> Made:
    """Make it on the main process first, so that a GGUF file is converted once and errors are told once."""
    found: list[Made] = []
    ranks.on_main(lambda: found.append(make()))
    return found[0] if found else make()


def _check(config: ScoreConfig, ranks: Ranks) -> None:
    check_tolerance(config)
    if config.device_map == "auto" and ranks.world > 1:
        raise InputError(
            f"--device-map auto spreads one model over all devices, but {ranks.world} processes were started. Start one "
            "process (no accelerate launch, no torchrun), or leave --device-map out so that each process has its own copy."
        )
    if config.batch_tokens is not None and config.batch_tokens < 1:
        raise InputError(f"--batch-tokens {config.batch_tokens}: at least 1 token (or picture) must fit in a batch.")


def _finished(folder: RunFolder, wanted: Wanted, identity: dict[str, Any], config: ScoreConfig, ranks: Ranks) -> bool:
    """Claim the stage on the main process; True, on every process, when it is done already.

    It is also done where all but the states that the embedder and the target ask for were measured: `embed` and `target` read these
    in passes of their own, and nothing is scored again for another embedder or target.
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
    works = waves.works
    if not any(p.n_tokens for work in works for p in work.plans):
        print("dry run: every row was measured before, so there is nothing to measure")
        return
    plan = waves.first.plans[0]
    rate = measure_speed(model, waves.first)
    total = sum(p.n_tokens + p.n_padding for work in works for p in work.plans)
    n_chunks = sum(len(p.chunks) for work in works for p in work.plans)
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
