"""Draws of rows within a budget, steps of equal tokens, claims on work, plans into a time."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.errors import InputError
from instruct_prune.prove.arms import at_total, draw_among, draw_of_lengths, draw_random, take
from instruct_prune.prove.claims import Claims
from instruct_prune.prove.plan import Costs, choose_rate, make_plan
from instruct_prune.train import steps_of

RNG = np.random.default_rng(5)
RESPONSE = np.minimum(RNG.lognormal(3.5, 0.9, 600).astype(np.int64) + 2, 400)
TOTAL = RESPONSE + RNG.integers(10, 90, 600)
BUDGET = 4000


# ---- draws ----


@given(st.integers(0, 10_000), st.sampled_from([1.0, 2.0]))
def test_random_rows_meet_the_budget_by_response_and_by_all_tokens(seed: int, times: float) -> None:
    rows = draw_random(RESPONSE, TOTAL, BUDGET, seed, times)
    assert RESPONSE[rows].sum() == pytest.approx(BUDGET * times, rel=0.01)
    assert TOTAL[rows].sum() == pytest.approx(BUDGET * times * TOTAL.sum() / RESPONSE.sum(), rel=0.01)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.tolist() == sorted(rows.tolist()) == draw_random(RESPONSE, TOTAL, BUDGET, seed, times).tolist()


def test_random_rows_are_drawn_alike() -> None:
    count = np.zeros(len(RESPONSE))
    for seed in range(300):
        count[draw_random(RESPONSE, TOTAL, BUDGET, seed)] += 1
    short, long = (count[np.median(RESPONSE) >= RESPONSE].mean(), count[np.median(RESPONSE) < RESPONSE].mean())
    assert short == pytest.approx(long, rel=0.1)


@given(st.integers(0, 10_000), st.sampled_from(["short", "long"]))
def test_rows_of_the_same_lengths(seed: int, which: str) -> None:
    order = np.argsort(RESPONSE) if which == "short" else np.argsort(-RESPONSE)[50:]
    like = take(order, RESPONSE, BUDGET)
    rows = draw_of_lengths(like, RESPONSE, BUDGET, seed)
    assert RESPONSE[rows].sum() == pytest.approx(BUDGET, rel=0.01)
    assert np.median(RESPONSE[rows]) == pytest.approx(np.median(RESPONSE[like]), rel=0.15)
    assert set(rows.tolist()) != set(like.tolist())


def test_among_some_rows_alone() -> None:
    some = np.arange(0, 600, 4)
    rows = draw_among(some, RESPONSE, BUDGET, 3)
    assert set(rows.tolist()) <= set(some.tolist())
    assert RESPONSE[rows].sum() == pytest.approx(BUDGET, rel=0.01)


@pytest.mark.parametrize("order", [np.argsort(RESPONSE), np.argsort(-RESPONSE)])
@pytest.mark.parametrize("wanted", [3000, 6000, 20_000])
def test_equal_total_tokens(order: np.ndarray, wanted: int) -> None:  # type: ignore[type-arg]
    rows = at_total(lambda tokens: take(order, RESPONSE, tokens), TOTAL, wanted, BUDGET, int(RESPONSE.sum()))
    assert rows is not None
    assert TOTAL[rows].sum() == pytest.approx(wanted, rel=0.01)


def test_total_tokens_of_a_rule_that_has_not_all_rows() -> None:
    order, wanted = np.argsort(-RESPONSE), 6000
    reach = int(1.2 * RESPONSE[at_total_rows(order, wanted)].sum())

    def draw(tokens: int) -> np.ndarray:  # type: ignore[type-arg]
        if tokens > reach:
            raise InputError("the rule has fewer rows")
        return take(order, RESPONSE, tokens)

    rows = at_total(draw, TOTAL, wanted, BUDGET, int(RESPONSE.sum()))
    assert rows is not None
    assert TOTAL[rows].sum() == pytest.approx(wanted, rel=0.01)


def at_total_rows(order: np.ndarray, wanted: int) -> np.ndarray:  # type: ignore[type-arg]
    rows = at_total(lambda tokens: take(order, RESPONSE, tokens), TOTAL, wanted, BUDGET, int(RESPONSE.sum()))
    assert rows is not None
    return rows


def test_total_tokens_that_a_rule_cannot_have() -> None:
    few = np.arange(5)
    assert at_total(lambda tokens: take(few, RESPONSE, tokens), TOTAL, 9000, BUDGET, int(RESPONSE.sum())) is None


# ---- steps ----


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=80),
    st.integers(1, 60),
    st.sampled_from([0.5, 1, 2, 3]),
    st.integers(0, 99),
)
def test_every_step_has_tokens_and_every_row_is_seen_as_often(
    sizes: list[int], steps: int, epochs: float, seed: int
) -> None:
    total = round(epochs * sum(sizes))
    if total < 4 * steps:
        return
    found = steps_of(sizes, steps, total, seed)
    assert len(found) == steps
    tokens = [sum(piece.last - piece.first for piece in step) for step in found]
    assert sum(tokens) == total
    assert min(tokens) >= total / steps / 2 - 2
    assert max(tokens) <= total / steps * 1.5 + 2
    seen: Counter[int] = Counter()
    for step in found:
        for piece in step:
            assert 0 <= piece.first < piece.last <= sizes[piece.row]
            seen[piece.row] += piece.last - piece.first
    if epochs == int(epochs):
        assert seen == {row: int(epochs) * size for row, size in enumerate(sizes)}


# ---- claims ----


def test_a_claim_is_for_one(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    with mine.claim("arm") as first, other.claim("arm") as second, other.claim("another") as third:
        assert (first, second, third) == (True, False, True)
    with other.claim("arm") as again:
        assert again
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    (tmp_path / "arm.claim").write_text(json.dumps({"host": socket.gethostname(), "pid": ended.pid}))
    with Claims(tmp_path).claim("arm") as mine:
        assert mine


def test_the_claim_of_another_machine_is_dead_when_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "arm.claim"
    beat = '{"count": %d, "host": "elsewhere", "pid": 1}'
    path.write_text(beat % 1)
    now = [0.0]
    monkeypatch.setattr("instruct_prune.prove.claims.time.monotonic", lambda: now[0])
    claims = Claims(tmp_path)
    for clock, expected in ((0.0, False), (80.0, False), (91.0, True)):
        now[0] = clock
        with claims.claim("arm") as mine:
            assert mine is expected
    for clock in (200.0, 280.0, 360.0):  # it is heard of in between
        now[0] = clock
        path.write_text(beat % clock)
        with claims.claim("arm") as mine:
            assert not mine


# ---- plans ----


def costs(rules: int = 2) -> Costs:
    each = {f"rule{i}": 10.0 for i in range(rules)}
    return Costs(judge=5, random=10, rules=each, total=each, length=each, rates=3, tests=1, more=(2.0, 4.0))


EXTRAS = ("more", "length", "whole", "total", "third")


def test_time_without_end_holds_everything() -> None:
    plan = make_plan(costs(), 1e9, 24, 3, EXTRAS)
    assert (plan.random, plan.rule, plan.length) == (24, 3, 4)
    assert (plan.extras, plan.left_out) == (EXTRAS, ())
    core = 5 + 26 * 15 + 6 * 15
    more, length, whole, total, third = 2 * (25 + 45), 2 * 4 * 15, 2 * 15, 2 * 3 * 15, 6 * 15 + 3 * 15
    assert plan.seconds == core + more + length + whole + total + third
    assert plan.arms == 2 + 24 + 1 + 6 + 4 + 8 + 2 + 6 + 9


@given(st.floats(100, 3000), st.integers(1, 6))
def test_a_plan_keeps_to_its_time(seconds: float, rules: int) -> None:
    least = 5 + (2 + 6 + rules) * 15
    if seconds < least:
        with pytest.raises(InputError, match=r"six random arms and one arm of each rule") as error:
            make_plan(costs(rules), seconds, 24, 3, EXTRAS)
        assert f"about {least / 60:.1f} minutes" in str(error.value)
        return
    plan = make_plan(costs(rules), seconds, 24, 3, EXTRAS)
    assert plan.seconds <= seconds
    assert plan.random >= 6
    assert plan.rule >= 1
    assert sorted([*plan.extras, *plan.left_out]) == sorted(EXTRAS)


def test_more_time_sees_smaller_differences() -> None:
    found = [make_plan(costs(), seconds, 24, 3, ()).detectable for seconds in (160, 300, 500, 5000)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_the_learning_rate_of_the_lowest_loss(capfd: pytest.CaptureFixture[str]) -> None:
    assert choose_rate([1e-4, 3e-4, 1e-3], [2.0, 1.5, float("nan")]) == 3e-4
    assert "one beyond" not in capfd.readouterr().err
    assert choose_rate([1e-4, 3e-4], [2.0, 1.5]) == 3e-4
    assert "one beyond it may be better" in capfd.readouterr().err
    with pytest.raises(InputError, match="diverged at every one"):
        choose_rate([1e-4], [float("nan")])
