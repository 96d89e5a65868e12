"""Comparisons and correlations against hand-made numbers."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.report.compare import (
    compare,
    comparison_tables,
    correlate,
    correlation_tables,
    score_columns,
)
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Pool


def pool_of(n: int) -> Pool:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.arange(n)
    return Pool(2 * rows, rows.astype(np.float32), (rows + 1).astype(np.int32), np.zeros(n, dtype=np.int32),
                embeddings=vectors.astype(np.float32))  # fmt: skip


def test_overlap_and_profiles_by_hand():
    pool = pool_of(10)
    clusters = np.repeat([0, 1], 5).astype(np.int32)
    kept = {"a": np.array([0, 2, 4, 6]), "b": np.array([4, 6, 8]), "c": np.array([16, 18, 14, 12])}
    comparison = compare(pool, kept, clusters=clusters)
    assert comparison.names == ("a", "b", "c", "random, 3 rows", "random, 4 rows")
    assert comparison.jaccard[0, 1] == pytest.approx(2 / 5)
    assert comparison.jaccard[0, 2] == 0
    assert np.array_equal(comparison.jaccard, comparison.jaccard.T)
    assert (np.diag(comparison.jaccard) == 1).all()
    whole, a, _, c, random3, random4 = comparison.profiles
    assert (whole.rows, whole.tokens, whole.mmd, whole.cluster_shift) == (10, 55, 0, 0)
    assert (a.rows, a.tokens, a.clusters_met, a.cluster_shift) == (4, 10, 0.5, 0.5)
    assert c.score[2] == 7.5
    assert c.length[2] == 8.5
    assert (random3.rows, random4.rows) == (3, 4)
    x = pool.embeddings[:4].astype(np.float64)
    nearest = np.mean([1 - max(x[i] @ x[j] for j in range(4) if j != i) for i in range(4)])
    assert a.nearest == pytest.approx(nearest, abs=1e-6)


def test_discrepancy_tells_a_lopsided_selection_from_a_random_one():
    pool = pool_of(600)
    lopsided = pool.row_id[np.argsort(pool.embeddings[:, 0])[:200]]
    profiles = compare(pool, {"lopsided": lopsided}).profiles
    assert profiles[1].mmd > 10 * abs(profiles[2].mmd)
    assert profiles[1].clusters_met is None


def test_without_embeddings():
    comparison = compare(replace(pool_of(5), embeddings=None), {"a": np.array([0, 2])})
    assert comparison.profiles[1].mmd is None
    assert comparison.profiles[1].nearest is None


def test_what_cannot_be_compared():
    with pytest.raises(InputError, match="nothing to compare"):
        compare(pool_of(5), {})
    with pytest.raises(InputError, match="b keeps row 3"):
        compare(pool_of(5), {"b": np.array([0, 3])})
    with pytest.raises(InputError, match="keeps no rows"):
        compare(pool_of(5), {"b": np.array([], dtype=int)})


def test_correlations_by_definition():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 40).astype(np.float32)  # with ties
    b = (a + rng.standard_normal(40)).astype(np.float32)
    found = correlate({"a": a, "b": b, "minus a": -a}, top=0.25)

    def rank(x):
        return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])

    assert found.spearman[0, 1] == pytest.approx(np.corrcoef(rank(a), rank(b))[0, 1])
    assert found.spearman[0, 2] == pytest.approx(-1)
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in itertools.combinations(range(40), 2)]
    tau = sum(x * y for x, y in signs) / np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
    assert found.kendall[0, 1] == pytest.approx(tau)
    hardest = [set(np.argsort(-x, kind="stable")[:10]) for x in (a, b)]
    assert found.overlap[0, 1] == len(hardest[0] & hardest[1]) / 10
    assert (found.rows, found.left_out) == (40, 0)


def test_rows_without_a_value_are_left_out_and_counted():
    found = correlate({"a": np.array([1, 2, np.nan, 4, 5.0]), "b": np.array([1, 2, 0, 4, np.inf])})
    assert (found.rows, found.left_out) == (3, 2)
    assert found.spearman[0, 1] == pytest.approx(1)
    assert np.isnan(correlate({"a": np.ones(4), "b": np.arange(4.0)}).spearman[0, 1])


def test_what_cannot_be_correlated():
    three = np.arange(3.0)
    for columns, says in (
        ({"a": three}, "two or more"),
        ({"a": three, "b": np.arange(4.0)}, "over the same rows"),
        ({"a": three, "b": np.full(3, np.nan)}, "0 rows in common"),
    ):
        with pytest.raises(InputError, match=says):
            correlate(columns)
    with pytest.raises(InputError, match="--top"):
        correlate({"a": three, "b": three}, top=0)


def table_of(ids) -> ScoreTable:
    n = len(ids)
    counts, score = np.ones(n, dtype=np.int32), np.arange(n, dtype=np.float32)
    status = np.array(["ok"] * (n - 1) + ["failed"])
    return ScoreTable(np.array(ids), np.array(["x"] * n), status, counts, counts, counts, score[:, None],
                      (SubnetSpec("dense"),), score, "loss", "tiny")  # fmt: skip


def test_columns_of_runs():
    columns = score_columns({"a": table_of([1, 2, 3]), "b": table_of([1, 2, 3])})
    assert list(columns) == ["a:score", "a:loss_dense", "b:score", "b:loss_dense"]
    assert np.array_equal(columns["b:score"], [0, 1, np.nan], equal_nan=True)
    with pytest.raises(InputError, match="b and a have scores of different rows"):
        score_columns({"a": table_of([1, 2, 3]), "b": table_of([1, 2, 4])})


def test_tables_print_numbers_and_no_control_characters():
    console = Console(width=200, record=True, file=io.StringIO())
    comparison = compare(pool_of(10), {"evil \x1b[31m": np.array([0, 2])})
    found = correlate({"a": np.arange(9.0), "b": np.ones(9)})
    for table in [
        *comparison_tables(comparison),
        *correlation_tables(found),
    ]:
        console.print(table)
    text = console.export_text()
    assert "\x1b" not in text
    for expected in ("evil", "random, 2 rows", "Spearman"):
        assert expected in text
