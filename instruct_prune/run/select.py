"""Select: an exact budget from a scored run; no model is needed, so it may be done many times."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.config import SelectConfig
from instruct_prune.errors import InputError, told_together
from instruct_prune.measure.ladder import parse_subnets
from instruct_prune.rows.table import RowTable
from instruct_prune.run.chosen import chosen_by, load_target, seed_stability, taken_by, token_counts
from instruct_prune.run.columns import columns_for
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts, ScoreFacts, SelectFacts
from instruct_prune.run.row_facts import RowFacts, read_facts
from instruct_prune.run.target_facts import COMPARED, TargetFacts
from instruct_prune.score.aggregate import rescored
from instruct_prune.score.scores import find_score
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import Method, build_pool, find_method, resolve_budget, select_rows
from instruct_prune.select.clusters import cluster, name_clusters
from instruct_prune.select.data import Clusters, Embeddings, Pool, Selection
from instruct_prune.select.duplicates import find_duplicates, keep_priority
from instruct_prune.storage import row_ids_hash


def check_selection(config: SelectConfig) -> None:
    """What can be known to be wrong before an hour is spent.

    Raises:
        InputError: a budget, method, parameter or number of clusters that is none; all of them in one message.
    """

    def check_method() -> None:
        method, params = method_of(config)
        method.needs_of(params)

    told_together(
        lambda: check_budget(config, None),
        check_method,
        lambda: config.score is None or score_params(config, config.score),
        lambda: clusters_wanted(config),
    )


def check_budget(config: SelectConfig, n: int | None) -> None:
    """Refuse a budget that ``n`` rows cannot meet; with None, one that no dataset can.

    Raises:
        InputError: as `resolve_budget` says it.
    """
    if config.keep is None and config.keep_tokens is None:
        raise InputError("say how much to keep: --keep 0.3 (a share), --keep 5000 (rows) or --keep-tokens 2000000.")
    if config.keep is None:
        return
    known = n if n is not None else 2**40 if isinstance(config.keep, int) else 10**6
    # A pool of the right length and no memory: only the number of rows matters here.
    empty = np.broadcast_to(np.int32(0), known)
    resolve_budget(config.keep, config.keep_tokens, Pool(empty, empty, empty, empty))  # type: ignore[arg-type]


def method_of(config: SelectConfig) -> tuple[Method, dict[str, Any]]:
    """The method, and the parameters that are set; ``--split`` is short for ``--param split=``."""
    method = find_method(config.method or "flexrand")
    return method, method.parse([*config.param, *([] if config.split == "auto" else [f"split={config.split}"])])


def score_params(config: SelectConfig, name: str) -> dict[str, Any]:
    """The parameters of a score: those that are set, and the defaults of the others."""
    found = find_score(name)
    return found.bind(found.parse(config.score_param, "--score-param"))


def clusters_wanted(config: SelectConfig) -> int | str:
    """--clusters as a number, "auto" or "none"."""
    if config.clusters in ("auto", "none"):
        return config.clusters
    if not config.clusters.isdigit() or int(config.clusters) < 1:
        raise InputError(f"--clusters {config.clusters}: expected a number of clusters, auto or none.")
    return int(config.clusters)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a selection was asked for, with its method found and its strata decided.

    Attributes:
        config: the options.
        method: the method.
        params: its parameters that were set.
        clustered: whether clusters are the strata.
        embeddings: whether rows are compared by their vectors.
        by: how rows are compared with a target; None for methods that have none.
    """

    config: SelectConfig
    method: Method
    params: dict[str, Any]
    clustered: bool
    embeddings: bool
    by: str | None


