"""The tokens export: what the store says, for trainers that take it; and what has no place there is refused in words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

from instruct_prune.cli import main
from instruct_prune.encode.store import TokenStore
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.errors import InputError
from instruct_prune.export import ExportJob, export_selection

ROWS = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(5)]
PAIRS = [{"prompt": "q", "chosen": "a", "rejected": "z"}, {"prompt": "r", "chosen": "b", "rejected": "y"}]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def encoder(tiny_tokenizer: Any) -> Encoder:
    return Encoder(tiny_tokenizer, "alpaca", max_length=256)


def test_tokens_are_those_of_the_store(tmp_path: Path, job_of: Callable[..., ExportJob], encoder: Encoder) -> None:
    job = job_of(jsonl(tmp_path / "a.jsonl", ROWS), keep=[0, 3, 4], encoder=encoder)
    (done,) = export_selection(["tokens"], job)
    assert done.rows == 3
    table = pq.read_table(done.paths[0])
    assert table.column("row_id").to_pylist() == [0, 3, 4]
    saved = datasets.load_from_disk(str(done.paths[1]))
    assert saved.column_names == ["input_ids", "attention_mask", "labels"]  # no column that a trainer could trip over
    assert table.drop_columns(["row_id"]).to_pylist() == list(saved)
    for row, encoded in zip(saved, encoder.encode(list(job.samples)), strict=True):
        ids, mask = encoded.input_ids.tolist(), encoded.response_mask.tolist()
        assert row["input_ids"] == ids
        assert row["attention_mask"] == [1] * len(ids)
        assert row["labels"] == [token if said else -100 for token, said in zip(ids, mask, strict=True)]
        assert any(mask)
        assert not all(mask)


def test_tokens_bring_a_configuration_for_each_trainer(
    tmp_path: Path, job_of: Callable[..., ExportJob], encoder: Encoder
) -> None:
    (done,) = export_selection(["tokens"], job_of(jsonl(tmp_path / "a.jsonl", ROWS), encoder=encoder))
    trl, llamafactory, axolotl = (yaml.safe_load(path.read_text()) for path in done.paths[2:])
    assert trl["datasets"] == [{"path": "parquet", "data_files": "tokens.parquet", "split": "train"}]
    assert llamafactory["tokenized_path"] == "dataset"
    assert axolotl["datasets"] == [{"path": "dataset"}]  # no type: axolotl takes the columns as they are
    named = trl["model_name_or_path"], llamafactory["model_name_or_path"], axolotl["base_model"]
    assert named == ("owner/base",) * 3


def test_cut_rows_are_told(tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any) -> None:
    encoder = Encoder(tiny_tokenizer, "alpaca", max_length=40)
    (done,) = export_selection(["tokens"], job_of(jsonl(tmp_path / "a.jsonl", ROWS), encoder=encoder))
    assert any("5 rows are cut to 40 tokens" in note for note in done.notes)
    assert max(len(row["input_ids"]) for row in datasets.load_from_disk(str(done.paths[1]))) == 40


def test_a_run_says_what_it_exported(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_model_folder.parent)
    words = [
        "--data",
        str(jsonl(tmp_path / "a.jsonl", ROWS)),
        "--model",
        tiny_model_folder.name,
        "--subnets",
        "perplexity",
    ]
    words += ["--clusters", "none", "--method", "random", "--keep", "3", "--out", str(tmp_path / "run")]
    assert main(["run", *words, "--to", "tokens", "axolotl"]) == 0
    told = capfd.readouterr()
    assert f"tokens: 3 rows in {tmp_path / 'run' / 'tokens' / 'tokens.parquet'}" in told.out
    assert "axolotl train axolotl.yaml" in told.out
    assert "Saving the dataset" not in told.err  # no bar of the datasets library among our lines
    stanza = yaml.safe_load((tmp_path / "run" / "axolotl" / "axolotl.yaml").read_text())
    assert stanza["base_model"] == str(tiny_model_folder)  # loads from any folder
    store, kept = (
        TokenStore.open(tmp_path / "run" / "items"),
        pq.read_table(tmp_path / "run" / "tokens" / "tokens.parquet"),
    )
    for row in kept.to_pylist():
        assert row["input_ids"] == store[row["row_id"]].ids.tolist()


def test_pictures_are_refused(tmp_path: Path, job_of: Callable[..., ExportJob], encoder: Encoder) -> None:
    job = dataclasses.replace(job_of(jsonl(tmp_path / "a.jsonl", ROWS), encoder=encoder), tokens=None)
    with pytest.raises(InputError, match="show pictures, and tokens cannot hold those"):
        export_selection(["tokens"], job)


@pytest.mark.parametrize("to", ["tokens", "alpaca", "messages", "swift"])
def test_formats_without_a_rejected_answer_refuse_pairs(
    tmp_path: Path, job_of: Callable[..., ExportJob], encoder: Encoder, to: str
) -> None:
    job = job_of(jsonl(tmp_path / "a.jsonl", PAIRS), encoder=encoder)
    with pytest.raises(InputError, match=f"--to {to}: 2 of the 2 kept rows are pairs .* Use --to trl, llamafactory"):
        export_selection([to], job)


def test_pairs_stay_pairs(tmp_path: Path, job_of: Callable[..., ExportJob], encoder: Encoder) -> None:
    columns = {"prompt": "ask", "rejected": "bad"}
    renamed = [{"ask": row["prompt"], "chosen": row["chosen"], "bad": row["rejected"]} for row in PAIRS]
    job = job_of(jsonl(tmp_path / "a.jsonl", renamed), encoder=encoder, columns=columns)
    factory, axolotl = export_selection(["llamafactory", "axolotl"], job)
    for done in (factory, axolotl):
        first = json.loads(done.paths[0].read_text().partition("\n")[0])
        assert first["prompt"].endswith("### Instruction:\nq\n\n### Response:\n")
        assert (first["chosen"], first["rejected"]) == ("a<|im_end|>", "z<|im_end|>")
    entry = json.loads((factory.paths[1]).read_text())["pruned-set"]
    assert entry["ranking"] is True
    assert entry["columns"] == {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    stanza = yaml.safe_load(factory.paths[2].read_text())
    assert (stanza["stage"], stanza["template"]) == ("dpo", "empty")
    stanza = yaml.safe_load(axolotl.paths[1].read_text())
    assert stanza["rl"] == "dpo"
    assert stanza["datasets"][0]["type"] == "passthrough"
