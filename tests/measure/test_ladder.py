"""From ``--subnets`` to the ladder, and from the ladder to passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.errors import InputError
from instruct_prune.measure.ladder import parse_subnets, score_name_of
from instruct_prune.measure.measurement import Measurement, measurements_of, plan_passes
from instruct_prune.measure.probes import Loss, Probe, State, parse_probe
from instruct_prune.measure.subnet import ALONE, DENSE, SubnetSpec


def names(*texts: str, seeds: int = 1) -> list[str]:
    return [spec.name for spec in parse_subnets(texts, seeds)]


def test_presets() -> None:
    assert names("dlc") == ["dense", "magnitude_0800", "magnitude_0640"]
    assert names("dlc-released") == ["dense", "magnitude_0800", "magnitude_0800"]
    assert names("ifd") == ["dense", "alone"]
    assert parse_subnets(["ifd"]) == (DENSE, SubnetSpec("dense", view=ALONE))
    assert names("perplexity") == ["dense"]
    assert names("lc-dropout") == [f"dropout_0{i}00_s0" for i in range(1, 10)]


def test_lists_seeds_and_scopes() -> None:
    assert names("magnitude:1.0,0.8", "dropout:0.02,0.1", seeds=2) == [
        "dense", "magnitude_0800", "dropout_0020_s0", "dropout_0020_s1", "dropout_0100_s0", "dropout_0100_s1",
    ]  # fmt: skip
    assert names("magnitude-global:0.5", "random:0.9", "depth:6,12", seeds=2) == [
        "magnitude_0500_global", "random_0900_s0", "random_0900_s1", "depth_06", "depth_12",
    ]  # fmt: skip


def test_passes_keep_families_together_and_densities_falling() -> None:
    specs = parse_subnets(["depth:2,1", "magnitude:0.6,0.8", "alone", "magnitude:0.8", "random:0.9,0.95", "dense"])
    passes = plan_passes(measurements_of(specs, ()))
    assert [p.name for p in passes] == [
        "dense", "magnitude_0800", "magnitude_0600", "random_0950_s0", "random_0900_s0", "alone",
    ]  # fmt: skip
    assert [m.spec for m in passes[0].measurements] == [SubnetSpec("depth", 2), SubnetSpec("depth", 1), DENSE]
    assert passes[0].depths == (1, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("magnitud:0.5", "Did you mean 'magnitude'"),
        ("dlx", "Did you mean 'dlc'"),
        ("magnitude", "values after a colon"),
        ("magnitude:zero", "'zero' is not a number"),
        ("magnitude:0", r"\(0, 1\]"),
        ("magnitude:1.2", r"\(0, 1\]"),
        ("magnitude:0.12345", "three decimals"),
        ("dropout:1", r"\[0, 1\)"),
        ("depth:0", "1 or more"),
        ("depth:1.5", "number of blocks"),
        ("dense:1", "takes no values"),
        ("dense@alne", "Did you mean 'alone'"),
        ("dense@", "unknown view ''"),
        ("magnitude:0.5@nowhere", "unknown view 'nowhere'"),
        ("my_module:family:much", "'much' is not a number"),
    ],
)
def test_wrong_subnets_say_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_subnets([text])


def test_no_subnets_and_no_seeds_are_errors() -> None:
    with pytest.raises(InputError, match="empty"):
        parse_subnets([])
    with pytest.raises(InputError, match="--subnet-seeds 0"):
        parse_subnets(["dlc"], 0)


def test_which_score_a_list_stands_for() -> None:
    assert score_name_of(["ifd"]) == "ifd"
    assert score_name_of(["lc-dropout"]) == "lc"
    assert score_name_of(["dense"]) == "loss"
    assert score_name_of(["magnitude:0.5"]) == "dlc"


# ---- views and families of the user's own ----


def test_what_stands_after_the_at_sign_is_the_view() -> None:
    assert parse_subnets(["magnitude:0.8,0.5@alone"]) == (
        SubnetSpec("magnitude", 0.8, view=ALONE), SubnetSpec("magnitude", 0.5, view=ALONE),
    )  # fmt: skip
    assert names("dense@full", "dense@alone", "alone") == ["dense", "alone", "alone"]
    assert names("dense@my_views:first_turn", "magnitude:0.5@my_views:first_turn") == [
        "first_turn", "magnitude_0500_first_turn",
    ]  # fmt: skip


def test_families_of_the_users_own_have_values_and_seeds() -> None:
    assert names("noisy.weights:gauss:0.1,0.02", seeds=2) == [
        "gauss_0100_s0", "gauss_0100_s1", "gauss_0020_s0", "gauss_0020_s1",
    ]  # fmt: skip
    assert parse_subnets(["noisy:gauss"]) == (SubnetSpec("noisy:gauss", 1.0),)
    assert parse_subnets(["noisy:gauss:0.5@noisy:half"]) == (SubnetSpec("noisy:gauss", 0.5, view="noisy:half"),)


@pytest.mark.parametrize(
    "texts",
    [
        ["one:gauss:0.1", "two:gauss:0.1"],
        ["dense@one:half", "dense@two:half"],
        ["dense", "dense@my_views:dense"],
        ["alone", "dense@my_views:alone"],
        ["dropout:0.0201,0.0202"],
        ["noisy:gauss:0.0001,0.0002"],
    ],
)
def test_two_subnets_of_one_name_are_refused(texts: list[str]) -> None:
    """Their parts would lie in one folder, and one of them would be taken for the other."""
    with pytest.raises(InputError, match="both be called"):
        parse_subnets(texts)


# ---- probes ----


class Mine(Probe):
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, model: object, batch: object, states: object) -> object:  # type: ignore[override]
        raise AssertionError("never run")


@pytest.mark.parametrize(("name", "others"), [("loss", []), ("mean", [State("mean")])])
def test_two_probes_of_one_name_are_refused(name: str, others: list[Probe]) -> None:
    with pytest.raises(InputError, match=f"would both be the column '{name}_dense'"):
        measurements_of([DENSE], [*others, Mine(name)])
    assert len(measurements_of([DENSE], [*others, Mine("other")])) == 2 + len(others)


def test_probes_by_name() -> None:
    assert [parse_probe(text).name for text in ("mean", "weighted@12", "last@3")] == ["mean", "weighted_12", "last_03"]
    assert [parse_probe(text).depth for text in ("mean", "weighted@12", "last@3")] == [None, 12, 3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("meen", "Did you mean 'mean'"),
        ("mean@", "1 or more"),
        ("mean@0", "1 or more"),
        ("mean@-1", "1 or more"),
        ("mean@deep", "1 or more"),
        ("collections:OrderedDict", "expected a subclass of instruct_prune.Probe"),
        ("nowhere_at_all:Probe", "no module 'nowhere_at_all'"),
    ],
)
def test_wrong_probes_say_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_probe(text)


# ---- passes ----

WEIGHTS = st.one_of(
    st.just(DENSE),
    st.builds(SubnetSpec, st.sampled_from(["magnitude", "random"]), st.integers(1, 9).map(lambda i: i / 10)),
    st.builds(SubnetSpec, st.just("depth"), st.integers(1, 4).map(float)),
    st.builds(SubnetSpec, st.just("dropout"), st.sampled_from([0.1, 0.2]), st.integers(0, 2)),
    st.builds(SubnetSpec, st.just("my_module:family"), st.sampled_from([0.1, 0.2])),
)
VIEWS = st.sampled_from(["full", ALONE, "my_module:view"])
SPECS = st.builds(lambda spec, view: replace(spec, view=view), WEIGHTS, VIEWS)
PROBES = st.lists(st.builds(State, st.sampled_from(["mean", "weighted", "last"]), st.sampled_from([None, 1, 2])))


@given(ladder=st.lists(SPECS, max_size=20), probes=PROBES)
def test_every_measurement_is_in_one_pass_with_all_of_its_weights_and_view(
    ladder: list[SubnetSpec], probes: list[State]
) -> None:
    wanted = measurements_of(ladder, probes)
    assert len({one.column for one in wanted}) == len(wanted)
    passes = plan_passes(wanted)
    taken = [one for a_pass in passes for one in a_pass.measurements]
    assert sorted(map(id, taken)) == sorted(map(id, wanted)), "each measurement exactly once"
    keys = [(a_pass.weights, a_pass.view) for a_pass in passes]
    assert len(set(keys)) == len(keys), "what can share a pass does"
    assert len({a_pass.name for a_pass in passes}) == len(passes), "each pass has a folder of its own"
    for a_pass in passes:
        assert {(one.spec.weights, one.spec.view) for one in a_pass.measurements} == {(a_pass.weights, a_pass.view)}
        depths = {one.probe.depth for one in a_pass.measurements} - {None}
        assert set(a_pass.depths) == depths
        assert a_pass.pooled == any(isinstance(one.probe, State) for one in a_pass.measurements)


@given(ladder=st.lists(SPECS, max_size=20))
def test_the_order_of_passes_does_not_depend_on_the_order_of_words(ladder: list[SubnetSpec]) -> None:
    there = [a_pass.name for a_pass in plan_passes(measurements_of(ladder, ()))]
    back = [a_pass.name for a_pass in plan_passes(measurements_of(ladder[::-1], ()))]
    assert there == back
    for view in ("full", ALONE, "my_module:view"):
        passes = plan_passes(measurements_of(ladder, ()))
        densities = [p.weights.value for p in passes if p.weights.kind == "magnitude" and p.view == view]
        assert densities == sorted(densities, reverse=True), "masks are made on top of each other"


def test_probes_are_read_off_the_dense_pass_each_once() -> None:
    mean, loss = State("mean"), Loss()
    found = measurements_of([DENSE, SubnetSpec("magnitude", 0.5), DENSE], [mean, State("mean"), State("last", 2)])
    assert [one.column for one in found] == ["loss_dense", "loss_magnitude_0500", "mean_dense", "last_02_dense"]
    first = plan_passes(found)[0]
    assert tuple(one.column for one in first.measurements) == ("loss_dense", "mean_dense", "last_02_dense")
    assert plan_passes([Measurement(DENSE, loss)])[0].pooled is False
