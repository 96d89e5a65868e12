"""Each baseline against a computation by hand or by brute force."""

import itertools

import numpy as np
import pytest

from instruct_prune.errors import InputError
from instruct_prune.select import select_rows
from instruct_prune.select.data import Budget, Pool


def pool_of(score, vectors=None, n_response=None, losses=None) -> Pool:
    n = len(score)
    if vectors is not None:
        vectors = np.asarray(vectors, dtype=np.float64)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return Pool(
        row_id=np.arange(n),
        score=np.asarray(score, dtype=np.float32),
        n_response=np.ones(n, dtype=np.int32) if n_response is None else np.asarray(n_response, dtype=np.int32),
        strata=np.zeros(n, dtype=np.int32),
        embeddings=vectors,
        losses={name: np.asarray(loss, dtype=np.float32) for name, loss in (losses or {}).items()},
    )


def random_pool(n: int, d: int, seed: int) -> Pool:
    rng = np.random.default_rng(seed)
    return pool_of(rng.random(n), rng.standard_normal((n, d)))


def kept(pool: Pool, rows: int, method: str, **options) -> list[int]:
    return select_rows(pool, Budget(rows=rows), method=method, **options).kept.tolist()


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_rankings_by_hand():
    pool = pool_of([3, 1, 2, 5, 4], n_response=[7, 9, 9, 1, 2])
    assert kept(pool, 2, "easiest") == kept(pool, 2, "easy_diverse") == [1, 2]
    assert kept(pool, 2, "hardest") == [3, 4]
    assert kept(pool, 3, "longest") == [0, 1, 2]
    assert kept(pool, 1, "longest") == [2]  # of two that are equally long, the harder
    assert kept(pool, 1, "perplexity_middle") == [0]
    assert kept(pool, 3, "perplexity_middle") == [0, 2, 4]
    assert kept(pool, 2, "perplexity_middle") == [0, 2]  # a tie goes to the easier


