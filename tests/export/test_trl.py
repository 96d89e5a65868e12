"""TRL itself reads the stanza and its data, sees the scorer's tokens and mask, and trains."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from instruct_prune.encode.tokenize import Encoder
from instruct_prune.errors import InputError
from instruct_prune.export import ExportJob, export_selection

pytest.importorskip("trl", reason="TRL is not installed (pip install trl)")

ROWS = [
    {"instruction": f"Say the number {i}.", "input": "in words" if i % 2 else "", "output": f"It is {i}, and no more."}
    for i in range(6)
]
TURNS = [
    {"messages": [{"role": "user", "content": f"Number {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
    for i in range(4)
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@contextlib.contextmanager
def trainer_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Iterator[Any]:
    """The SFTTrainer that ``trl sft --config trl.yaml`` makes in this folder."""
    from datasets.utils.logging import disable_progress_bar
    from trl import (
        DatasetMixtureConfig,
        ModelConfig,
        ScriptArguments,
        SFTConfig,
        SFTTrainer,
        TrlParser,
        get_dataset,
        get_peft_config,
    )

    disable_progress_bar()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    words = [
        "--config",
        "trl.yaml",
        "--use_cpu",
        "--max_steps",
        "2",
        "--gradient_accumulation_steps",
        "1",
        "--bf16",
        "False",
    ]
    words += ["--save_strategy", "no", "--gradient_checkpointing", "False", "--disable_tqdm", "True", *flags]
    script, training, model, data = parser.parse_args_and_config(words, fail_with_unknown_args=True)
    dataset = get_dataset(data)[script.dataset_train_split]
    yield SFTTrainer(
        model=model.model_name_or_path, args=training, train_dataset=dataset, peft_config=get_peft_config(model)
    )


def expected(encoder: Encoder, job: ExportJob) -> list[tuple[list[int], list[int]]]:
    """The scorer's ids and labels."""
    rows = encoder.encode(list(job.samples))
    return [
        (row.input_ids.tolist(), [int(t) if m else -100 for t, m in zip(row.input_ids, row.response_mask, strict=True)])
        for row in rows
    ]


def test_alpaca_rows_train_with_the_scorers_tokens_and_mask(
    tmp_path: Path,
    job_of: Callable[..., ExportJob],
    tiny_model_folder: Path,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = Encoder(tiny_tokenizer, "alpaca", max_length=256)
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    job = job_of(path, model=str(tiny_model_folder), render=encoder.render, eos=tiny_tokenizer.eos_token)
    export_selection(["trl"], job)
    with trainer_of(tmp_path / "exports" / "trl", monkeypatch) as trainer:
        seen = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
        assert seen == expected(encoder, job)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        result = trainer.train()
        assert result.global_step == 2
        assert any(not p.equal(before[n]) for n, p in trainer.model.named_parameters() if n in before)


def test_chat_rows_learn_the_last_turn(
    tmp_path: Path,
    job_of: Callable[..., ExportJob],
    tiny_model_folder: Path,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = Encoder(tiny_tokenizer, "chat", max_length=256)
    job = job_of(jsonl(tmp_path / "a.jsonl", TURNS), model=str(tiny_model_folder), template="chat")
    export_selection(["trl"], job)
    with trainer_of(tmp_path / "exports" / "trl", monkeypatch) as trainer:
        for row, (ids, labels) in zip(trainer.train_dataset, expected(encoder, job), strict=True):
            assert row["input_ids"] == ids
            # TRL also learns what the template writes after the end-of-turn token: here one newline.
            assert row["labels"][:-1] == labels[:-1]
            assert labels[-1] == -100


def test_several_trained_turns_go_as_messages(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    rows = [{"messages": TURNS[0]["messages"] + TURNS[1]["messages"]}]
    (done,) = export_selection(["trl"], job_of(jsonl(tmp_path / "a.jsonl", rows), template="chat"))
    assert json.loads(done.paths[0].read_text()) == rows[0]
    assert "assistant_only_loss: true" in done.paths[1].read_text()
    with pytest.raises(InputError, match="no place in TRL"):
        export_selection(["trl"], job_of(jsonl(tmp_path / "a.jsonl", rows), template="alpaca"))
