"""From ``--subnets`` to passes."""

from __future__ import annotations

import pytest

from instruct_prune.errors import InputError
from instruct_prune.measure.passes import parse_subnets, plan_passes, score_name_of
from instruct_prune.measure.subnet import SubnetSpec


def names(*texts: str, seeds: int = 1) -> list[str]:
    return [spec.name for spec in parse_subnets(texts, seeds)]


def test_presets() -> None:
    assert names("dlc") == ["dense", "magnitude_0800", "magnitude_0640"]
    assert names("dlc-released") == ["dense", "magnitude_0800", "magnitude_0800"]
    assert names("ifd") == ["dense", "alone"]
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
    passes = plan_passes(specs)
    assert [p.name for p in passes] == [
        "dense", "magnitude_0800", "magnitude_0600", "random_0950_s0", "random_0900_s0", "depth_01_02", "alone",
    ]  # fmt: skip
    assert passes[-2].subnets == (SubnetSpec("depth", 1), SubnetSpec("depth", 2))


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
