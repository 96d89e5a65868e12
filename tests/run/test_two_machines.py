"""Every stage under two torchrun agents on loopback leaves the bytes that one process leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from machines import on_one_machine, on_two_machines
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EncodeFacts, ScoreFacts

EVERY_STAGE = (
    "rows/rows.arrow",
    "items/ids.bin",
    "items/mask.bin",
    "set_aside.parquet",
    "scores.parquet",
    "embeddings.npy",
    "selection.parquet",
    "pruned.jsonl",
)


def rows() -> list[dict[str, str]]:
    plain = alpaca_rows(60)
    return [*plain, *({key: value.upper() for key, value in row.items()} for row in plain[:4])]


@pytest.fixture
def words(tmp_path: Path, tiny_model_folder: Path, tiny_embedder_folder: Path) -> list[str]:
    data = write_jsonl(tmp_path / "rows.jsonl", rows())
    model = ["--model", str(tiny_model_folder), "--dtype", "float32", "--batch-tokens", "64"]
    return ["--data", str(data), *model, "--subnets", "dense", "magnitude:0.7", "--embedder", str(tiny_embedder_folder)]


def same_bytes(one: Path, two: Path, names: tuple[str, ...]) -> None:
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_reading_encoding_setting_aside_scoring_embedding_and_selecting(words: list[str], tmp_path: Path) -> None:
    words = ["run", *words, "--keep", "20", "--dedup", "1.0", "--dedup-first"]
    on_one_machine(*words, "--out", str(tmp_path / "one"))
    first, second = on_two_machines(*words, "--out", str(tmp_path / "two"))
    same_bytes(tmp_path / "one", tmp_path / "two", EVERY_STAGE)
    items = [pq.read_table(tmp_path / run / "items" / "rows.parquet") for run in ("one", "two")]
    assert items[0].equals(items[1])
    notes = [RunFolder(tmp_path / run).facts(EncodeFacts).notes for run in ("one", "two")]
    assert notes[0] == notes[1]
    assert "2 processes on cpu" in first[1]
    assert "set aside = 20 kept" in first[0]
    assert "rows:" not in second[0], "one of them tells it"
    assert RunFolder(tmp_path / "two").facts(ScoreFacts).processes == 2
    assert not (tmp_path / "two" / "parts").exists()


@pytest.mark.nightly
def test_gradients_and_a_target(words: list[str], tmp_path: Path) -> None:
    target = write_jsonl(tmp_path / "target.jsonl", rows()[:9])
    words = ["run", *words, "--keep", "20", "--target", str(target), "--by", "gradient"]
    on_one_machine(*words, "--out", str(tmp_path / "one"))
    on_two_machines(*words, "--out", str(tmp_path / "two"))
    gradients = tuple(
        str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").glob("states/gradient*.npy")
    )
    assert gradients
    same_bytes(tmp_path / "one", tmp_path / "two", (*gradients, "selection.parquet"))


@pytest.mark.nightly
def test_prove(words: list[str], tmp_path: Path) -> None:
    """Agents never meet: each trains arms that nobody works on."""
    data = write_jsonl(tmp_path / "pool.jsonl", alpaca_rows(150))
    words[1] = str(data)
    on_one_machine("score", *words[:-2], "--out", str(tmp_path / "run"))
    quick = [
        "--random-arms",
        "6",
        "--rule-arms",
        "2",
        "--keep-tokens",
        "1500",
        "--learning-rates",
        "2e-3",
        "--dtype",
        "float32",
    ]
    quick += ["--held-out", "10", "--budget-minutes", "10000", "--rules", "hardest"]
    on_one_machine("prove", str(tmp_path / "run"), *quick, "--study", str(tmp_path / "one"))
    alone = json.loads((tmp_path / "run" / "prove" / "prove.json").read_text())
    on_two_machines("prove", str(tmp_path / "run"), *quick, "--study", str(tmp_path / "two"))
    both = json.loads((tmp_path / "run" / "prove" / "prove.json").read_text())
    names = [sorted(path.name for path in (tmp_path / study / "arms").iterdir()) for study in ("one", "two")]
    assert names[0] == names[1]
    losses = [
        [(arm["kind"], arm["rule"], arm["seed"], arm["losses"]) for arm in found["arms"]] for found in (alone, both)
    ]
    assert losses[0] == losses[1]
