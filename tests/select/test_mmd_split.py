"""split="mmd" takes the split whose subset lies nearest to the whole set."""

import numpy as np
import pytest

from instruct_prune.errors import InputError
from instruct_prune.geometry import WholeSet
from instruct_prune.select import select_rows
from instruct_prune.select.data import Budget, Pool
from instruct_prune.select.mmd_split import SPLITS


def pool_of(n: int, easy_share: float) -> Pool:
    """The easiest rows point one way and the others another."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, 6)) * 0.3
    vectors[:, 0] += np.where(np.arange(n) < easy_share * n, 1, -1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ones = np.ones(n, dtype=np.int32)
    return Pool(np.arange(n), np.arange(n, dtype=np.float32), ones, 0 * ones, embeddings=vectors.astype(np.float32))


@pytest.mark.parametrize("easy_share", [0.1, 0.3, 0.5])
def test_the_chosen_split_keeps_the_mix(easy_share):
    # Half of the rows are kept, so the easy share is min(split, 1/4): only a split that gives each side its part does well.
    pool = pool_of(1000, easy_share)
    selection = select_rows(pool, Budget(rows=500), params={"split": "mmd"})
    curve = selection.params["mmd"]
    assert [point[0] for point in curve] == list(SPLITS)
    chosen = selection.params["split"]
    assert min(curve, key=lambda point: point[1])[0] == chosen
    whole = WholeSet(pool.embeddings, seed=0)
    for split, mmd in curve:
        assert whole.mmd_squared(select_rows(pool, Budget(rows=500), params={"split": split}).kept) == pytest.approx(
            mmd, abs=1e-7
        )
    kept_share = (selection.kept < easy_share * 1000).mean()
    assert abs(kept_share - easy_share) < 0.06
    assert np.array_equal(select_rows(pool, Budget(rows=500), params={"split": chosen}).kept, selection.kept)


def test_one_row_is_not_enough():
    with pytest.raises(InputError, match="at least two kept rows"):
        select_rows(pool_of(20, 0.5), Budget(rows=1), params={"split": "mmd"})
