"""What a study is made of: its options, the rows to train and to measure on, the arms."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lora
import numpy as np
import training

from instruct_prune.api import Run
from instruct_prune.arrays import Int64
from instruct_prune.config import DataConfig, EmbedConfig, EncodeConfig, ScoreConfig
from instruct_prune.encode.item import Encoded, Status
from instruct_prune.encode.store import TokenStore
from instruct_prune.errors import InputError
from instruct_prune.export.rows import write_pruned
from instruct_prune.models import names as models
from instruct_prune.registry import suggestion
from instruct_prune.rows import open_data, read_raw
from instruct_prune.rows.row import Row
from instruct_prune.run.folder import RunFolder
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import METHODS, build_pool, find_method, resolve_budget, select_rows
from instruct_prune.select.clusters import cluster
from instruct_prune.select.data import Embeddings

FULL = "full"


@dataclass(frozen=True)
class Study(training.Training):
    """Which arms, on which rows, measured where."""

    data: tuple[str, ...] = ()
    """Dataset to study: a random pool and held-out rows are drawn from it, scored and embedded."""
    run_folder: str = ""
    """Instead of --data: a run folder that is scored and embedded; its rows are the pool and the held-out rows."""
    out: str = ""
    """The study's folder."""
    pool_rows: int = 0
    """Rows to select from (0: all that are not held out)."""
    held_out_rows: int = 500
    """Rows that no arm trains on."""
    eval: tuple[str, ...] = ()
    """Other sets to measure on, as NAME=FILE."""
    eval_rows: int = 300
    """Rows of each of them, drawn at random."""
    model: str = "smollm2-135m-instruct"
    """Scores and is trained; with --run-folder it is the run's."""
    embedder: str = "all-minilm-l6-v2"
    subnets: tuple[str, ...] = ("dlc", "alone")
    """What to score, as in `instruct-prune score --subnets`."""
    max_length: int | None = 512
    """Longest row in tokens; with --run-folder it is the run's."""
    keep: tuple[float, ...] = (0.1, 0.3)
    """Shares of the pool."""
    arms: tuple[str, ...] = ("random", "flexrand", "easy_diverse", "hardest", "ifd", FULL)
    """Selection methods; full trains on the whole pool."""
    selection: tuple[str, ...] = ()
    """Selections made elsewhere, as NAME=selection.parquet of the same run; rows held out are taken out of them."""
    micro_batch: int = 4
    """Rows in a forward pass: one row alone leaves a CPU waiting for the weights."""
    seeds: int = 3
    """Runs of each arm: the seed draws random subsets, initialises adapters and shuffles."""
    equal: Literal["epochs", "steps"] = "epochs"
    """What every arm has the same number of; steps needs --max-steps."""
    difficulty_rows: int = 500
    """Rows whose loss is followed while the full arm trains (0: none)."""
    budget_minutes: float = 0.0
    """Plan the arms that fit (0: all)."""
    lm_eval: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness."""
    lm_eval_folder: str | None = None
    """Folder with the tasks' YAML files and data."""


@dataclass(frozen=True)
class Arm:
    """One training: a subset and a seed."""

    name: str
    keep: float
    seed: int
    rows: Int64
    select_seconds: float = 0.0

    @property
    def file(self) -> str:
        return f"{self.name}-{self.keep:g}-s{self.seed}"


@dataclass(frozen=True)
class Material:
    """All that arms share.

    Attributes:
        folder: the scored run.
        table, embeddings: of the pool's rows alone.
        rows: encoded rows of the pool by row id.
        evaluations: {set: rows}; "held-out" is the first.
        dropped: held-out rows that were taken out because the pool has the same tokens.
    """

    folder: RunFolder
    table: ScoreTable
    embeddings: Embeddings | None
    rows: dict[int, Encoded]
    evaluations: dict[str, list[Encoded]]
    dropped: int
    scored: lora.Scored


# ---- rows ----


def prepare_run(study: Study) -> RunFolder:
    """The scored run: the one given, or one made of a random part of --data (each stage is skipped when done)."""
    if study.run_folder:
        folder = RunFolder(study.run_folder)
        folder.require("score", f"score --data ... --out {study.run_folder}")
        return folder
    if not study.data:
        raise InputError("--data is missing: name the dataset to study, or a scored run with --run-folder.")
    sample = Path(study.out) / "rows.jsonl"
    if not sample.exists():
        source = open_data(list(study.data))
        ids = np.asarray([row.row_id for row in source if isinstance(row, Row)], dtype=np.int64)
        wanted = study.pool_rows + study.held_out_rows if study.pool_rows else len(ids)
        drawn = np.sort(np.random.default_rng(study.seed).permutation(ids)[:wanted])
        write_pruned(read_raw(source, drawn.tolist()), sample)
    run = Run(Path(study.out) / "run")
    scoring = ScoreConfig(model=study.model, subnets=study.subnets, dtype=study.dtype)
    run.score(DataConfig((str(sample),)), scoring, EncodeConfig(max_length=study.max_length))
    if any(needs_embeddings(name) for name in study.arms if name != FULL):
        run.embed(EmbedConfig(embedder=study.embedder))
    return run.folder


