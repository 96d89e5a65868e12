"""k-means: the same clusters for the same seed, every row in its nearest one, and names from their own words."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from instruct_prune.errors import InputError
from instruct_prune.select.clusters import auto_clusters, cluster, name_clusters
from instruct_prune.select.data import Embeddings


def blobs(n: int, k: int, d: int = 8, spread: float = 0.1, seed: int = 0) -> tuple[Embeddings, np.ndarray]:
    rng = np.random.default_rng(seed)
    of = rng.integers(0, k, n)
    vectors = np.eye(d)[of] + spread * rng.standard_normal((n, d))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return Embeddings(np.arange(n), vectors, "tiny"), of


def test_blobs_are_found():
    embeddings, of = blobs(300, 4)
    clusters = cluster(embeddings, 4, seed=1)
    pairs = {(a, b) for a, b in zip(of.tolist(), clusters.labels.tolist(), strict=True)}
    assert len(pairs) == 4
    assert clusters.labels.dtype == np.int32
    assert clusters.centers.shape == (4, 8)


def test_every_row_is_in_its_nearest_cluster():
    embeddings, _ = blobs(500, 6, spread=0.5)
    clusters = cluster(embeddings, 9)
    distance = np.linalg.norm(embeddings.vectors[:, None].astype(float) - clusters.centers[None], axis=2)
    assert np.allclose(clusters.distances, distance[np.arange(500), clusters.labels], atol=1e-6)
    assert (clusters.distances <= distance.min(axis=1) + 1e-5).all()


@pytest.mark.parametrize("n", [200, 3000])  # below and above what the centres are learnt from
def test_same_seed_same_clusters_whatever_the_threads(n):
    embeddings, _ = blobs(n, 5, spread=0.6)
    first = cluster(embeddings, 7, seed=3)
    for threads in (1, 2, 4):
        with threadpool_limits(limits=threads):
            again = cluster(embeddings, 7, seed=3)
        assert np.array_equal(first.labels, again.labels)
        assert first.centers.tobytes() == again.centers.tobytes()
    assert not np.array_equal(first.labels, cluster(embeddings, 7, seed=4).labels)


def test_memory_mapped_vectors(tmp_path):
    embeddings, _ = blobs(300, 4)
    np.save(tmp_path / "e.npy", embeddings.vectors)
    mapped = Embeddings(embeddings.row_id, np.load(tmp_path / "e.npy", mmap_mode="r"), "tiny")
    assert np.array_equal(cluster(mapped, 5).labels, cluster(embeddings, 5).labels)


def test_auto_rule():
    assert [auto_clusters(n) for n in (1, 15, 16, 63, 64, 150, 400, 9000, 1_000_000, 10**8)] == [
        1, 1, 2, 7, 8, 9, 14, 67, 707, 1000,
    ]  # fmt: skip
    embeddings, _ = blobs(150, 5)
    assert cluster(embeddings).labels.max() < 9


def test_fewer_distinct_rows_than_clusters():
    vectors = np.repeat(np.eye(2, 4, dtype=np.float32), 10, axis=0)
    clusters = cluster(Embeddings(np.arange(20), vectors, "tiny"), 6)
    assert sorted(np.bincount(clusters.labels).tolist()) == [10, 10]
    assert len(clusters.centers) == 2


@pytest.mark.parametrize("k", [0, -1, 31, 2.0, True, "many"])
def test_bad_number_of_clusters(k):
    embeddings, _ = blobs(30, 3)
    with pytest.raises(InputError, match="from 1 to 30"):
        cluster(embeddings, k)


def test_nan_vectors_and_no_vectors():
    embeddings, _ = blobs(30, 3)
    embeddings.vectors[7, 2] = np.nan
    with pytest.raises(InputError, match="row 7 holds NaN"):
        cluster(embeddings, 3)
    with pytest.raises(InputError, match="no row has an embedding"):
        cluster(Embeddings(np.empty(0, int), np.empty((0, 3), np.float32), "tiny"))


def test_names_are_the_words_that_tell_clusters_apart():
    texts = ["Write a SQL query for the orders table"] * 5 + ["Bake bread with flour in the oven"] * 5
    texts += ["Solve the equation for x in algebra"] * 5
    names = name_clusters(texts, np.repeat([0, 1, 2], 5).astype(np.int32))
    assert set(names[0].split(", ")) <= {"write", "sql", "query", "orders", "table"}
    assert set(names[1].split(", ")) <= {"bake", "bread", "flour", "oven"}
    assert len(names[2].split(", ")) == 3 or names[2] == "solve, equation, algebra"


def test_names_of_empty_and_equal_texts():
    assert name_clusters(["", "1 2 3"], np.array([0, 1], dtype=np.int32)) == ("cluster 0", "cluster 1")
    assert name_clusters([], np.empty(0, dtype=np.int32)) == ()
    assert name_clusters(["red apple"], np.zeros(1, dtype=np.int32)) == ("apple, red",)


def test_a_cluster_of_which_no_row_has_a_text_here_has_a_number():
    """Of more than 100,000 rows every other one lends its text, and small clusters may have none of them."""
    texts = ["red apple", "red apple", "blue sky", "blue sky"]
    names = name_clusters(texts, np.array([0, 0, 2, 2], dtype=np.int32))
    assert names == ("apple, red", "cluster 1", "blue, sky")


def test_names_show_no_control_characters():
    names = name_clusters(["\x1b[31mred\x1b[0m \u202eevil"] * 3, np.zeros(3, dtype=np.int32))
    assert all(c.isalpha() or c in ", " for c in names[0])
