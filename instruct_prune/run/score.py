"""Score: plan the work, run it on as many processes as were launched, put the parts together."""

from __future__ import annotations

import shutil
import time
import uuid
from typing import Any

import numpy as np

from instruct_prune.arrays import Int32
from instruct_prune.config import DataConfig, EncodeConfig, ScoreConfig, SelectConfig
from instruct_prune.encode.batching import Plan, plan_batches, shared_prefixes
from instruct_prune.encode.store import AloneView, TokenStore
from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.measure.engine import ComputeChunk, Heartbeat, Todo, Work, score_parts, share, wait_for_ranks
from instruct_prune.measure.passes import Pass, parse_subnets, plan_passes, score_name_of
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.speed import probe_speed
from instruct_prune.models import names as models
from instruct_prune.models.backbone import Backbone
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.progress import Progress, clock, say
from instruct_prune.run.encode import encode, open_image_data
from instruct_prune.run.folder import PartStore, RunFolder
from instruct_prune.run.merge import merge
from instruct_prune.run.select import check_budget
from instruct_prune.score.table import ScoreTable
from instruct_prune.storage import digest

BATCH_TOKENS = {"cpu": 4096, "other": 32768}


def score(
    folder: RunFolder, data: DataConfig, encoding: EncodeConfig, config: ScoreConfig, select: SelectConfig | None = None
) -> ScoreTable | None:
    """Score every row under every subnet, on as many processes as were launched.

    Args:
        folder: the run.
        data: what to read.
        encoding: how rows become tokens.
        config: the model and its subnets.
        select: the selection that will follow, so that a budget that cannot be met is told before the work.

    Returns:
        The table, on the main process; None on the others and for a dry run.

    Raises:
        InputError: something given is wrong.
        IncompleteRunError: parts are missing; the same command completes the run.
    """
    from instruct_prune.run import images  # which needs what is below

    if open_image_data(data) is not None:
        return images.score_images(folder, data, config, select)
    ladder = parse_subnets(config.subnets, config.subnet_seeds)
    ranks = Ranks()
    _check(config, ranks)
    source = _find_model(ranks, config)
    ranks.on_main(lambda: encode(folder, data, encoding, source, config.restart))
    store = TokenStore.open(folder / "tokens")
    if select is not None:
        ranks.on_main(lambda: check_budget(select, int(store.scorable.sum())))
    dtype = models.pick_dtype(config.dtype, ranks.device.type)
    identity = {
        "encode": digest(folder.stage("encode")["config"]),
        "model": source.identity(),
        "dtype": dtype,
        "subnets": [spec.name for spec in ladder],
        "include_head": config.include_head,
        "batch_tokens": config.batch_tokens or BATCH_TOKENS.get(ranks.device.type, BATCH_TOKENS["other"]),
        "share_prefix": config.share_prefix,
    }
    if finished(folder, identity, config, ranks):
        say_main(ranks, "score: done before, skipped")
        ranks.close()
        return folder.read_scores() if ranks.is_main else None

    work = _plan_work(folder, store, plan_passes(ladder), identity)
    say_main(ranks, f"scoring with {source.name} in {dtype}, {ranks.describe()}: {_describe_plan(work)}")
    model = models.load_causal_lm(
        source, dtype, None if config.device_map == "none" else "auto", folder / "parts" / "offload"
    )
    backbone = CausalLM(ranks.prepare(model) if config.device_map == "none" else model)
    if config.dry_run:
        if ranks.is_main:
            _dry_run(backbone, work, ranks, store)
        ranks.close()
        return None
    facts = score_share(folder, backbone, work, config, ranks)
    if not ranks.is_main:
        return None
    table = merge(folder, store, work, ladder, config, facts, score_name_of(config.subnets))
    shutil.rmtree(folder / "parts", ignore_errors=True)
    ranks.close()
    return table


def _check(config: ScoreConfig, ranks: Ranks) -> None:
    if config.device_map == "auto" and ranks.world > 1:
        raise InputError(
            f"--device-map auto spreads one model over all devices, but {ranks.world} processes were started. Start one "
            "process (no accelerate launch, no torchrun), or leave --device-map out so that each process has its own copy."
        )
    if config.batch_tokens is not None and config.batch_tokens < 1:
        raise InputError(f"--batch-tokens {config.batch_tokens}: at least 1 token must fit in a batch.")


def _find_model(ranks: Ranks, config: ScoreConfig) -> models.ModelSource:
    """Resolve on the main process first, so that a GGUF file is converted once."""
    found: list[models.ModelSource] = []
    ranks.on_main(lambda: found.append(models.find_model(config.model, config.model_revision)))
    return found[0] if found else models.find_model(config.model, config.model_revision)


