"""Budgets, clusters and seeds at their ends; data of one row, of two, of equal rows, of none that can be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sample_rows import alpaca_rows
from spoken import kept, refused, tell

N = 24


@pytest.fixture(scope="module")
def scored(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to select from, again and again: selecting leaves everything else as it is."""
    return Path(shutil.copytree(undisturbed, tmp_path_factory.mktemp("budgets") / "RUN"))


@pytest.mark.parametrize(("keep", "rows"), [("1", 1), (str(N), N), ("1.0", N), ("100%", N), ("1/2", 0), ("0.5", 12)])
def test_budgets_that_can_be_met(keep: str, rows: int, scored: Path) -> None:
    told = tell("select", scored, f"--keep={keep}", "--clusters", "3")
    if not rows:
        assert refused(told)
        return
    assert told.is_clean(0)
    assert tell("export", scored).is_clean(0)
    first = kept(scored)
    assert len(first.splitlines()) == rows
    assert tell("select", scored, f"--keep={keep}", "--clusters", "3").is_clean(0)
    assert tell("export", scored).is_clean(0)
    assert kept(scored) == first


REFUSED: list[tuple[str, str]] = [
    ("--keep=0", "keeps nothing"),
    ("--keep=-1", "keeps nothing"),
    (f"--keep={N + 1}", f"more than the {N} scored rows"),
    (f"--keep={10**30}", "more than the"),
    *((f"--keep={share}", "is not a share") for share in ("0.0", "-0.5", "1.5", "nan", "inf", "-inf", "0%", "101%")),
    ("--keep=1e-9", f"of {N} scored rows is less than one row"),
    ("--keep=", "--keep"),
    ("--keep-tokens=0", "at least 1"),
    ("--keep-tokens=-1", "at least 1"),
    ("--keep-tokens=1", "less than the shortest scored row"),
    ("--keep-tokens=1000000", "more than the"),
    ("--keep-tokens=nan", "--keep-tokens"),
    ("--keep=5 --keep-tokens=99", "exactly once"),
    ("", "say how much to keep"),
    ("--keep=5 --clusters=0", "expected a number of clusters"),
    (f"--keep=5 --clusters={N + 1}", f"from 1 to {N}, the number of rows"),
    ("--keep=5 --clusters=nan", "expected a number of clusters"),
    ("--keep=5 --seed=-1", "--seed -1: a whole number from 0"),
    (f"--keep=5 --seed={2**32}", "a whole number from 0"),
    ("--keep=5 --dedup=nan", "--dedup nan"),
    ("--keep=5 --dedup=0", "--dedup 0"),
    ("--keep=5 --split=0", "above 0 and below 1"),
    ("--keep=5 --split=nan", "above 0 and below 1"),
    ("--keep=5 --min-per-stratum=-1", "0 or more"),
    ("--keep=5 --clusters=3 --min-per-stratum=9", "the budget is 5"),
    ("--keep=5 --score-subnets dense --score-weights nan", "finite and not negative"),
    ("--keep=5 --score-subnets dense --score-weights 0", "no subnet is left"),
    ("--keep=5 --method=deita --param threshold=nan", "threshold is 'nan'"),
]


@pytest.mark.parametrize(("words", "says"), REFUSED)
def test_what_cannot_be_met_is_refused_and_changes_nothing(words: str, says: str, scored: Path) -> None:
    before = {path: path.read_bytes() for path in scored.glob("*") if path.is_file()}
    assert refused(tell("select", scored, *words.split()), says)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--limit=0", "at least 1"), ("--limit=-1", "at least 1"), ("--batch-tokens=0", "at least 1"),
        ("--max-length=1", "at least 2"), ("--subnet-seeds=0", "at least one"), ("--image-size=0", "at least 1 pixel"),
        ("--subnets magnitude:nan", "(0, 1], not nan"), ("--subnets magnitude:0", "(0, 1], not 0"),
        ("--subnets depth:0", "not 0"), ("--subnets dropout:1", "not 1"), ("--subnets random:-0.5", "not -0.5"),
    ],
)  # fmt: skip
def test_numbers_of_scoring(words: str, says: str, score_words: list[str], tmp_path: Path) -> None:
    assert refused(tell(*score_words, *words.split(), "--out", tmp_path / "RUN"), says)
    assert not (tmp_path / "RUN").exists()


