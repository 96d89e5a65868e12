"""The model that later stages take is the one that scored: a model made in Python, or another than the one that encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_rows import alpaca_rows, write_jsonl
from sight_models import conversations, made

from instruct_prune import (
    DataConfig,
    EmbedConfig,
    ExportConfig,
    InputError,
    ProveConfig,
    Run,
    ScoreConfig,
    SelectConfig,
)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return DataConfig(str(write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))))


def vectors(run: Run) -> Any:
    return np.load(run.folder / "embeddings.npy")


def test_a_run_scored_anew_by_a_model_with_the_same_tokenizer_is_measured_by_that_one(
    tmp_path: Path, data: DataConfig, tiny_model_folder: Path, tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    other = tmp_path / "other"
    tiny_llama(initializer_range=0.2).save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    twice, once = Run(tmp_path / "twice"), Run(tmp_path / "once")
    twice.score(data, ScoreConfig(str(tiny_model_folder), dtype="float32"))
    twice.score(data, ScoreConfig(str(other), dtype="float32", restart="score"))
    once.score(data, ScoreConfig(str(other), dtype="float32"))
    target = str(write_jsonl(tmp_path / "dev.jsonl", alpaca_rows(4)))
    for run in (twice, once):
        run.embed(EmbedConfig("model"))
        run.target(target)
    np.testing.assert_array_equal(vectors(twice), vectors(once))
    queries = [np.load(run.folder / "targets/by/rds/queries.npy") for run in (twice, once)]
    np.testing.assert_array_equal(*queries)


def test_a_model_whose_files_changed_measures_no_more_of_a_run(
    tmp_path: Path, data: DataConfig, tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    run = Run(tmp_path / "run")
    run.score(data, ScoreConfig(str(folder), dtype="float32"))
    tiny_llama(initializer_range=0.2).save_pretrained(folder)
    with pytest.raises(InputError, match="not what it was when it scored"):
        run.embed(EmbedConfig("model"))


def test_a_model_made_in_python_serves_all_stages(
    tmp_path: Path, data: DataConfig, tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    model = tiny_llama()
    run = Run(tmp_path / "run")
    run.score(data, ScoreConfig(dtype="float32"), model=(model, tiny_tokenizer))
    run.embed(EmbedConfig("model"))
    before = vectors(run)
    run.target(str(write_jsonl(tmp_path / "dev.jsonl", alpaca_rows(4))))
    run.select(SelectConfig(keep=5))
    run.export(ExportConfig(to=("tokens", "trl")))
    assert len(run.encoder().encode(list(run.rows()))) == 5
    with pytest.raises(InputError, match="train_model"):
        run.prove(ProveConfig())
    later = Run(tmp_path / "run")  # another program
    with pytest.raises(InputError, match=r"LlamaForCausalLM was made in Python, call Run.score"):
        later.export(ExportConfig(to=("trl",)))
    later.score(data, ScoreConfig(dtype="float32"), model=(model, tiny_tokenizer))
    later.export(ExportConfig(to=("trl",)))
    later.embed(EmbedConfig("model:mean"), restart=True)
    assert np.abs(vectors(later) - before).max() > 1e-3


def test_a_model_made_in_python_exports_rows_with_pictures(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    rows = write_jsonl(tmp_path / "rows.jsonl", conversations(tmp_path / "pics", 8))
    run = Run(tmp_path / "run")
    run.score(DataConfig(str(rows), image_folder=str(tmp_path / "pics")), model=made("llava"))
    run.select(SelectConfig(keep=4, clusters="none"))
    run.export(ExportConfig(to=("llava", "trl")))
    assert len(run.kept()) == 4


def test_rows_set_aside_first_and_a_report_in_python(tmp_path: Path, data: DataConfig, tiny_model_folder: Path) -> None:
    rows = alpaca_rows(20)
    run = Run(tmp_path / "run")
    first = SelectConfig(keep=5, dedup=0.99, clusters="none")
    embed = EmbedConfig(str(tmp_path / "vectors.npy"))
    np.save(tmp_path / "vectors.npy", np.eye(22, dtype=np.float32))
    run.score([*rows, *rows[:2]], ScoreConfig(str(tiny_model_folder), dtype="float32"), embed=embed, dedup_first=first)
    assert (run.scores.status == "set_aside").sum() == 2
    run.select(first)
    assert run.report(samples=3).read_text(encoding="utf-8").startswith("<!doctype html>")
