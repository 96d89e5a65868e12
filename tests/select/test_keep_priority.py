"""Which row of a group stands for the others."""

import numpy as np
import pytest

from instruct_prune.errors import InputError
from instruct_prune.select.data import Pool
from instruct_prune.select.duplicates import keep_priority


@pytest.fixture
def pool() -> Pool:
    return Pool(
        row_id=np.array([3, 5, 8, 9]),
        score=np.array([2, 7, 7, 1], dtype=np.float32),
        n_response=np.array([10, 4, 10, 30], dtype=np.int32),
        strata=np.zeros(4, dtype=np.int32),
    )


@pytest.mark.parametrize(
    ("rule", "must_keep", "order"),
    [
        ("hardest", [], [5, 8, 3, 9]),  # of two equals the lower row id
        ("longest", [], [9, 3, 8, 5]),
        ("first", [], [3, 5, 8, 9]),
        ("hardest", [9, 3], [3, 9, 5, 8]),
    ],
)
def test_order(pool, rule, must_keep, order):
    assert pool.row_id[np.argsort(keep_priority(pool, rule, must_keep))].tolist() == order


def test_bad_input(pool):
    with pytest.raises(InputError, match="Did you mean 'longest'"):
        keep_priority(pool, "longer")
    with pytest.raises(InputError, match="first: row 4"):
        keep_priority(pool, "first", [4])