def test_numbers_of_other_commands(scored: Path, tiny_embedder_folder: Path) -> None:
    for size in ("0", "-1"):
        told = tell("embed", scored, "--embedder", tiny_embedder_folder, f"--embed-batch={size}", "--restart", "embed")
        assert refused(told, f"--embed-batch {size}")
    assert refused(tell("compare", scored, "--seed=-1"), "--seed -1")
    assert refused(tell("correlate", scored, "--top=nan"), "--top nan")
    assert refused(tell("report", scored, "--samples=0"), "--samples 0")


def test_a_limit_above_all_numbers(score_words: list[str], tmp_path: Path) -> None:
    told = tell(*score_words, f"--limit={10**30}", "--dry-run", "--out", tmp_path / "RUN")
    assert told.is_clean(0)


# ---- small data ----


ROWS = alpaca_rows(2)
EMPTY = {"instruction": "q", "output": ""}
SMALL: list[tuple[str, list[dict[str, Any]], Sequence[str], int | str]] = [
    ("one", ROWS[:1], ["--keep=1"], 1),
    ("one, by its share", ROWS[:1], ["--keep=1.0"], 1),
    ("half of one", ROWS[:1], ["--keep=0.4"], "less than one row"),
    ("one, two clusters", ROWS[:1], ["--keep=1", "--clusters=2"], "more than the 1 rows that can be scored"),
    ("two", ROWS, ["--keep=1"], 1),
    ("two in two clusters", ROWS, ["--keep=2", "--clusters=2"], 2),
    ("two, split by MMD", ROWS, ["--keep=1", "--split=mmd"], "at least two kept rows"),
    ("equal", [ROWS[0]] * 6, ["--keep=3", "--clusters=3"], 3),
    ("equal, one of them", [ROWS[0]] * 6, ["--keep=1", "--dedup=0.9"], 1),
    ("equal, more than one", [ROWS[0]] * 6, ["--keep=3", "--dedup=0.9"], "only 1 are left"),
    ("one that can be scored", [EMPTY, EMPTY, ROWS[0]], ["--keep=1"], 1),
    ("none that can be scored", [EMPTY] * 3, ["--keep=1"], "none of the 3 rows can be scored"),
    ("none that can be read", [{"instruction": "q", "output": 3}] * 3, ["--keep=1"], "none of the 3 rows can be used"),
]


@pytest.mark.parametrize(("rows", "words", "ends"), [case[1:] for case in SMALL], ids=[case[0] for case in SMALL])
def test_small_data(
    rows: list[dict[str, Any]], words: Sequence[str], ends: int | str, run_words: list[str], tmp_path: Path
) -> None:
    data, out = tmp_path / "x.jsonl", tmp_path / "RUN"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = run_words[run_words.index("--model") :][:2]
    embedder = run_words[run_words.index("--embedder") :][:2]
    command = ["run", "--data", data, *model, *embedder, "--dtype", "float32", "--subnets", "dense", *words]
    first = tell(*command, "--out", out)
    if isinstance(ends, str):
        assert refused(first, ends)
        assert refused(tell(*command, "--out", out), ends)
        return
    assert first.is_clean(0)
    before = kept(out)
    assert len(before.splitlines()) == ends
    assert tell(*command, "--out", out).is_clean(0)
    assert kept(out) == before


METHODS = ("easiest", "easy_diverse", "moderate", "k_center", "herding", "facility_location", "ccs", "deita", "d2")


def test_every_method_on_equal_rows(run_words: list[str], tmp_path: Path) -> None:
    data, out = tmp_path / "x.jsonl", tmp_path / "RUN"
    data.write_text((json.dumps(ROWS[0]) + "\n") * 6)
    assert tell("run", "--data", data, *run_words[3:-4], "--keep", "3", "--clusters", "2", "--out", out).is_clean(0)
    for method in METHODS:
        assert tell("select", out, "--keep", "3", "--clusters", "2", "--method", method).is_clean(0)
