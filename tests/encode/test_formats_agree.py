"""The same six questions and answers in every format: the same token ids and masks under one template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_prune.encode.item import Encoded
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Row

FOLDER = Path(__file__).parents[2] / "data_samples" / "formats"
WITH_CONTEXT = ("alpaca.json", "alpaca.jsonl", "dolly.jsonl", "dolly_hhrlhf.jsonl", "gpteacher.jsonl", "question.csv")
WITHOUT_CONTEXT = (
    "messages.jsonl",
    "preference.jsonl",
    "prompt_completion.jsonl",
    "prompt_completion_messages.jsonl",
    "sharegpt.json",
)


def _encode(tokenizer: Any, path: str, template: str) -> list[Encoded]:
    source = open_data([path])
    rows = [row for row in source if isinstance(row, Row)]
    assert len(rows) == 6
    encoded = Encoder(tokenizer, template, max_length=2000, data_format=source.format).encode(rows)
    assert [row.status for row in encoded] == ["ok"] * 6
    return encoded


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, str]:
    """The rows once more as binary tables and as a saved dataset."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = json.loads((FOLDER / "alpaca.json").read_text(encoding="utf-8"))
    turns = [json.loads(line) for line in (FOLDER / "prompt_completion_messages.jsonl").open(encoding="utf-8")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "alpaca.parquet")
    pq.write_table(pa.Table.from_pylist(turns), tmp_path / "turns.parquet")
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(tmp_path / "alpaca.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    return {name: str(tmp_path / name) for name in ("alpaca.parquet", "turns.parquet", "alpaca.arrow", "saved")}


def _same(first: list[Encoded], second: list[Encoded]) -> bool:
    return all(
        a.input_ids.tolist() == b.input_ids.tolist()
        and a.response_mask.tolist() == b.response_mask.tolist()
        and a.content_hash == b.content_hash
        for a, b in zip(first, second, strict=True)
    )


def test_all_formats_give_the_same_ids_and_masks(chat_tokenizers: dict[str, Any], tables: dict[str, str]) -> None:
    tokenizer = chat_tokenizers["llama3"]
    encode: Callable[[str], list[Encoded]] = lambda path: _encode(tokenizer, path, "chat")  # noqa: E731
    reference = encode(str(FOLDER / "alpaca.json"))
    paths = [str(FOLDER / name) for name in WITH_CONTEXT + WITHOUT_CONTEXT] + list(tables.values())
    assert len(paths) == 15
    for path in paths:
        assert _same(encode(path), reference), path


def test_formats_with_an_input_agree_under_alpaca(chat_tokenizers: dict[str, Any], tables: dict[str, str]) -> None:
    tokenizer = chat_tokenizers["llama3"]
    reference = _encode(tokenizer, str(FOLDER / "alpaca.json"), "alpaca")
    paths = [*(str(FOLDER / name) for name in WITH_CONTEXT), tables["alpaca.parquet"], tables["saved"]]
    for path in paths:
        assert _same(_encode(tokenizer, path, "auto"), reference), path
    text = tokenizer.decode(reference[1].input_ids)
    assert text.count("Below is an instruction") == 1  # dolly_hhrlhf brings the text along; it is not wrapped twice


def test_the_encoder_knows_the_loaders_formats() -> None:
    from instruct_prune.encode.templates import CONVERSATIONS
    from instruct_prune.rows import FORMATS

    assert {name.removesuffix("-messages") for name in CONVERSATIONS} <= set(FORMATS)
    for name, template in (("messages", True), ("preference", False), ("prompt_completion_messages", True)):
        assert (open_data([str(FOLDER / f"{name}.jsonl")]).format in CONVERSATIONS) is template
