"""The whole house on one page: load -> encode -> score -> embed -> select -> export.

Each stage reads what the last one left in the run folder and writes its own files there; a finished stage is skipped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instruct_prune import models
from instruct_prune.config import (
    DataConfig,
    EmbedConfig,
    EncodeConfig,
    ExportConfig,
    RunConfig,
    ScoreConfig,
    SelectConfig,
)
from instruct_prune.datatypes import Encoded, Reject, Sample, ScoreTable, Selection, Status, SubnetSpec
from instruct_prune.encode.batching import Plan, plan_batches, shared_prefixes
from instruct_prune.encode.store import AloneView, TokenStore, write_store
from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.load import Source, open_data, read_raw
from instruct_prune.progress import Progress, say
from instruct_prune.run_folder import PartStore, RunFolder, atomic, digest, row_ids_hash, sha256_of

if TYPE_CHECKING:
    from instruct_prune.score.ranks import Ranks
    from instruct_prune.score.scorer import Work

ENCODE_BATCH = 2048


def run(config: RunConfig) -> Selection | None:
    """Dataset file in, pruned dataset file out. None on processes other than the main one, and for a dry run."""
    _check_selection(config.select)
    folder = open_run(config.run.out)
    table = score(folder, config.data, config.encode, config.score, config.select)
    if table is None:
        return None
    embed(folder, config.embed)
    selection = select(folder, config.select)
    export(folder, config.export)
    return selection


def open_run(out: str) -> RunFolder:
    if not out:
        raise InputError("--out is missing: name the folder of the run.")
    return RunFolder(out)


# ---- load and encode ----


def open_source(data: DataConfig) -> Source:
    if not data.data:
        raise InputError("--data is missing: name a dataset file (JSON, JSONL, CSV, Parquet), a folder or a Hub id.")
    return open_data(
        data.data,
        format=data.format,
        columns=data.column_map(),
        limit=data.limit,
        strict=data.strict,
        split=data.data_split,
        subset=data.data_subset,
    )


def source_of(folder: RunFolder) -> Source:
    """The data of a run, opened again as its manifest says, and unchanged since."""
    stage = folder.require("encode", "score --data ... --out " + str(folder.path))
    facts = dict(stage["data"])
    source = open_source(DataConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in facts.items()}))
    now = [entry.get("sha256") for entry in source.identity()]
    then = [entry.get("sha256") for entry in stage["inputs"]]
    if now != then:
        raise InputError(
            f"{', '.join(source.files)}: the data changed since it was scored (another SHA-256). Score it anew in another --out."
        )
    return source


def encode(folder: RunFolder, data: DataConfig, config: EncodeConfig, model: models.ModelSource, restart: bool) -> None:
    """Tokenize every row once into ``RUN/tokens``; rows that cannot be scored are listed in ``rejected.jsonl``."""
    from instruct_prune.encode.tokenize import Encoder

    data = _lasting(folder, data)
    source = open_source(data)
    say(f"data: {source.description}")
    tokenizer = models.load_tokenizer(model)
    context = models.context_length(model)
    if config.max_length is not None and config.max_length < 2:
        raise InputError(f"--max-length {config.max_length}: a row needs at least two tokens, one of them to be predicted.")
    limit = min(config.max_length or context, context)
    encoder = Encoder(
        tokenizer, config.template, max_length=limit, turns=config.turns, overlong=config.overlong, data_format=source.format
    )
    inputs = source.identity()
    options = {k: v for k, v in dataclasses.asdict(data).items() if k not in ("data", "strict")}
    identity = {
        "inputs": [entry.get("sha256") or entry for entry in inputs],
        **options,
        **encoder.identity,
    }
    if folder.begin("encode", identity, restart):
        say("encode: done before, skipped")
        return
    began = time.monotonic()
    say(f"template: {encoder.template_name}")
    counts = {"read": 0, "rejected": 0}
    rejects = folder / "tokens" / "rejects.jsonl"
    with Progress("encoding", data.limit or 0, "rows") as progress, atomic(rejects, "w") as listed:
        store = write_store(folder / "tokens", _encoded(source, encoder, counts, listed, progress))
    _list_rejected(folder, store, store.status_names)
    facts = {
        "data": dataclasses.asdict(data),
        "inputs": inputs,
        "description": source.description,
        "kind": source.kind,
        "tokenizer": {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
        "accounting": {**counts, "encoded": len(store), "scorable": int(store.scorable.sum())},
        "seconds": round(time.monotonic() - began, 3),
    }
    if counts["read"] != counts["rejected"] + len(store):
        raise AssertionError(f"rows were lost in encoding: {counts}, {len(store)} stored")
    if not store.scorable.any():
        raise InputError(f"{', '.join(source.files)}: none of the {counts['read']} rows can be scored. {_first_reasons(folder)}")
    folder.finish("encode", **facts)


def _encoded(
    source: Source, encoder: Any, counts: dict[str, int], listed: Any, progress: Progress
) -> Iterator[tuple[Encoded, str, int]]:
    """Tokenize in batches; write rejects to ``listed`` on the way."""
    waiting: list[Sample] = []

    def flush() -> Iterator[tuple[Encoded, str, int]]:
        for sample, row in zip(waiting, encoder.encode(waiting), strict=True):
            yield row, sample.source, sample.line
        progress.advance(len(waiting), len(waiting))
        waiting.clear()

    for row in source:
        counts["read"] += 1
        if isinstance(row, Reject):
            counts["rejected"] += 1
            listed.write(json.dumps(_reject_line(row)) + "\n")
            continue
        waiting.append(row)
        if len(waiting) == ENCODE_BATCH:
            yield from flush()
    yield from flush()


def _reject_line(row: Reject) -> dict[str, Any]:
    return {"file": row.source, "line": row.line, "row_id": row.row_id, "status": row.status, "field": row.field, "reason": row.reason}


def _list_rejected(folder: RunFolder, store: TokenStore, status: Any, errors: Mapping[int, str] | None = None) -> None:
    """Write ``rejected.jsonl``: rows that could not be read, then rows that carry no score, each with its reason."""
    unscored = [i for i, name in enumerate(status) if not Status(name).scored]
    sources, lines, reasons = store.text_columns("source", "line", "reason") if unscored else ([], [], [])
    with atomic(folder / "rejected.jsonl") as file:
        file.write((folder / "tokens" / "rejects.jsonl").read_bytes())
        for i in unscored:
            reason = (errors or {}).get(i) or reasons[i] or str(status[i]).replace("_", " ")
            entry = Reject(int(store.row_id[i]), sources[i], int(lines[i]), reason, status=str(status[i]))
            file.write((json.dumps(_reject_line(entry)) + "\n").encode())


def _first_reasons(folder: RunFolder) -> str:
    with open(folder / "rejected.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(3), file, strict=False)]
    told = "; ".join(f"{row['file']}, line {row['line']}: {row['reason']}" for row in rows)
    return f"The first: {told}. All are listed in {folder / 'rejected.jsonl'}."


def _lasting(folder: RunFolder, data: DataConfig) -> DataConfig:
    """Paths made absolute, so that later commands find them; standard input copied into the run folder."""
    if "-" in data.data:
        target = folder / "stdin.jsonl"
        if not target.exists():
            with atomic(target) as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        return dataclasses.replace(data, data=tuple(str(target.resolve()) if d == "-" else d for d in data.data))
    return dataclasses.replace(data, data=tuple(os.path.abspath(d) if os.path.exists(d) else d for d in data.data))


# ---- score ----


def score(
    folder: RunFolder, data: DataConfig, encoding: EncodeConfig, config: ScoreConfig, select: SelectConfig | None = None
) -> ScoreTable | None:
    """Score every row under every subnet, on as many processes as were launched.

    Returns:
        The table, on the main process; None on the others and for a dry run.

    Raises:
        InputError: something given is wrong.
        IncompleteRunError: parts are missing; the same command completes the run.
    """
    from instruct_prune.score.passes import parse_subnets, plan_passes
    from instruct_prune.score.ranks import Ranks
    from instruct_prune.score.scorer import Heartbeat, score_parts, share, wait_for_ranks

    ladder = parse_subnets(config.subnets, config.subnet_seeds)
    ranks = Ranks()
    if config.device_map == "auto" and ranks.world > 1:
        raise InputError(
            f"--device-map auto spreads one model over all devices, but {ranks.world} processes were started. Start one "
            "process (no accelerate launch, no torchrun), or leave --device-map out so that each process has its own copy."
        )
    source = _find_model(ranks, config)
    dtype = models.pick_dtype(config.dtype, ranks.device.type)
    batch_tokens = config.batch_tokens or (4096 if ranks.device.type == "cpu" else 32768)
    if batch_tokens < 1:
        raise InputError(f"--batch-tokens {batch_tokens}: at least 1 token must fit in a batch.")
    ranks.on_main(lambda: encode(folder, data, encoding, source, config.restart))
    store = TokenStore.open(folder / "tokens")
    if select is not None:
        ranks.on_main(lambda: _check_budget(select, int(store.scorable.sum())))
    identity = {
        "encode": digest(folder.stage("encode")["config"]),
        "model": source.identity(),
        "dtype": dtype,
        "subnets": [spec.name for spec in ladder],
        "include_head": config.include_head,
        "batch_tokens": batch_tokens,
        "share_prefix": config.share_prefix,
    }
    finished = ranks.broadcast(_begin_score(folder, identity, config) if ranks.is_main else None)
    if isinstance(finished, str):
        raise InputError(finished) if ranks.is_main else SystemExit(2)
    if finished:
        say_main(ranks, "score: done before, skipped")
        ranks.close()
        return folder.read_scores() if ranks.is_main else None

    passes = plan_passes(ladder)
    work = _plan_work(folder, store, passes, batch_tokens, config.share_prefix, digest(identity))
    say_main(ranks, f"scoring with {source.name} in {dtype}, {ranks.describe()}: {_describe_plan(work)}")
    model = models.load_causal_lm(source, dtype, None if config.device_map == "none" else "auto")
    if config.device_map == "none":
        model = ranks.prepare(model)
    from instruct_prune.score.causal_lm import CausalLM

    backbone = CausalLM(model)
    if config.dry_run:
        if ranks.is_main:
            _dry_run(backbone, work, ranks)
        ranks.close()
        return None
    todo, nonce = ranks.broadcast((work.missing(), uuid.uuid4().hex[:8]) if ranks.is_main else None)
    mine = share(todo, ranks.rank, ranks.world)
    if ranks.is_main and len(todo) < sum(len(plan.chunks) for plan in work.plans):
        say(f"resuming: {work.describe(todo)} to do")
    beats = folder / "parts" / "alive" / nonce
    began = time.monotonic()
    cost = sum(batch.width * len(batch.rows) for p, chunk in mine for batch in work.plans[p].chunks[chunk])
    try:
        with Heartbeat(beats, ranks.rank), Progress("scoring", cost, "tokens", ranks.is_main) as progress:
            facts = score_parts(
                backbone, work, mine, include_head=config.include_head, advance=lambda rows, tokens: progress.advance(tokens, rows)
            )
    except IncompleteRunError as stop:
        raise IncompleteRunError(_incomplete(folder, work, str(stop))) from stop
    if not ranks.is_main:
        return None
    wait_for_ranks(beats, range(1, ranks.world))
    left = work.missing()
    if left:
        raise IncompleteRunError(_incomplete(folder, work, "a process ended before its parts were written"))
    facts |= {"seconds": round(time.monotonic() - began, 3), "processes": ranks.world, "device": ranks.describe()}
    table = _merge(folder, store, work, ladder, config, facts)
    shutil.rmtree(folder / "parts" / "alive", ignore_errors=True)
    ranks.close()
    return table


def say_main(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        say(text)


def _find_model(ranks: Ranks, config: ScoreConfig) -> models.ModelSource:
    """Resolve on the main process first, so that a GGUF file is converted once."""
    found: list[models.ModelSource] = []
    ranks.on_main(lambda: found.append(models.find_model(config.model, config.model_revision)))
    return found[0] if found else models.find_model(config.model, config.model_revision)


def _begin_score(folder: RunFolder, identity: dict[str, Any], config: ScoreConfig) -> bool | str:
    """True when already finished; a text when another run lies there."""
    try:
        if config.restart:
            shutil.rmtree(folder / "parts" / "score", ignore_errors=True)
        return False if config.dry_run else folder.begin("score", identity, config.restart)
    except InputError as error:
        return str(error)


def _plan_work(
    folder: RunFolder, store: TokenStore, passes: tuple[Any, ...], batch_tokens: int, share_prefix: bool, fingerprint: str
) -> Work:
    from instruct_prune.score.scorer import Work

    rows = np.flatnonzero(store.scorable).astype(np.int64)
    group, prefixes = None, ()
    if share_prefix:
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
    return Work(passes, tuple(items), tuple(plans), PartStore(folder / "parts" / "score", fingerprint))


def _describe_plan(work: Work) -> str:
    plan = work.plans[0]
    shared = f", {len(plan.prefixes)} shared prefixes" if plan.prefixes else ""
    names = ", ".join(a_pass.name for a_pass in work.passes)
    return (
        f"{plan.n_rows:,} rows, {plan.n_tokens:,} tokens a pass ({plan.padding_share:.1%} padding{shared}), "
        f"{len(work.passes)} passes ({names}), {len(plan.chunks)} chunks each"
    )


def _dry_run(backbone: Any, work: Work, ranks: Ranks) -> None:
    from instruct_prune.score.probe import probe_speed

    plan = work.plans[0]
    rate = probe_speed(backbone, work)
    total = sum((p.n_tokens + p.n_padding) for p in work.plans)
    seconds = total / rate / ranks.world
    from instruct_prune.progress import clock

    print(
        f"dry run: {_describe_plan(work)}\n"
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


def _merge(
    folder: RunFolder, store: TokenStore, work: Work, ladder: tuple[SubnetSpec, ...], config: ScoreConfig, facts: dict[str, Any]
) -> ScoreTable:
    """Parts -> ``scores.parquet``, statuses, health, accounting."""
    from instruct_prune.score.aggregate import subnet_health
    from instruct_prune.score.passes import score_name_of
    from instruct_prune.score.scorer import merge_parts

    losses, errors = merge_parts(work, len(store))
    status = store.status_names.astype("<U16")
    for i in errors:
        status[i] = Status.FAILED.value
    alone = SubnetSpec("alone")
    for spec, column in losses.items():
        planned = store.scorable if spec != alone else np.zeros(len(store), dtype=bool)
        broken = planned & ~np.isfinite(column) & (status != Status.FAILED.value)
        for i in np.flatnonzero(broken):
            errors = {**errors, int(i): f"loss under {spec.name} is {column[i]}"}
        status[broken] = Status.NONFINITE.value
    scored = np.isin(status, [s.value for s in Status if s.scored])
    for column in losses.values():
        column[~scored] = np.nan
    health = subnet_health(losses, scored, store.unigram_losses(np.flatnonzero(scored)))
    name = score_name_of(config.subnets)
    (hashes,) = store.text_columns("content_hash")
    specs = tuple(losses)
    table = ScoreTable(
        row_id=store.row_id,
        content_hash=np.asarray(hashes, dtype=np.str_),
        status=status,
        n_prompt=(store.lengths - store.n_response).astype(np.int32),
        n_response=store.n_response,
        n_cut=store.n_cut,
        losses=np.stack([losses[s] for s in specs], axis=1),
        subnets=specs,
        score=np.full(len(store), np.nan, dtype=np.float32),
        score_name=name,
        backbone=config.model,
    )
    collapsed = [row.name for row in health.subnets if row.collapsed]
    table = rescored(table, name, ladder, leave_out=collapsed)
    _list_rejected(folder, store, status, errors)
    folder.write_scores(table)
    folder.finish(
        "score",
        ladder=[dataclasses.astuple(spec) for spec in ladder],
        collapsed=collapsed,
        health={
            "unigram_loss": health.unigram_loss,
            "subnets": [dataclasses.asdict(row) for row in health.subnets],
            "rho": health.rho.tolist(),
        },
        warnings=health.warnings,
        accounting=_score_accounting(folder, int(scored.sum())),
        **facts,
    )
    shutil.rmtree(work.parts.folder, ignore_errors=True)
    return table


def _score_accounting(folder: RunFolder, scored: int) -> dict[str, int]:
    read = folder.stage("encode")["accounting"]["read"]
    with open(folder / "rejected.jsonl", "rb") as file:
        rejected = sum(1 for _ in file)
    if read != scored + rejected:
        raise AssertionError(f"rows were lost: {read} read, {scored} scored, {rejected} rejected")
    return {"read": read, "scored": scored, "rejected": rejected}


def rescored(
    table: ScoreTable,
    score_name: str,
    subnets: tuple[SubnetSpec, ...] | None,
    weights: tuple[float, ...] = (),
    leave_out: list[str] | None = None,
) -> ScoreTable:
    """The same losses under another aggregate."""
    from instruct_prune.score.aggregate import aggregate

    losses = {spec: table.losses[:, j] for j, spec in enumerate(table.subnets)}
    out = [spec for spec in table.subnets if spec.name in (leave_out or [])]
    # IFD and the dense scores name their own columns; only averages can leave a subnet out.
    values = aggregate(losses, score_name, subnets, weights or None, out)
    return dataclasses.replace(table, score=values, score_name=score_name)


# ---- embed ----


def embed(folder: RunFolder, config: EmbedConfig, restart: bool = False) -> None:
    """``embeddings.npy``: one vector for each row that encoding found fit to score."""
    from instruct_prune.embed.text import TextEncoder, check_vectors, embed_rows, save_row_ids

    encoded = folder.require("encode", f"score --data ... --out {folder.path}")
    store = TokenStore.open(folder / "tokens")
    row_id = store.row_id[store.scorable]
    precomputed = Path(config.embedder).expanduser() if config.embedder.endswith(".npy") else None
    if precomputed is not None:
        if not precomputed.is_file():
            raise InputError(f"--embedder {config.embedder}: there is no such file.")
        identity: dict[str, Any] = {"sha256": sha256_of(precomputed)}
        found = None
    else:
        found = models.find_model(config.embedder, option="--embedder")
        identity = found.identity()
    identity = {"embedder": config.embedder, "identity": identity, "data": encoded["config"]["inputs"], "rows": row_ids_hash(row_id)}
    parts = folder / "parts" / "embed"
    if restart:
        shutil.rmtree(parts, ignore_errors=True)
    if folder.begin("embed", identity, restart):
        say("embed: done before, skipped")
        return
    began = time.monotonic()
    if precomputed is not None:
        vectors = check_vectors(np.load(precomputed, mmap_mode="r", allow_pickle=False), len(row_id), config.embedder)
        with atomic(folder / "embeddings.npy") as file:
            np.save(file, vectors, allow_pickle=False)
    else:
        assert found is not None
        wanted = set(row_id.tolist())
        samples = (row for row in source_of(folder) if isinstance(row, Sample) and row.row_id in wanted)
        location, name = found.location, found.name
        with Progress("embedding", len(row_id), "rows") as progress:
            embed_rows(
                samples, len(row_id), lambda: TextEncoder(location, name, batch_size=config.embed_batch), parts,
                folder / "embeddings.npy", progress.advance,
            )  # fmt: skip
    save_row_ids(folder / "embeddings_rows.npy", row_id)
    folder.finish("embed", seconds=round(time.monotonic() - began, 3))
    shutil.rmtree(parts, ignore_errors=True)


# ---- select ----


def _check_selection(config: SelectConfig) -> None:
    """What can be known to be wrong before an hour is spent."""
    from instruct_prune.registry import suggestion
    from instruct_prune.select import SELECTORS

    if config.keep is None and config.keep_tokens is None:
        raise InputError("say how much to keep: --keep 0.3 (a share), --keep 5000 (rows) or --keep-tokens 2000000.")
    if config.method not in SELECTORS:
        raise InputError(
            f"unknown --method {config.method!r}.{suggestion(config.method, SELECTORS)} Known: {', '.join(sorted(SELECTORS))}."
        )
    _check_budget(config, None)


def _check_budget(config: SelectConfig, n: int | None) -> None:
    from instruct_prune.datatypes import Pool
    from instruct_prune.select import resolve_budget

    if config.keep_tokens is not None and config.keep is None:
        return
    known = n if n is not None else 2**40 if isinstance(config.keep, int) else 10**6
    # A pool of the right length and no memory: only the number of rows matters here.
    empty = np.broadcast_to(np.int32(0), known)
    resolve_budget(config.keep, config.keep_tokens, Pool(empty, empty, empty, empty))  # type: ignore[arg-type]


def select(folder: RunFolder, config: SelectConfig) -> Selection:
    """Draw an exact budget from a scored run; may be called many times with other options."""
    from instruct_prune.select import build_pool, resolve_budget, select_rows

    _check_selection(config)
    began = time.monotonic()
    stage = folder.require("score", f"score --data ... --out {folder.path}")
    table = _score_for(folder, config, stage)
    embeddings = folder.read_embeddings() if folder.stage("embed").get("complete") else None
    clusters, values, names = None, None, None
    if config.stratify:
        values = _column(folder, config.stratify, table)
    elif config.clusters != "none" and config.method in ("flexrand", "easy_diverse"):
        clusters = _clusters(folder, config, embeddings)
    pool = build_pool(table, embeddings=embeddings, clusters=clusters, values=values, cluster_names=names)
    budget = resolve_budget(config.keep, config.keep_tokens, pool)
    split: float | str = config.split if config.split in ("auto", "mmd") else _number(config.split, "--split")
    selection = select_rows(
        pool,
        budget,
        method=config.method,
        split=split,
        seed=config.seed,
        min_per_stratum=config.min_per_stratum,
    )
    if len(selection) != int(table.scored.sum()):
        raise AssertionError("scored rows were lost in selection")
    folder.write_selection(selection)
    kept = int(selection.selected.sum())
    identity = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    folder.begin("select", {"score": digest(stage["config"]), **identity}, restart=True)
    folder.finish(
        "select",
        accounting={"scored": len(selection), "kept": kept, "dropped": len(selection) - kept},
        selected_hash=row_ids_hash(selection.kept),
        params=dict(selection.params),
        strata=len(selection.strata_names),
        seconds=round(time.monotonic() - began, 3),
    )
    return selection


def _score_for(folder: RunFolder, config: SelectConfig, stage: Mapping[str, Any]) -> ScoreTable:
    from instruct_prune.score.passes import parse_subnets

    table = folder.read_scores()
    name = config.score or table.score_name
    ladder = tuple(SubnetSpec(*spec) for spec in stage["ladder"])
    if config.score_subnets:
        ladder = parse_subnets(config.score_subnets)
    left_out = [] if config.include_collapsed else list(stage["collapsed"])
    return rescored(table, name, tuple(s for s in ladder if s.kind != "alone"), config.score_weights, left_out)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} {text}: expected a number, auto or mmd.") from None


def _clusters(folder: RunFolder, config: SelectConfig, embeddings: Any) -> Any:
    from instruct_prune.embed.clusters import cluster

    if embeddings is None:
        raise InputError(
            f"{folder.path} has no embeddings, so there are no clusters. Run `instruct-prune embed --out {folder.path}` first, "
            "or select with --clusters none."
        )
    k: int | str = "auto" if config.clusters == "auto" else config.clusters
    if k != "auto":
        if not str(k).isdigit() or int(k) < 1:
            raise InputError(f"--clusters {k}: expected a number of clusters, auto or none.")
        k = int(k)
    clusters = cluster(embeddings, k, config.seed)
    folder.write_clusters(clusters)
    return clusters


def _column(folder: RunFolder, name: str, table: ScoreTable) -> list[Any]:
    """A column of the data, one value for each row of the score table."""
    wanted = set(table.row_id.tolist())
    found = {row.row_id: row.columns.get(name) for row in source_of(folder) if isinstance(row, Sample) and row.row_id in wanted}
    if all(value is None for value in found.values()):
        raise InputError(f"--stratify {name}: the data has no column of this name (or it is empty in every row).")
    return [found.get(int(i)) for i in table.row_id]


# ---- export ----


def export(folder: RunFolder, config: ExportConfig) -> Path:
    """``pruned.jsonl``: the kept rows, exactly as they came, in input order."""
    from instruct_prune.export.rows import write_pruned

    folder.require("select", f"select --out {folder.path} --keep ...")
    selection = folder.read_selection()
    source = source_of(folder)
    target = folder / "pruned.jsonl"
    written = write_pruned(read_raw(source, selection.kept.tolist()), target)
    if written != len(selection.kept):
        raise AssertionError(f"{written} rows were written, {len(selection.kept)} were kept")
    folder.begin("export", {"selected": row_ids_hash(selection.kept), "to": list(config.to)}, restart=True)
    folder.finish("export", rows=written, sha256=sha256_of(target))
    return target