def finished(folder: RunFolder, identity: dict[str, Any], config: ScoreConfig, ranks: Ranks) -> bool:
    """Claim the stage on the main process; True, on every process, when it is done already."""
    done: list[bool] = []

    def claim() -> None:
        if config.restart:
            shutil.rmtree(folder / "parts", ignore_errors=True)
            folder.forget("embed", "select", "export")
        done.append(not config.dry_run and folder.begin("score", identity, config.restart))

    ranks.on_main(claim)
    return bool(ranks.broadcast(done[0] if done else None))


def score_share(
    folder: RunFolder,
    backbone: Backbone,
    work: Work,
    config: ScoreConfig,
    ranks: Ranks,
    compute: ComputeChunk | None = None,
    unit: str = "tokens",
) -> dict[str, Any]:
    """Write this rank's parts; the main one then waits for the others and makes sure that nothing is missing."""
    # One broadcast before the loop, none inside it: every rank must see the same list of missing parts.
    missing: tuple[Todo, str] | None = (work.missing(), uuid.uuid4().hex[:8]) if ranks.is_main else None
    todo, nonce = ranks.broadcast(missing)
    if 0 < len(todo) < work.n_parts:
        say_main(ranks, f"resuming: {work.describe(todo)} to do")
    mine = share(todo, ranks.rank, ranks.world)
    beats = folder / "parts" / "alive" / nonce
    began = time.monotonic()
    try:
        with Heartbeat(beats, ranks.rank), Progress("scoring", work.cost(mine), unit, ranks.is_main) as progress:
            facts = score_parts(
                backbone,
                work,
                mine,
                include_head=config.include_head,
                advance=lambda rows, tokens: progress.advance(tokens, rows),
                compute=compute,
            )
    except IncompleteRunError as stop:
        raise IncompleteRunError(_incomplete(folder, work, str(stop))) from stop
    if ranks.is_main:
        wait_for_ranks(beats, range(1, ranks.world))
        if work.missing():
            raise IncompleteRunError(_incomplete(folder, work, "a process ended before its parts were written"))
    return facts | {
        "seconds": round(time.monotonic() - began, 3),
        "tokens": work.cost(todo),
        "processes": ranks.world,
        "device": ranks.describe(),
    }


def say_main(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        say(text)


def _plan_work(folder: RunFolder, store: TokenStore, passes: tuple[Pass, ...], identity: dict[str, Any]) -> Work:
    batch_tokens: int = identity["batch_tokens"]
    rows = np.flatnonzero(store.scorable).astype(np.int64)
    group: Int32 | None = None
    prefixes: tuple[Int32, ...] = ()
    if identity["share_prefix"]:
        group, prefixes = shared_prefixes(store.ids, store.offset, rows, store.first_target[rows])
    full = plan_batches(rows, store.lengths[rows], batch_tokens=batch_tokens, group=group, prefixes=prefixes)
    bos = folder.stage("encode")["tokenizer"]["bos_token_id"]
    view = AloneView(store, bos)
    items: list[Any] = []
    plans: list[Plan] = []
    for a_pass in passes:
        if a_pass.alone:
            own = rows[view.lengths[rows] > 1]
            items.append(view)
            plans.append(plan_batches(own, view.lengths[own], batch_tokens=batch_tokens))
        else:
            items.append(store)
            plans.append(full)
    return Work(passes, tuple(items), tuple(plans), PartStore(folder / "parts" / "score", digest(identity)))


def _describe_plan(work: Work) -> str:
    plan = work.plans[0]
    shared = f", {len(plan.prefixes)} shared prefixes" if plan.prefixes else ""
    names = ", ".join(a_pass.name for a_pass in work.passes)
    return (
        f"{plan.n_rows:,} rows, {plan.n_tokens:,} tokens a pass ({plan.padding_share:.1%} padding{shared}), "
        f"{len(work.passes)} passes ({names}), {len(plan.chunks)} chunks each"
    )


def _dry_run(backbone: Any, work: Work, ranks: Ranks, store: TokenStore) -> None:
    response = int(store.n_response[store.scorable].sum())
    prompt = int(store.lengths[store.scorable].sum()) - response
    plan = work.plans[0]
    rate = probe_speed(backbone, work)
    total = sum((p.n_tokens + p.n_padding) for p in work.plans)
    seconds = total / rate / ranks.world
    print(
        f"dry run: {_describe_plan(work)}\n"
        f"tokens in the rows: {prompt:,} prompt + {response:,} response\n"
        f"chunks per process: {-(-sum(len(p.chunks) for p in work.plans) // ranks.world)}\n"
        f"longest batch: {plan.chunks[0][0].width} tokens wide\n"
        f"measured {rate:,.0f} tokens/s a process; all passes would take about {clock(seconds)}"
    )


def _incomplete(folder: RunFolder, work: Work, why: str) -> str:
    left = work.missing()
    return (
        f"scoring is not complete: {why}. Missing: {work.describe(left)}. What is done is kept in {folder / 'parts'}; "
        "run the same command again, with any number of processes, to complete it."
    )