def prepare(study: Study, folder: RunFolder) -> Material:
    """Split the scored rows into pool and held-out rows; read the other evaluation sets.

    Raises:
        InputError: too few rows.
    """
    table, store = folder.read_scores(), TokenStore.open(folder / "tokens")
    scored = lora.scored_as(str(folder.path))
    ids = table.row_id[table.scored]
    shuffled = np.random.default_rng([study.seed, 1]).permutation(ids)
    if study.held_out_rows < 1 or len(ids) <= study.held_out_rows:
        raise InputError(
            f"--held-out-rows {study.held_out_rows}: the run has {len(ids)} scored rows; some must be left to train on."
        )
    held_out, pool = np.sort(shuffled[: study.held_out_rows]), shuffled[study.held_out_rows :]
    pool = np.sort(pool[: study.pool_rows] if study.pool_rows else pool)
    hashes = dict(zip(table.row_id.tolist(), table.content_hash.tolist(), strict=True))
    known = {hashes[i] for i in pool.tolist()}
    fresh = [i for i in held_out.tolist() if hashes[i] not in known]
    position = {int(row_id): i for i, row_id in enumerate(store.row_id)}

    def encoded(row_id: int) -> Encoded:
        tokens = store[position[row_id]]
        return Encoded(row_id, tokens.ids, tokens.response_mask, Status.OK, content_hash=hashes[row_id])

    evaluations = {"held-out": [encoded(i) for i in fresh]}
    for text in study.eval:
        name, _, file = text.partition("=")
        if not (name and file) or name in evaluations:
            raise InputError(f"--eval {text}: write NAME=FILE, each name once.")
        evaluations[name] = read_evaluation(study, scored, file)
    embeddings = folder.read_embeddings() if folder.stage("embed").get("complete") else None
    return Material(
        folder,
        rows_of(table, pool),
        embeddings,
        {int(i): encoded(int(i)) for i in pool},
        evaluations,
        len(held_out) - len(fresh),
        scored,
    )


def read_evaluation(study: Study, scored: lora.Scored, file: str) -> list[Encoded]:
    """A random part of another dataset, under the scorer's template."""
    source = models.find_model(scored.model)
    tokenizer, context = models.load_tokenizer(source), models.context_length(source)
    recipe = lora.Recipe(run_folder=study.run_folder or "run", template=scored.template)
    rows = lora.read_rows(
        [file], lambda f: lora.make_encoder(recipe, scored, tokenizer, context, f), scored, strict=False
    )
    drawn = np.sort(np.random.default_rng([study.seed, 2]).permutation(len(rows))[: study.eval_rows])
    return [rows[i] for i in drawn]


def rows_of(table: ScoreTable, row_ids: Int64) -> ScoreTable:
    """The rows of a score table with these ids."""
    at = np.searchsorted(table.row_id, row_ids)
    names = ("row_id", "content_hash", "status", "n_prompt", "n_response", "n_cut", "losses", "score")
    return dataclasses.replace(table, **{name: getattr(table, name)[at] for name in names})


# ---- arms ----


def make_arms(study: Study, material: Material) -> list[Arm]:
    """All arms in the order in which they are worth having: every method once, then random again, then the rest.

    Raises:
        InputError: an unknown method, a share out of range, a selection that does not fit.
    """
    for name in study.arms:
        if name not in METHODS and name != FULL:
            known = [*METHODS, FULL]
            raise InputError(f"--arms {name}: unknown.{suggestion(name, known)} Known: {', '.join(known)}.")
    arms = []
    for seed in range(study.seeds):
        for keep in study.keep:
            for name in study.arms:
                if name != FULL:
                    began = time.monotonic()
                    arms.append(Arm(name, keep, seed, select(material, name, keep, seed), time.monotonic() - began))
        arms += [
            Arm(name, round(len(rows) / len(material.rows), 4), seed, rows) for name, rows in given(study, material)
        ]
        if FULL in study.arms:
            arms.append(Arm(FULL, 1.0, seed, material.table.row_id))
    # sorted() keeps the order of equals: all first seeds, then random's, then the others', the costly full arm last.
    return sorted(arms, key=lambda arm: (arm.seed > 0) * (1 + 2 * (arm.name == FULL) + (arm.name != "random")))


def needs_embeddings(name: str) -> bool:
    """Whether a method compares embeddings, or takes clusters of them as strata."""
    method = find_method(name)
    return method.strata == "clusters" or "embeddings" in method.needs_of()


def select(material: Material, method: str, keep: float, seed: int) -> Int64:
    """int64 [k]: the row ids that a method keeps of the pool, as `instruct-prune select` does."""
    embeddings, clusters = material.embeddings, None
    if needs_embeddings(method) and embeddings is None:
        raise InputError(
            f"the arm {method} needs embeddings. Run `instruct-prune embed --out {material.folder.path}` first."
        )
    if find_method(method).strata == "clusters" and embeddings is not None:
        at = np.searchsorted(embeddings.row_id, material.table.row_id)
        own = Embeddings(material.table.row_id, np.asarray(embeddings.vectors[at]), embeddings.encoder)
        clusters = cluster(own, "auto", seed)
    wanted = embeddings if "embeddings" in find_method(method).needs_of() else None
    pool = build_pool(material.table, embeddings=wanted, clusters=clusters)
    return select_rows(pool, resolve_budget(keep, None, pool), method=method, seed=seed).kept


def given(study: Study, material: Material) -> list[tuple[str, Int64]]:
    """Selections made elsewhere, without the rows that are held out."""
    import pyarrow.parquet as pq

    found = []
    for text in study.selection:
        name, _, file = text.partition("=")
        if not file or not Path(file).is_file():
            raise InputError(f"--selection {text}: write NAME=selection.parquet; there is no file {file!r}.")
        columns = pq.read_table(file, columns=["row_id", "selected"])
        kept = columns.column("row_id").to_numpy()[columns.column("selected").to_numpy()]
        rows = np.intersect1d(kept, material.table.row_id)
        if not len(rows):
            raise InputError(f"--selection {text}: none of its rows is in the pool. Is it a selection of this run?")
        found.append((name, rows))
    return found
