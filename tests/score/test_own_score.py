"""A score outside the package, in one file of the working folder, is as good as one of its own."""

import sys
from pathlib import Path

import numpy as np
import pytest

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.score import SCORES, Columns, ScoreTable, aggregate, find_score, rescored

OWN = '''
import numpy as np
from instruct_prune.score import Columns, score


@score(needs=("loss_dense", "depth_of_thought"))
def thoughtful(columns: Columns, *, power: float = 1.0):
    """Loss by depth of thought."""
    return columns["loss_dense"] * columns["depth_of_thought"] ** power


def doubled(columns):
    return 2 * columns["loss_dense"]


def single(columns):
    return columns["loss_dense"].mean()
'''
DENSE = SubnetSpec("dense")
LOSSES = {DENSE: np.asarray([1.0, 2.0, np.nan], dtype=np.float32)}
THOUGHT = {"depth_of_thought": np.asarray([3.0, 4.0, 5.0])}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_scores.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_scores", None)


def test_a_declared_score_over_a_column_of_the_users_own(own):
    columns = Columns.of_losses(LOSSES, more=THOUGHT)
    name = "own_scores:thoughtful"
    np.testing.assert_array_equal(aggregate(columns, name), np.asarray([3, 8, np.nan], dtype=np.float32))
    values = aggregate(columns, name, find_score(name).parse(["power=2"]))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [9, 32, np.nan])
    assert find_score(name).needs_of() == ("loss_dense", "depth_of_thought")


def test_a_plain_function(own):
    np.testing.assert_array_equal(aggregate(Columns.of_losses(LOSSES), "own_scores:doubled"), [2, 4, np.nan])
    np.testing.assert_array_equal(
        aggregate(Columns.of_losses(LOSSES), lambda columns: -columns["loss_dense"]), [-1, -2, np.nan]
    )


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("own_scores:thoughtful", {}, "needs depth_of_thought, which was not measured"),
        ("own_scores:thoughtful", {"pwer": 2}, "Did you mean 'power'"),
        ("own_scores:thoughtful", {"power": "two"}, "power is 'two', it takes float"),
        ("own_scores:single", {}, r"returned float32 \(\) for 3 rows"),
        ("own_scores:tripled", {}, "has no 'tripled'"),
        ("dlc", {"k": 1}, "the score 'dlc' has no parameter 'k'. It takes none"),
        ("lambda", {}, "unknown --score 'lambda'"),
        (lambda columns: columns["loss_nowhere"], {}, "the column 'loss_nowhere' was not measured"),
    ],
)
def test_what_is_wrong_is_refused(own, name, params, says):
    with pytest.raises(InputError, match=says):
        aggregate(Columns.of_losses(LOSSES), name, params)


def table() -> ScoreTable:
    counts = np.ones(2, dtype=np.int32)
    return ScoreTable(
        row_id=np.arange(2),
        content_hash=np.array(["a", "b"]),
        status=np.array(["ok", "ok"]),
        n_prompt=counts,
        n_response=counts,
        n_cut=counts,
        losses=np.array([[1, 3], [2, 6]], dtype=np.float32),
        subnets=(DENSE, SubnetSpec("magnitude", 0.5)),
        score=np.zeros(2, dtype=np.float32),
        score_name="dlc",
        backbone="tiny",
    )


def test_a_table_under_another_score(own):
    assert rescored(table(), "dlc").score.tolist() == [2, 4]
    assert rescored(table(), "dlc", leave_out=["magnitude_0500"]).score.tolist() == [1, 2]
    assert rescored(table(), "dlc", weights=[3, 1]).score.tolist() == [1.5, 3]
    thought = {"depth_of_thought": np.array([3, 4])}
    found = rescored(table(), "own_scores:thoughtful", params={"power": 2.0}, more=thought)
    assert found.score.tolist() == [9, 32]
    assert found.score_name == "own_scores:thoughtful"


def test_a_ladder_with_a_subnet_that_was_not_scored():
    with pytest.raises(InputError, match="the score 'lc' needs the subnet 'magnitude_0250', which was not measured"):
        rescored(table(), "lc", subnets=[DENSE, SubnetSpec("magnitude", 0.25)])


def test_columns_of_one_length():
    with pytest.raises(ValueError, match="loss_dense has 3, x has 2"):
        Columns.of_losses(LOSSES, more={"x": np.zeros(2)})


def test_every_score_says_what_it_is():
    assert all(find_score(name).about for name in SCORES)
    assert find_score("dlc").needs_of() == ("ladder",)
