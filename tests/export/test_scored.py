"""Pieces of text for trainers: put together again, by a tokenizer that adds BOS or not, they are the tokens that were scored."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from instruct_prune.encode.tokenize import Encoder
from instruct_prune.export import ExportJob
from instruct_prune.export.job import CannotExpressError
from instruct_prune.export.scored import pieces_of, prompt_and_answer

BOS = "<|endoftext|>"
ROWS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\nHello."}]},
    {
        "messages": [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": "Three?"},
            {"role": "assistant", "content": " Four."},
        ]
    },
]


@pytest.fixture
def with_bos(tiny_tokenizer: Any) -> Any:
    """The tiny tokenizer, which now puts BOS before every text."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token = BOS
    special = [(BOS, tokenizer.convert_tokens_to_ids(BOS))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B", special)
    return tokenizer


def data(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("writes_bos", [True, False])
@pytest.mark.parametrize("template", ["chat", "alpaca", "plain"])
def test_pieces_are_the_tokens_that_were_scored(
    tmp_path: Path, job_of: Callable[..., ExportJob], with_bos: Any, template: str, writes_bos: bool
) -> None:
    if writes_bos:
        with_bos.chat_template = "{{ bos_token }}" + with_bos.chat_template
    encoder = Encoder(with_bos, template, max_length=256)
    job = job_of(data(tmp_path / "a.jsonl"), encoder=encoder)
    for sample, encoded in zip(job.samples, encoder.encode(list(job.samples)), strict=True):
        # LLaMA-Factory: each piece by itself, nothing added.
        pieces = pieces_of(job, sample, opened=True)
        ids = [with_bos(text, add_special_tokens=False)["input_ids"] for text, _ in pieces]
        labels = [token if learnt else -100 for piece, (_, learnt) in zip(ids, pieces, strict=True) for token in piece]
        scored = encoded.input_ids.tolist()[: len(labels)]
        assert [token for piece in ids for token in piece] == scored
        assert labels == [t if m else -100 for t, m in zip(scored, encoded.response_mask.tolist(), strict=False)]
        assert not encoded.response_mask[len(labels) :].any()
        # TRL, ms-swift: the tokenizer adds BOS by itself.
        if template == "chat" and not writes_bos:
            with pytest.raises(CannotExpressError, match="before it, which was not there"):
                pieces_of(job, sample, opened=False)
            continue
        whole = "".join(text for text, _ in pieces_of(job, sample, opened=False))
        assert with_bos(whole)["input_ids"] == scored


def test_several_answers_are_no_prompt_and_answer(
    tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any
) -> None:
    job = job_of(data(tmp_path / "a.jsonl"), encoder=Encoder(tiny_tokenizer, "plain", max_length=256))
    one, several = job.samples
    assert prompt_and_answer(job, one, opened=True) == ("Hi\n", "\nHello.<|im_end|>")
    with pytest.raises(CannotExpressError, match="several answers"):
        prompt_and_answer(job, several, opened=True)


def test_a_tokenizer_that_begins_every_text_with_a_blank_does_not_join(tiny_tokenizer: Any) -> None:
    backend = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "b": 2, "\n": 3, "</s>": 4}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    blanks = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert not Encoder(blanks, "plain", max_length=8).writing.joins
    assert Encoder(tiny_tokenizer, "plain", max_length=8).writing.joins
