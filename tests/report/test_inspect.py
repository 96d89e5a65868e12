"""inspect: counts that add up, and text of the data that cannot act on the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from instruct_prune.encode.tokenize import Encoder
from instruct_prune.report.inspect import Inspection, inspect_data
from instruct_prune.rows import open_data

ROWS = [
    '{"instruction": "Say hello", "output": "Hello there", "topic": "greeting"}',
    '{"instruction": "Say hello", "output": "Hello there", "topic": "again"}',
    "not json",
    '{"instruction": "Say hello"}',
    '{"instruction": "Say nothing", "output": " "}',
    '{"instruction": "Скажи привет", "output": "Здравствуйте"}',
    '{"instruction": "q", "output": 17}',
    json.dumps({"instruction": "\x1b[31mred\x1b[0m", "output": "\u202eevil\x07 " * 20}),
    "not json either, " + "x" * 30,
]


@pytest.fixture
def found(tmp_path: Path, tiny_tokenizer: Any) -> Inspection:
    path = tmp_path / "\x1b]0;owned\x07rows.jsonl"
    path.write_text("\n".join(ROWS), encoding="utf-8")
    source = open_data([str(path)])
    return inspect_data(source, Encoder(tiny_tokenizer, "alpaca", max_length=150, data_format=source.format))


def test_counts_add_up(found: Inspection) -> None:
    assert (found.n_read, found.n_rejected, found.n_scored) == (9, 4, 4)
    assert found.statuses == {"ok": 2, "empty_response": 1, "truncated": 2}
    assert found.unscored == {"empty_response: the response is empty": 1}
    assert found.rejected == {
        "not JSON: Expecting value at character N": 2,
        "there is no field 'output'": 1,
        "the field 'output' must be text, this is a number": 1,
    }
    assert [reject.line for reject in found.first_rejects] == [3, 4, 7]
    assert found.columns == {"topic": 2}
    assert found.n_duplicates == 1
    assert found.scripts == {"Latin": 4, "Cyrillic": 1}
    assert found.n_tokens.tolist() == (found.n_prompt + found.n_response).tolist()
    assert found.n_tokens.max() == 150
    assert found.n_cut > 0


def test_examples_show_what_is_scored(found: Inspection) -> None:
    assert len(found.examples) == 3
    assert [example.row_id for example in found.examples] == sorted(example.row_id for example in found.examples)
    for example in found.examples:
        row = json.loads(ROWS[example.line - 1])
        assert "".join(text for text, scored in example.segments if scored) == row["output"] + "<|im_end|>"


def printed(found: Inspection, **options: Any) -> str:
    out = io.StringIO()
    found.print(Console(file=out, width=120, **options))
    return out.getvalue()


def test_print(found: Inspection) -> None:
    text = printed(found)
    assert "9 read = 4 to be scored + 1 without a score + 4 rejected" in text
    assert "alpaca (instruction, output), detected on the first 7 rows" in text
    assert "2 rejected: not JSON: Expecting value at character N" in text
    assert "1 no score: empty_response: the response is empty" in text
    assert "⟦Hello there<|im_end|>⟧" in text
    assert "Cyrillic 1" in text
    assert "response tokens, of rows longer than the maximum" in text
    assert "129 to 256" in text


@pytest.mark.parametrize("options", [{}, {"force_terminal": True, "color_system": "standard"}])
def test_data_cannot_act_on_the_terminal(
    found: Inspection, options: dict[str, Any], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**json.loads(ROWS[7]), "\x1b[31mcolumn": 1}) + "\n")
    hostile = inspect_data(open_data([str(path)]), Encoder(tiny_tokenizer, "alpaca", max_length=1500))
    assert "\\u202eevil\\x07" in printed(hostile, **options)
    text = printed(found, **options) + printed(hostile, **options)
    assert "\u202e" not in text
    assert "\x07" not in text
    assert "\x1b[31m" not in text  # the data's colour; rich's own are others
    assert "\x1b]0;" not in text
    assert "\\x1b]0;owned\\x07rows.jsonl" in text


def test_rich_markup_in_the_data_is_text(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"instruction": "[bold]q[/bold]", "output": "[link=http://x]a[/nothing]"}\n')
    source = open_data([str(path)])
    text = printed(inspect_data(source, Encoder(tiny_tokenizer, "alpaca", max_length=150)))
    assert "[bold]q[/bold]" in text
    assert "[link=http://x]a[/nothing]" in text


def test_nothing_to_score(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"instruction": "q", "output": ""}\n')
    found = inspect_data(open_data([str(path)]), Encoder(tiny_tokenizer, "alpaca", max_length=150))
    assert (found.n_scored, found.examples, found.n_duplicates) == (0, (), 0)
    assert "1 read = 0 to be scored + 1 without a score + 0 rejected" in printed(found)


def test_examples_are_drawn_alike_each_time(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"instruction": f"Tell me about {i}", "output": f"It is number {i}"} for i in range(1200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = Encoder(tiny_tokenizer, "alpaca", max_length=150)
    drawn = [[e.row_id for e in inspect_data(open_data([str(path)]), encoder, seed).examples] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(drawn[0]) > 3  # not just the first