def ask(folder: RunFolder, config: SelectConfig, strata: str | None) -> Asked:
    """Decide what the options leave open.

    Args:
        folder: the run.
        config: the options.
        strata: the column that says by itself which rows belong together, or None.

    Raises:
        InputError: the method selects towards a target that was not measured, or ``--by`` is given and it does not.
    """
    method, params = method_of(config)
    wants = method.strata == "clusters" and config.stratify is None
    if wants and config.clusters == "auto" and strata is not None:
        config, wants = dataclasses.replace(config, stratify=strata), False
    needs = method.needs_of(params)
    compares = config.dedup is not None or "embeddings" in needs
    if "target" in needs:
        config = dataclasses.replace(config, by=chosen_by(folder, config.by))
    elif config.by is not None:
        raise InputError(
            f"--by {config.by} is for selection towards a target: {method} has none. Use --method targeted."
        )
    return Asked(config, method, params, wants and config.clusters != "none", compares, config.by)


def select(folder: RunFolder, config: SelectConfig) -> Selection:
    """Draw an exact budget and write ``selection.parquet`` (and ``clusters.parquet``).

    Raises:
        InputError: an option is wrong, or a stage that it needs has not run or is stale.
    """
    if config.method is None and folder.record(TargetFacts) is not None:
        config = dataclasses.replace(config, method="targeted")
    check_selection(config)
    began = time.monotonic()
    rows = RowTable.open(folder / "rows")
    asked = ask(folder, config, rows.facts.strata)
    scored = folder.facts(ScoreFacts)
    measured = folder.read_scores()
    name = config.score or measured.score_name
    params = score_params(config, name)
    rescore = functools.partial(
        rescored,
        measured,
        name,
        params=params,
        more=columns_for(folder, rows, measured, name),
        leave_out=scored.collapsed,
    )
    table = _under_score(measured, rescore, scored, config)
    embeddings = _embeddings(folder, asked)
    facts = read_facts(folder, table, asked.config, naming=asked.clustered)
    clusters, names = None, None
    if asked.clustered:
        assert embeddings is not None
        clusters, names = _clusters(config, embeddings, facts)
    make_pool = functools.partial(
        build_pool,
        embeddings=embeddings if asked.embeddings else None,
        clusters=clusters,
        values=facts.strata,
        cluster_names=names,
        target=None if asked.by is None else load_target(folder, table, asked.by),
    )
    draw = functools.partial(_draw, asked=asked, facts=facts, make_pool=make_pool)
    selection = draw(table)
    told: dict[str, Any] = {f"score {key}": value for key, value in params.items()}
    told |= {} if asked.by is None else {"by": asked.by}
    selection = dataclasses.replace(selection, params={**selection.params, **told})
    if len(selection) != int(table.scored.sum()):
        raise AssertionError("scored rows were lost in selection")
    more: dict[str, Any] = dict(seed_stability(scored, table, draw, rescore) or {})
    if asked.by is not None:
        more |= taken_by(make_pool(table), selection)
    _write(folder, asked, table, selection, clusters, more, began)
    return selection


def _write(
    folder: RunFolder,
    asked: Asked,
    table: ScoreTable,
    selection: Selection,
    clusters: Clusters | None,
    more: Mapping[str, Any],
    began: float,
) -> None:
    """The tables of a selection and its record; what an earlier selection left goes."""
    inputs = (ScoreFacts, *((EmbedFacts,) if asked.clustered or asked.embeddings else ()))
    inputs = (*inputs, *(() if asked.by is None else (COMPARED[asked.by],)))
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(asked.config).items()}
    folder.begin(SelectFacts, options, inputs, replace=True)
    folder.write_selection(selection, more)
    if clusters is None:
        (folder / "clusters.parquet").unlink(missing_ok=True)
    else:
        folder.write_clusters(clusters)
    kept = int(selection.selected.sum())
    folder.finish(
        SelectFacts(
            scored=len(selection),
            kept=kept,
            dropped=len(selection) - kept,
            tokens=token_counts(table, selection),
            score=table.score_name,
            duplicates=0 if selection.duplicate_of is None else int((selection.duplicate_of >= 0).sum()),
            unstable=int(more["unstable"].sum()) if "unstable" in more else None,
            selected_hash=row_ids_hash(selection.kept),
            params=dict(selection.params),
            clustered=clusters is not None,
            strata=len(selection.strata_names),
            seconds=round(time.monotonic() - began, 3),
        )
    )


