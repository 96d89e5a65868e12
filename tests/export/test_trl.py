"""TRL itself reads the stanza and its data, sees the scorer's tokens and mask, and trains."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from instruct_prune.encode.tokenize import Encoder
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
def trainer_of(folder: Path, monkeypatch: pytest.MonkeyPatch, config: Any = None, trainer: Any = None) -> Iterator[Any]:
    """The trainer that ``trl sft --config trl.yaml`` makes in this folder, or that of another command."""
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
    parser = TrlParser((ScriptArguments, config or SFTConfig, ModelConfig, DatasetMixtureConfig))
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
    words += ["--save_strategy", "no", "--gradient_checkpointing", "False", "--disable_tqdm", "True"]
    script, training, model, data = parser.parse_args_and_config(words, fail_with_unknown_args=True)
    dataset = get_dataset(data)[script.dataset_train_split]
    yield (trainer or SFTTrainer)(
        model=model.model_name_or_path, args=training, train_dataset=dataset, peft_config=get_peft_config(model)
    )


def expected(encoder: Encoder, job: ExportJob) -> list[tuple[list[int], list[int]]]:
    """The scorer's ids and labels."""
    rows = encoder.encode(list(job.samples))
    return [
        (row.input_ids.tolist(), [int(t) if m else -100 for t, m in zip(row.input_ids, row.response_mask, strict=True)])
        for row in rows
    ]


def collated(trainer: Any) -> list[tuple[list[int], list[int]]]:
    """What TRL's own collator makes of each row."""
    batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
    return [(batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) for batch in batches]


def test_alpaca_rows_train_with_the_scorers_tokens_and_mask(
    tmp_path: Path,
    job_of: Callable[..., ExportJob],
    tiny_model_folder: Path,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = Encoder(tiny_tokenizer, "alpaca", max_length=256)
    job = job_of(jsonl(tmp_path / "a.jsonl", ROWS), model=str(tiny_model_folder), encoder=encoder)
    (done,) = export_selection(["trl"], job)
    assert done.paths[0].suffix == ".jsonl"
    with trainer_of(tmp_path / "exports" / "trl", monkeypatch) as trainer:
        assert collated(trainer) == expected(encoder, job)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        result = trainer.train()
        assert result.global_step == 2
        assert any(not p.equal(before[n]) for n, p in trainer.model.named_parameters() if n in before)


SEVERAL = [{"messages": TURNS[i]["messages"] + TURNS[i + 1]["messages"]} for i in range(3)]
CALL = {"id": "c00010000", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
CALLS = [
    {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "none"},
            {"role": "assistant", "content": "No.", "weight": weight},
        ]
    }
    for weight in (0, 1)
]


@pytest.mark.parametrize("to", ["trl", "tokens"])
@pytest.mark.parametrize(
    ("rows", "template", "max_length"),
    [
        (TURNS, "chat", 256),
        (SEVERAL, "chat", 256),
        (CALLS, "chat", 256),
        (SEVERAL, "alpaca", 256),
        (ROWS, "alpaca", 40),
    ],
    ids=["one answer", "several answers", "calls and weights", "several answers in alpaca", "cut rows"],
)
def test_trl_trains_the_tokens_that_were_scored(
    tmp_path: Path,
    job_of: Callable[..., ExportJob],
    tiny_model_folder: Path,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]],
    template: str,
    max_length: int,
    to: str,
) -> None:
    encoder = Encoder(tiny_tokenizer, template, max_length=max_length)
    job = job_of(jsonl(tmp_path / "a.jsonl", rows), model=str(tiny_model_folder), encoder=encoder)
    (done,) = export_selection([to], job)
    assert done.rows == len(rows)
    with trainer_of(tmp_path / "exports" / to, monkeypatch) as trainer:
        assert collated(trainer) == expected(encoder, job)
        assert trainer.train().global_step == 2


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_trl_dpo_compares_the_two_answers(
    tmp_path: Path,
    job_of: Callable[..., ExportJob],
    tiny_model_folder: Path,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
) -> None:
    from trl import DPOConfig, DPOTrainer

    encoder = Encoder(tiny_tokenizer, template, max_length=256)
    pairs = [{"prompt": f"Number {i}?", "chosen": f"It is {i}.", "rejected": "Who knows."} for i in range(3)]
    job = job_of(jsonl(tmp_path / "a.jsonl", pairs), model=str(tiny_model_folder), encoder=encoder)
    export_selection(["trl"], job)
    with trainer_of(tmp_path / "exports" / "trl", monkeypatch, config=DPOConfig, trainer=DPOTrainer) as trainer:
        rejected = encoder.encode([job.rejected(row) for row in job.samples])
        for row, chosen, other in zip(trainer.train_dataset, encoder.encode(list(job.samples)), rejected, strict=True):
            for ids, scored in ((row["chosen_ids"], chosen), (row["rejected_ids"], other)):
                assert ids == scored.input_ids[scored.response_mask].tolist()
                assert row["prompt_ids"] + ids == scored.input_ids.tolist()[: len(row["prompt_ids"] + ids)]
        assert trainer.train().global_step == 2


def test_a_pair_of_other_prompts_is_left_out(
    tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any
) -> None:
    def said(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    rows = [
        {"chosen": said("a", "b"), "rejected": said("a", "c")},
        {"chosen": said("a", "b"), "rejected": said("z", "c")},
    ]
    job = job_of(jsonl(tmp_path / "a.jsonl", rows), encoder=Encoder(tiny_tokenizer, "chat", max_length=256))
    (done,) = export_selection(["trl"], job)
    assert (done.rows, done.left_out) == (1, 1)
    assert done.left_out_file is not None
    assert "different prompts" in done.left_out_file.read_text()