def test_random_keeps_every_row_equally_often():
    pool = pool_of(np.arange(20))
    counts = np.zeros(20)
    for seed in range(400):
        counts[kept(pool, 5, "random", seed=seed)] += 1
    assert np.abs(counts - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


def test_easy_diverse_is_the_easiest_of_each_stratum():
    pool = Pool(np.arange(6), np.array([6, 5, 4, 3, 2, 1], dtype=np.float32), np.ones(6, dtype=np.int32),
                np.array([0, 0, 0, 1, 1, 1], dtype=np.int32), ("a", "b"))  # fmt: skip
    assert kept(pool, 2, "easy_diverse") == [2, 5]


def test_ifd_by_hand():
    # IFD of the rows: 0.5, 0.9, 1.2, 0.7, 1.1
    alone = np.full(5, 2.0)
    pool = pool_of(np.zeros(5), losses={"alone": alone, "dense": alone + np.log([0.5, 0.9, 1.2, 0.7, 1.1])})
    assert kept(pool, 1, "ifd") == [1]
    assert kept(pool, 2, "ifd") == [1, 3]
    assert kept(pool, 3, "ifd") == [0, 1, 3]
    assert kept(pool, 4, "ifd") == [0, 1, 3, 4]  # of those above 1, the nearest to 1


def test_ifd_needs_finite_losses():
    with pytest.raises(InputError, match="row 1 has no IFD"):
        kept(pool_of([0, 1], losses={"alone": [1, np.nan], "dense": [1, 1]}), 1, "ifd")


def test_moderate_by_hand():
    # Mean direction is 0 degrees; the distances to it grow with the angle: the median one is that of 30 degrees.
    pool = pool_of(np.arange(7), at_angles(0, 10, -10, 30, -30, 60, -60))
    assert sorted(kept(pool, 2, "moderate")) == [3, 4]
    brute = np.linalg.norm(pool.embeddings - pool.embeddings.mean(axis=0), axis=1)
    brute = np.argsort(np.abs(brute - np.median(brute)), kind="stable")
    assert set(kept(pool, 5, "moderate")) == set(brute[:5].tolist())


@pytest.mark.parametrize("seed", range(5))
def test_k_center_takes_the_farthest_and_is_within_twice_the_optimum(seed):
    pool = random_pool(12, 3, seed)
    x = pool.embeddings.astype(np.float64)
    distance = np.sqrt(np.maximum(2 - 2 * x @ x.T, 0))
    got = kept(pool, 4, "k_center", seed=seed)
    start = int(np.random.default_rng(seed).integers(12))
    by_score = np.argsort(pool.score)
    expected = [int(by_score[start])]
    while len(expected) < 4:
        expected.append(int(distance[:, expected].min(axis=1).argmax()))
    assert got == sorted(expected)
    best = min(distance[:, list(c)].min(axis=1).max() for c in itertools.combinations(range(12), 4))
    assert distance[:, got].min(axis=1).max() <= 2 * best + 1e-6


def test_k_center_starts_from_the_rows_that_must_be_kept():
    pool = pool_of(np.arange(4), at_angles(0, 5, 90, 180))
    assert kept(pool, 2, "k_center", must_keep=[0]) == [0, 3]
    assert kept(pool, 3, "k_center", must_keep=[0]) == [0, 2, 3]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("forced", [[], [3, 5]])
def test_herding_step_by_step(seed, forced):
    pool = random_pool(15, 4, seed)
    x = pool.embeddings.astype(np.float64)
    mean, chosen = x.mean(axis=0), list(forced)
    while len(chosen) < 6:  # the step in its other form: nearest to what is missing to (t + 1) times the mean
        missing = mean * (len(chosen) + 1) - x[chosen].sum(axis=0)
        value = x @ missing
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
    assert kept(pool, 6, "herding", must_keep=forced) == sorted(chosen)


def test_herding_matches_the_mean_better_than_random():
    pool = random_pool(200, 8, 0)
    mean = pool.embeddings.mean(axis=0)

    def off(rows):
        return np.linalg.norm(pool.embeddings[rows].mean(axis=0) - mean)

    assert off(kept(pool, 20, "herding")) < 0.5 * min(off(kept(pool, 20, "random", seed=s)) for s in range(10))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("neighbors", [3, 11])
@pytest.mark.parametrize("forced", [[], [7]])
def test_facility_location_is_the_plain_greedy(seed, neighbors, forced):
    pool = random_pool(12, 4, seed)
    x = pool.embeddings.astype(np.float64)
    cosine = x @ x.T
    serves = np.zeros((12, 12))  # [row, by]
    for row in range(12):
        others = [j for j in np.argsort(-cosine[row], kind="stable") if j != row][:neighbors]
        serves[row, others] = np.maximum(cosine[row, others], 0)
        serves[row, row] = 1
    chosen = list(forced)
    while len(chosen) < 5:
        gain = [serves[:, [*chosen, j]].max(axis=1).sum() if j not in chosen else -1 for j in range(12)]
        chosen.append(int(np.argmax(gain)))
    got = kept(pool, 5, "facility_location", params={"neighbors": neighbors}, must_keep=forced)
    # Two rows that represent each other tie, so the value is compared and not the rows.
    assert serves[:, got].max(axis=1).sum() == pytest.approx(serves[:, chosen].max(axis=1).sum(), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_facility_location_is_near_the_optimum(seed):
    pool = random_pool(10, 3, seed)
    cosine = np.maximum(pool.embeddings @ pool.embeddings.T, 0)
    best = max(cosine[:, list(c)].max(axis=1).sum() for c in itertools.combinations(range(10), 3))
    assert cosine[:, kept(pool, 3, "facility_location")].max(axis=1).sum() >= 0.63 * best


def test_ccs_by_hand():
    # 20 rows; the hardest 10% (rows 18 and 19) are cut. Four bins of the range 0..9: rows 0-11, 12-13, 14-16 and 17.
    score = [0.1 * i for i in range(12)] + [3, 4, 5, 5.1, 6, 9, 50, 60]
    pool = pool_of(score)
    selection = select_rows(pool, Budget(rows=9), method="ccs", params={"bins": 4})
    got = np.histogram(np.flatnonzero(selection.selected), bins=[0, 12, 14, 17, 18, 20])[0]
    assert got.tolist() == [3, 2, 3, 1, 0]  # 9 over bins that hold 12, 2, 3 and 1
    assert [selection.reasons[r] for r in selection.reason[18:]] == ["too hard", "too hard"]
    assert kept(pool, 19, "ccs") == list(range(19))  # more than the cut leaves: less is cut
    assert len(kept(pool_of(np.ones(9)), 4, "ccs")) == 4


def test_deita_by_hand():
    # Hardest first: 0 degrees; 10 is too similar to it (cos 0.985); 60 fits; 65 is too similar; 180 fits.
    pool = pool_of([5, 4, 3, 2, 1], at_angles(0, 10, 60, 65, 180))
    selection = select_rows(pool, Budget(rows=3), method="deita")
    assert [selection.reasons[r] for r in selection.reason] == [
        "picked",
        "too similar",
        "picked",
        "too similar",
        "picked",
    ]
    assert kept(pool, 4, "deita") == [0, 1, 2, 4]  # the hardest of those passed over fills the budget
    assert kept(pool, 3, "deita", params={"threshold": 0.99}) == [0, 1, 2]
    assert kept(pool, 3, "deita", must_keep=[3]) == [0, 3, 4]


def test_deita_by_brute_force_over_several_blocks(monkeypatch):
    monkeypatch.setattr("instruct_prune.select.deita.BLOCK", 7)
    pool = random_pool(60, 3, 0)
    cosine = pool.embeddings @ pool.embeddings.T
    chosen: list[int] = []
    for row in np.argsort(-pool.score):
        if len(chosen) < 12 and not (cosine[row, chosen] >= 0.8).any():
            chosen.append(int(row))
    assert len(chosen) == 12
    assert kept(pool, 12, "deita", params={"threshold": 0.8}) == sorted(chosen)


@pytest.mark.parametrize("seed", range(5))
def test_d2_step_by_step(seed):
    pool = random_pool(15, 3, seed)
    score = pool.score.astype(np.float64)
    x = pool.embeddings.astype(np.float64)
    cosine = x @ x.T
    near = [[j for j in np.argsort(-cosine[i], kind="stable") if j != i][:4] for i in range(15)]
    base = (score - score.min()) / (score.max() - score.min())
    weight = np.exp(-(2 - 2 * cosine))
    value = np.array([base[i] + sum(weight[i, j] * base[j] for j in near[i]) for i in range(15)])
    chosen: list[int] = []
    while len(chosen) < 6:
        pick = max((i for i in range(15) if i not in chosen), key=lambda i: value[i])
        chosen.append(pick)
        for j in near[pick]:
            value[j] -= weight[pick, j] * max(value[pick], 0)
    assert kept(pool, 6, "d2", params={"neighbors": 4}) == sorted(chosen)


@pytest.mark.parametrize("method", ["k_center", "herding", "facility_location", "moderate", "deita", "d2"])
def test_embedding_methods_take_one_row_and_identical_rows(method):
    assert kept(pool_of([1], [[1, 0]]), 1, method) == [0]
    same = pool_of([1, 2, 3], [[1, 0]] * 3)
    assert len(kept(same, 2, method)) == 2


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("ccs", {"cut": 1}),
        ("ccs", {"bins": 0}),
        ("deita", {"threshold": 0}),
        ("facility_location", {"neighbors": 0}),
        ("d2", {"neighbors": 0}),
        ("d2", {"penalty": -1}),
    ],
)
def test_parameters_out_of_range(method, params):
    with pytest.raises(InputError, match=method):
        kept(pool_of([1, 2], [[1, 0], [0, 1]]), 1, method, params=params)