def selection_of(folder: RunFolder) -> Selection:
    """The run's selection.

    Raises:
        InputError: there is none, or it is stale.
    """
    facts, selection = folder.facts(SelectFacts), folder.read_selection()
    if facts.selected_hash != row_ids_hash(selection.kept):
        raise InputError(
            f"{folder / 'selection.parquet'} is not the selection that the manifest tells of (interrupted, or edited?). Run "
            f"`instruct-prune select --keep ... --out {folder.path}` again."
        )
    return selection


def _draw(table: ScoreTable, asked: Asked, facts: RowFacts, make_pool: Callable[..., Pool]) -> Selection:
    pool, config = make_pool(table), asked.config
    return select_rows(
        pool,
        resolve_budget(config.keep, config.keep_tokens, pool),
        method=asked.method,
        params=asked.params,
        seed=config.seed,
        min_per_stratum=config.min_per_stratum,
        must_keep=facts.must_keep,
        duplicate_of=_duplicates(config, pool, facts, table),
    )


def _duplicates(config: SelectConfig, pool: Pool, facts: RowFacts, table: ScoreTable) -> Int64 | None:
    if config.dedup is None:
        return None
    priority = keep_priority(pool, config.dedup_keep, facts.must_keep)
    keys = None if facts.keys is None else facts.keys[table.scored]
    return find_duplicates(pool.row_id, priority, keys=keys, vectors=pool.embeddings, threshold=config.dedup)


def _under_score(
    measured: ScoreTable, rescore: Callable[..., ScoreTable], scored: ScoreFacts, config: SelectConfig
) -> ScoreTable:
    """The run's table under the score that the selection asks for, over the subnets that it names."""
    earned = scored.earned
    if earned is not None and earned.collapsed and config.include_collapsed:
        raise InputError(
            f"--include-collapsed: {', '.join(earned.collapsed)} collapsed on the pilot of --subnets auto, so only the pilot's "
            "rows went through it. Score with --subnets dlc to have it for every row."
        )
    if (
        earned is not None
        and config.score in (None, scored.score)
        and not (config.score_subnets or config.score_weights)
    ):
        return measured  # a predicted score is no average over the subnets that all rows went through
    ladder = parse_subnets(config.score_subnets) if config.score_subnets else scored.ladder
    return rescore(
        subnets=tuple(spec for spec in ladder if spec.is_full),
        weights=config.score_weights or None,
        leave_out=() if config.include_collapsed else scored.collapsed,
    )


def _embeddings(folder: RunFolder, asked: Asked) -> Embeddings | None:
    if folder.find(EmbedFacts) is not None:
        return folder.read_embeddings()
    config = asked.config
    wanting = {
        f"--method {config.method}": "embeddings" in asked.method.needs_of(asked.params),
        "--dedup": config.dedup is not None,
        "--clusters": asked.clustered,
    }
    for what, wanted in wanting.items():
        if wanted:
            other = " (or select with --clusters none)" if what == "--clusters" else ""
            raise InputError(
                f"{folder.path} has no embeddings, which {what} needs. Run `instruct-prune embed --out {folder.path}` first{other}."
            )
    return None


def _clusters(config: SelectConfig, embeddings: Embeddings, facts: RowFacts) -> tuple[Clusters, tuple[str, ...]]:
    clusters = cluster(embeddings, clusters_wanted(config), config.seed)
    labels = clusters.labels[np.searchsorted(clusters.row_id, facts.named_rows)]
    names = list(name_clusters(facts.texts, labels))
    names += [f"cluster {i}" for i in range(len(names), len(clusters.centers))]
    return clusters, tuple(names)
