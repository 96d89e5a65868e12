"""Items that several processes wrote, put together: those that one process writes, and the same notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sample_rows import alpaca_rows

from instruct_prune import EncodeConfig, Row, ScoreConfig, load_data
from instruct_prune.encode.store import TokenStore
from instruct_prune.models.causal_lm import CausalLM


def conversations() -> list[Row]:
    """Turns with a key that nobody reads in every other row; one of these without an answer, which is not written."""
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": row["instruction"], **({"mood": "good"} if i % 2 else {})},
                {"role": "assistant", "content": row["output"] if i != 3 else ""},
            ]
        }
        for i, row in enumerate(alpaca_rows(9))
    ]
    return [row for row in load_data(rows) if isinstance(row, Row)]


def test_parts_of_any_size_make_the_whole(tiny_model_folder: Path, tmp_path: Path) -> None:
    def model() -> CausalLM:
        return CausalLM(ScoreConfig(model=str(tiny_model_folder)), EncodeConfig(template="chat"), "messages")

    rows, whole = conversations(), model()
    whole.write_items(tmp_path / "whole", rows, lambda n: None, strict=False)
    pieces = [rows[:4], [], rows[4:5], rows[5:]]
    own = [model() for _ in pieces]
    parts = [tmp_path / str(i) for i in range(len(pieces))]
    for one, part, some in zip(own, parts, pieces, strict=True):
        one.write_items(part, some, lambda n: None, strict=False)
    own[0].join_items(tmp_path / "joined", parts, [one.encoder.counts for one in own])

    for name in ("ids.bin", "mask.bin"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    tables = [pq.read_table(tmp_path / name / "rows.parquet") for name in ("joined", "whole")]
    assert tables[0].equals(tables[1])
    assert TokenStore.open(tmp_path / "joined").status_names.tolist()[3] == "empty_response"
    assert any("'mood'" in note and "(3 turns)" in note for note in whole.notes), whole.notes
    assert own[0].notes == whole.notes


def test_a_kind_with_items_of_its_own_is_not_split(tiny_model_folder: Path) -> None:
    class Own(CausalLM):
        def write_items(self, *args: Any, **options: Any) -> None:
            raise NotImplementedError

    config = ScoreConfig(model=str(tiny_model_folder))
    assert CausalLM(config, EncodeConfig(), None).splits
    assert not Own(config, EncodeConfig(), None).splits
