"""Scores, strata and embeddings are joined by row id, and what does not fit together is refused."""

from dataclasses import replace

import numpy as np
import pytest

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import build_pool, strata_from_values
from instruct_prune.select.data import Clusters, Embeddings

IDS = np.array([1, 2, 4, 7])


def table_of(status=("ok", "truncated", "failed", "ok"), score=(0.5, 1.5, np.nan, 2.5)) -> ScoreTable:
    score = np.array(score, dtype=np.float32)
    counts = np.array([3, 4, 5, 6], dtype=np.int32)
    return ScoreTable(
        row_id=IDS,
        content_hash=np.array(list("abcd")),
        status=np.array(status),
        n_prompt=counts,
        n_response=counts,
        n_cut=0 * counts,
        losses=np.stack([score, 2 * score], axis=1),
        subnets=(SubnetSpec("dense"), SubnetSpec("magnitude", 0.8)),
        score=score,
        score_name="dlc",
        backbone="tiny",
    )


def embeddings_of(ids) -> Embeddings:
    return Embeddings(np.array(ids), np.array(ids, dtype=np.float32)[:, None] * np.ones(2, dtype=np.float32), "tiny")


def test_only_scored_rows_and_their_own_columns():
    pool = build_pool(table_of(), embeddings=embeddings_of([9, 7, 4, 2, 1]), values=["x", None, "y", "x"])
    assert pool.row_id.tolist() == [1, 2, 7]
    assert pool.score.tolist() == [0.5, 1.5, 2.5]
    assert pool.n_response.tolist() == [3, 4, 6]
    assert pool.embeddings[:, 0].tolist() == [1, 2, 7]
    assert pool.losses["magnitude_0800"].tolist() == [1, 3, 5]
    assert [pool.strata_names[s] for s in pool.strata] == ["x", "(none)", "x"]


def test_embeddings_of_the_same_rows_are_not_copied():
    embeddings = embeddings_of([1, 2, 7])
    assert build_pool(table_of(), embeddings=embeddings).embeddings is embeddings.vectors


def test_clusters_by_row_id():
    labels = np.array([1, 0, 1, 0], dtype=np.int32)
    clusters = Clusters(
        np.array([7, 4, 2, 1]), labels, np.zeros(4, dtype=np.float32), np.zeros((2, 3), dtype=np.float32)
    )
    pool = build_pool(table_of(), clusters=clusters)
    assert pool.strata.tolist() == [0, 1, 1]
    assert pool.strata_names == ("cluster 0", "cluster 1")
    assert build_pool(table_of(), clusters=clusters, cluster_names=("sql", "maths")).strata_names == ("sql", "maths")
    with pytest.raises(InputError, match="not both"):
        build_pool(table_of(), clusters=clusters, values=["x"] * 4)


def test_embeddings_of_another_run():
    for ids, first, more in (([1, 2], 7, 0), ([20, 21, 22], 1, 2), ([], 1, 2)):
        with pytest.raises(InputError, match=rf"the table of embeddings lacks row {first} \(and {more} more\)"):
            build_pool(table_of(), embeddings=embeddings_of(ids))


def test_nothing_scored():
    with pytest.raises(InputError, match="none of the 4 rows has a score"):
        build_pool(table_of(status=["failed"] * 4))


def test_nan_score_of_a_scored_row():
    with pytest.raises(InputError, match="first: row 2"):
        build_pool(table_of(score=(0, np.nan, np.nan, np.inf)))


def test_values_are_compared_as_text_in_sorted_order():
    labels, names = strata_from_values([2, "b", "", None, "2", 10])
    assert names == ("(none)", "10", "2", "b")
    assert labels.tolist() == [2, 3, 0, 0, 2, 1]


def test_as_many_values_as_rows():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        build_pool(replace(table_of()), values=["x"])
