"""A method outside the package, in one file of the working folder, is as good as one of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from instruct_prune import catalog
from instruct_prune.errors import InputError
from instruct_prune.select import METHODS, Budget, Codes, Pool, Stratum, find_method, method, select_rows
from instruct_prune.select.stratum import BUDGET, PICKED

OWN = '''
from __future__ import annotations
from typing import TYPE_CHECKING
import numpy as np
from instruct_prune.select import method
if TYPE_CHECKING:
    from instruct_prune.select import Codes, Stratum


@method(needs=("score", "losses:dense"), strata="clusters")
def weighted(stratum: Stratum, *, weight: float = 0.0) -> Codes:
    """The highest sum of score and weighted loss. More words."""
    value = stratum.score + weight * stratum.pool.losses["dense"][stratum.rows]
    return stratum.take(np.argsort(-value, kind="stable"))


def plain(stratum, first=True):
    order = np.arange(len(stratum))
    return stratum.take(order if first else order[::-1])
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_methods.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_methods", None)


def pool_of(n: int = 6, losses: bool = True) -> Pool:
    return Pool(
        row_id=np.arange(n),
        score=np.arange(n, dtype=np.float32),
        n_response=np.full(n, 2, dtype=np.int32),
        strata=np.zeros(n, dtype=np.int32),
        losses={"dense": -2 * np.arange(n, dtype=np.float32)} if losses else {},
    )


def test_a_declared_method_with_its_parameters(own):
    name = "own_methods:weighted"
    assert select_rows(pool_of(), Budget(rows=2), method=name).kept.tolist() == [4, 5]
    params = find_method(name).parse(["weight=1"])
    for budget in (Budget(rows=2), Budget(tokens=5)):
        selection = select_rows(pool_of(), budget, method=name, params=params)
        assert selection.kept.tolist() == [0, 1]
    assert selection.method == name
    assert dict(selection.params) == {"method": name, "weight": 1.0}
    found = find_method(name)
    assert (found.strata, found.about) == ("clusters", "The highest sum of score and weighted loss")


def test_a_plain_function_needs_a_score_and_takes_all_rows(own):
    name = "own_methods:plain"
    found = find_method(name)
    assert (found.needs_of(), found.strata) == (("score",), "all")
    assert select_rows(pool_of(), Budget(rows=2), method=name).kept.tolist() == [0, 1]
    assert select_rows(pool_of(), Budget(rows=2), method=name, params={"first": False}).kept.tolist() == [4, 5]


def test_a_function_in_python():
    def second(stratum: Stratum) -> Codes:
        """The second row first."""
        return stratum.take(np.roll(np.arange(len(stratum)), -1))

    selection = select_rows(pool_of(), Budget(rows=1), method=second)
    assert selection.kept.tolist() == [1]
    assert selection.method.endswith("second")
    assert select_rows(pool_of(), Budget(rows=1), method=find_method("hardest")).kept.tolist() == [5]


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("own_methods:weighted", {"wieght": 1.0}, "has no parameter 'wieght'. Did you mean 'weight'"),
        ("own_methods:weighted", {"weight": "much"}, "weight is 'much', it takes float"),
        ("own_methods:wieghted", {}, "has no 'wieghted'. Did you mean 'weighted'"),
        ("own_methods:np", {}, "an object of type module; a function or a @method is expected"),
        ("own_nowhere:rule", {}, "no module 'own_nowhere'"),
    ],
)
def test_what_is_wrong_is_refused(own, name, params, says):
    with pytest.raises(InputError) as caught:
        select_rows(pool_of(), Budget(rows=2), method=name, params=params)
    assert says in str(caught.value)


def test_what_a_method_needs_must_be_there(own):
    with pytest.raises(InputError, match="needs the loss of each row under 'dense'; this run has none"):
        select_rows(pool_of(losses=False), Budget(rows=2), method="own_methods:weighted")


def test_a_need_that_is_no_column():
    @method(needs=("embedding",))
    def wrong(stratum: Stratum) -> Codes:
        return stratum.take(np.arange(len(stratum)))

    with pytest.raises(InputError, match=r"'embedding', which is no column of a pool\. Did you mean 'embeddings'"):
        select_rows(pool_of(), Budget(rows=2), method=wrong)


def test_parameters_that_depend_on_the_whole_selection():
    def settle(draw, params):
        return {"share": draw.share if params["share"] is None else params["share"]}, {"rows in all": len(draw.pool)}

    @method(prepare=settle)
    def prepared(stratum: Stratum, *, share: float | None = None) -> Codes:
        assert share is not None
        return stratum.take(np.arange(len(stratum))[:: -1 if share > 0.4 else 1])

    assert select_rows(pool_of(), Budget(rows=3), method=prepared).kept.tolist() == [3, 4, 5]
    selection = select_rows(pool_of(), Budget(rows=2), method=prepared)
    assert selection.kept.tolist() == [0, 1]
    assert selection.params["share"] == pytest.approx(1 / 3)
    assert selection.params["rows in all"] == 6


ANSWERS = {
    "a mask": (lambda stratum: np.ones(len(stratum), dtype=bool), "returned bool"),
    "too few": (lambda stratum: np.full(1, PICKED), "for a stratum of 6 rows"),
    "no reasons": (lambda stratum: np.full(len(stratum), 99), "returned reasons from 99 to 99"),
    "too many rows": (lambda stratum: np.full(len(stratum), PICKED), "spent 6 of a budget of 2"),
    "too few rows": (lambda stratum: stratum.kept_so_far(), "kept 1 rows of a budget of 2"),
    "not what must be kept": (lambda stratum: np.full(len(stratum), BUDGET), "drops rows that must be kept"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_that_are_no_selection(answer):
    rule, says = ANSWERS[answer]
    with pytest.raises(InputError, match=says):
        select_rows(pool_of(), Budget(rows=2), method=rule, must_keep=[3])


def test_the_table_of_methods(own):
    rows = {row["name"]: row for row in catalog.methods(catalog.OwnCommand(("own_methods:weighted",))).data()}
    assert set(rows) == {*METHODS, "own_methods:weighted"}
    assert rows["flexrand"]["parameters"] == "split=auto (float above 0 and below 1, auto or mmd)"
    assert rows["ccs"]["needs"] == "score"
    assert rows["ccs"]["parameters"] == "cut=0.1 (float at least 0 and below 1), bins=50 (int at least 1)"
    assert rows["random"]["needs"] == "nothing"
    assert all(row["about"] for row in rows.values())


def test_nothing_heavy_is_imported():
    code = (
        "import sys, instruct_prune.select, instruct_prune.score, instruct_prune.score.health, instruct_prune.select.clusters\n"
        "from instruct_prune.select import METHODS, find_method; [find_method(name).parameters for name in METHODS]\n"
        "print({'torch', 'transformers', 'scipy', 'sklearn', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
