"""What a selection was asked for: its options checked, its method found, its strata decided."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from instruct_prune.arrays import Int32
from instruct_prune.config import SelectConfig
from instruct_prune.errors import InputError, told_together
from instruct_prune.progress import say
from instruct_prune.rows.find import find_readers, is_hub_id
from instruct_prune.run.chosen import chosen_by
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.row_facts import must_keep_of
from instruct_prune.score.scores import find_score
from instruct_prune.select import Method, find_method, resolve_budget
from instruct_prune.select.budget import check_seed
from instruct_prune.select.data import Pool
from instruct_prune.select.selection import ONE_STRATUM


def check_selection(config: SelectConfig) -> None:
    """What can be known to be wrong before an hour is spent.

    Raises:
        InputError: a budget, method, parameter or number of clusters that is none; all of them in one message.
    """

    def check_method() -> None:
        method, params = method_of(config)
        method.needs_of(params)
        if config.balanced and config.stratify is None and (method.strata != "clusters" or config.clusters == "none"):
            raise InputError(ONE_STRATUM)

    told_together(
        lambda: check_budget(config, None),
        check_method,
        lambda: _check_dedup(config),
        lambda: _refuse_idle(config),
        lambda: _check_tests(config),
        lambda: must_keep_of(config.must_keep),
        lambda: config.score is None or score_params(config, config.score),
        lambda: clusters_wanted(config),
        lambda: check_seed(config.seed),
    )


def _refuse_idle(config: SelectConfig) -> None:
    """``--clusters N`` and ``--dedup-keep`` where nothing goes by them.

    Raises:
        InputError: one of them is given and would change nothing, whatever the method.
    """
    if config.clusters not in ("auto", "none") and config.stratify is not None:
        raise InputError(f"--clusters {config.clusters}: the strata are those of --stratify. Give one of the two.")
    if config.dedup_keep is not None and config.dedup is None:
        raise InputError(f"--dedup-keep {config.dedup_keep} is for near-duplicates, which --dedup 0.95 looks for.")


def _check_dedup(config: SelectConfig) -> None:
    if config.dedup is not None and not 0 < config.dedup <= 1:
        raise InputError(f"--dedup {config.dedup:g}: a cosine similarity above 0, at most 1 (0.95 is usual).")


def _check_tests(config: SelectConfig) -> None:
    """``--decontaminate`` and what belongs to it."""
    above = config.decontaminate_above
    if above is not None and not config.decontaminate:
        raise InputError("--decontaminate-above needs --decontaminate: the files whose rows must not be repeated.")
    if above is not None and not 0 < above <= 1:
        raise InputError(f"--decontaminate-above {above:g}: a cosine similarity above 0, at most 1 (0.95 is usual).")
    for path in config.decontaminate:
        if path != "-" and not is_hub_id(path):  # standard input can be read once
            try:
                list(find_readers([path], None, None))
            except InputError as error:
                raise InputError(f"--decontaminate: {error}") from None


def check_first(select: SelectConfig, by_model: bool) -> None:
    """What can be known to be wrong before anything is read.

    Args:
        select: the options of the selection that will follow.
        by_model: whether the rows' vectors come from the scoring model.

    Raises:
        InputError: nothing would be set aside, or what says so is known after scoring only.
    """
    if select.dedup is None and not select.decontaminate:
        raise InputError("--dedup-first needs to know which rows go: give --dedup 0.95, --decontaminate FILE, or both.")
    _check_tests(select)
    if select.dedup_keep == "hardest":
        raise InputError(
            "--dedup-keep hardest goes by scores, and with --dedup-first there are none yet. Take longest or first, or leave one "
            "of the two options out."
        )
    if by_model and compares_vectors(select):
        raise InputError(
            "--dedup-first compares vectors before scoring, and those of --embedder model are the scoring model's own, read while it "
            "scores. Name an embedding model (--embedder all-minilm-l6-v2) or a .npy file, or leave --dedup-first out."
        )


def compares_vectors(select: SelectConfig) -> bool:
    """Whether what ``--dedup-first`` takes out is found by the rows' vectors."""
    return select.dedup is not None or select.decontaminate_above is not None


def check_budget(config: SelectConfig, n_response: Int32 | None) -> None:
    """Refuse a budget that rows cannot meet; with None, one that no dataset can.

    Args:
        config: the options.
        n_response: int32 [n], response tokens of the rows.

    Raises:
        InputError: as `resolve_budget` says it.
    """
    if config.keep is None and config.keep_tokens is None:
        raise InputError("say how much to keep: --keep 0.3 (a share), --keep 5000 (rows) or --keep-tokens 2000000.")
    # Where nothing is known yet, 2**60 rows of any length, which take no memory.
    lengths = np.broadcast_to(np.int32(1), 2**60) if n_response is None else n_response
    if config.keep is None and n_response is None:
        return
    empty = np.broadcast_to(np.int32(0), len(lengths))
    resolve_budget(config.keep, config.keep_tokens, Pool(empty, empty, lengths, empty))  # type: ignore[arg-type]
    wanted = clusters_wanted(config)
    if n_response is not None and isinstance(wanted, int) and config.stratify is None and wanted > len(n_response):
        raise InputError(f"--clusters {wanted} is more than the {len(n_response)} rows that can be scored.")


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
    if config.clusters not in ("auto", "none") and method.strata != "clusters":
        say(f"note: --clusters {config.clusters} changes nothing: {method} takes all rows as one stratum")
    needs = method.needs_of(params)
    compares = config.dedup is not None or "embeddings" in needs
    if "target" in needs:
        config = dataclasses.replace(config, by=chosen_by(folder, config.by))
    elif config.by is not None:
        raise InputError(
            f"--by {config.by} is for selection towards a target: {method} has none. Use --method targeted."
        )
    return Asked(config, method, params, wants and config.clusters != "none", compares, config.by)
