"""The built-in templates, truncation, statuses, and masks where offsets are treacherous."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from chat_cases import conversation, scored_pieces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_backends import byte_level

from instruct_prune.encode.item import Status
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.errors import InputError
from instruct_prune.rows.row import Message, Row

WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSay {hello}.\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
    " response that appropriately completes the request.\n\n"
    "### Instruction:\nTranslate.\n\n### Input:\nbonjour\n\n### Response:\n"
)


def asked(instruction: str, output: str, context: str = "", row_id: int = 0) -> Row:
    return conversation(Message("user", instruction, context=context), ("assistant", output), row_id=row_id)


def test_alpaca_text_is_stanfords(chat_tokenizers: dict[str, Any]) -> None:
    encoder = Encoder(chat_tokenizers["llama3"], "alpaca", max_length=2000)
    said = [("Hello!", True), ("<|eot_id|>", True)]
    assert encoder.render(asked("Say {hello}.", "Hello!")) == [(WITHOUT_INPUT, False), *said]
    assert encoder.render(asked("Say {hello}.", "Hello!", "  ")) == [(WITHOUT_INPUT, False), *said]  # a blank input
    assert encoder.render(asked("Translate.", "Hello!", "bonjour")) == [(WITH_INPUT, False), *said]


@pytest.mark.parametrize("family", ["llama3", "qwen", "chatml", "gemma", "mistral", "llama2"])
def test_alpaca_ids(chat_tokenizers: dict[str, Any], family: str) -> None:
    tokenizer = chat_tokenizers[family]
    [row] = Encoder(tokenizer, "alpaca", max_length=2000).encode([asked("Say {hello}.", "Hello!")])
    whole = tokenizer(WITHOUT_INPUT + "Hello!")["input_ids"] + [tokenizer.eos_token_id]  # with the tokenizer's own BOS
    assert row.input_ids.tolist() == whole
    assert row.input_ids.dtype == np.int32
    assert row.response_mask.dtype == np.bool_
    [piece] = scored_pieces(tokenizer, row)
    assert piece == "Hello!" + tokenizer.eos_token
    assert row.response_mask[-1]


def test_eos_is_appended_once(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["mistral"]
    plain, ended = Encoder(tokenizer, "alpaca", max_length=2000).encode([asked("Go", "Yes"), asked("Go", "Yes</s>")])
    assert plain.input_ids.tolist() == ended.input_ids.tolist()
    assert plain.content_hash == ended.content_hash


def test_alpaca_system_and_history(chat_tokenizers: dict[str, Any]) -> None:
    sample = conversation(
        ("system", "Be terse."), ("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"), ("assistant", "4")
    )
    tokenizer = chat_tokenizers["mistral"]
    encoder = Encoder(tokenizer, "alpaca", max_length=2000)
    assert encoder.render(sample) == [
        ("Be terse.\n\n### Instruction:\nHi\n\n### Response:\n", False),
        ("Hello</s>", True),
        ("\n\n### Instruction:\n2+2?\n\n### Response:\n", False),
        ("4", True),
        ("</s>", True),
    ]
    [row] = encoder.encode([sample])
    assert scored_pieces(tokenizer, row) == ["Hello</s>", "4</s>"]
    [row] = Encoder(tokenizer, "alpaca", max_length=2000, turns="last").encode([sample])
    assert scored_pieces(tokenizer, row) == ["4</s>"]
    [row] = encoder.encode([conversation(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))])
    assert scored_pieces(tokenizer, row) == ["Hello</s>"]  # the EOS at the end answers nothing
    assert row.input_ids[-1] == tokenizer.eos_token_id


def test_plain(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["llama3"]
    encoder = Encoder(tokenizer, "auto", max_length=2000, data_format="text")
    assert encoder.template_name == "plain"
    [row] = encoder.encode([conversation(("text", "Hello there, how are you?"))])
    assert tokenizer.decode(row.input_ids) == "<|begin_of_text|>Hello there, how are you?<|eot_id|>"
    assert row.response_mask.tolist() == [False] + [True] * (len(row.input_ids) - 1)  # all but the BOS
    assert encoder.render(asked("Translate.", "Hello", "bonjour"))[0] == ("Translate.\nbonjour\n", False)


def test_the_first_token_is_no_target(chat_tokenizers: dict[str, Any]) -> None:
    [row] = Encoder(chat_tokenizers["qwen"], "plain", max_length=2000).encode([conversation(("text", "Hello there"))])
    assert row.status is Status.OK
    assert row.response_mask.tolist() == [False] + [True] * (len(row.input_ids) - 1)


@pytest.mark.parametrize(
    ("data_format", "template"),
    [
        ("alpaca", "alpaca"),
        ("dolly_hhrlhf", "alpaca"),
        ("prompt-completion", "alpaca"),
        ("prompt-completion-messages", "chat"),
        ("preference", "alpaca"),
        ("preference-messages", "chat"),
        ("sharegpt", "chat"),
        ("messages", "chat"),
        ("alpaca+messages", "chat"),
        ("text", "plain"),
        (None, "alpaca"),
    ],
)
def test_auto(chat_tokenizers: dict[str, Any], data_format: str | None, template: str) -> None:
    assert Encoder(chat_tokenizers["qwen"], max_length=9, data_format=data_format).template_name == template


# ---- truncation ----


def _lengths(tokenizer: Any) -> tuple[Row, int, int, int]:
    """A sample and its tokens of prompt (BOS apart), response and in all."""
    sample = asked("Hello there, how are you today?", "The answer is 4. It is sunny in Paris.")
    [row] = Encoder(tokenizer, "alpaca", max_length=2000).encode([sample])
    n = int(row.response_mask.sum())
    return sample, len(row.input_ids) - n - 1, n, len(row.input_ids)


def test_prompt_is_cut_from_the_left_after_bos(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["llama3"]
    sample, prompt, response, total = _lengths(tokenizer)
    [whole] = Encoder(tokenizer, "alpaca", max_length=total).encode([sample])
    assert (whole.status, whole.n_cut) == (Status.OK, 0)
    [row] = Encoder(tokenizer, "alpaca", max_length=total - 5).encode([sample])
    assert (row.status, row.n_cut, row.reason) == (Status.TRUNCATED, 0, f"{total} tokens, cut to {total - 5}")
    assert row.input_ids.tolist() == [whole.input_ids[0], *whole.input_ids[6:]]
    assert row.response_mask.tolist() == [False] * (1 + prompt - 5) + [True] * response


def test_response_is_cut_from_the_right_when_no_prompt_is_left(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["llama3"]
    sample, prompt, response, total = _lengths(tokenizer)
    [whole] = Encoder(tokenizer, "alpaca", max_length=total).encode([sample])
    length = 1 + response - 3
    [row] = Encoder(tokenizer, "alpaca", max_length=length).encode([sample])
    assert (row.status, row.n_cut) == (Status.TRUNCATED, 3)
    assert row.input_ids.tolist() == [whole.input_ids[0], *whole.input_ids[1 + prompt : total - 3]]
    assert row.response_mask.tolist() == [False] + [True] * (length - 1)


def test_what_follows_the_last_response_is_cut_first(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["qwen"]
    sample = conversation(("user", "Hi"), ("assistant", "Hello"), ("user", "It is sunny in Paris"))
    [whole] = Encoder(tokenizer, "chat", max_length=2000).encode([sample])
    last = int(np.flatnonzero(whole.response_mask)[-1])
    [row] = Encoder(tokenizer, "chat", max_length=last + 1).encode([sample])
    assert row.input_ids.tolist() == whole.input_ids[: last + 1].tolist()
    assert (row.status, row.n_cut) == (Status.TRUNCATED, 0)


def test_overlong_rows_can_be_dropped(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["llama3"]
    sample, _, _, total = _lengths(tokenizer)
    [fits] = Encoder(tokenizer, "alpaca", max_length=total, overlong="drop").encode([sample])
    [row] = Encoder(tokenizer, "alpaca", max_length=total - 1, overlong="drop").encode([sample])
    assert fits.status is Status.OK
    assert (row.status, row.reason) == (Status.TOO_LONG, f"{total} tokens, more than {total - 1}")
    assert len(row.input_ids) == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(max_size=40),
    response=st.text(min_size=1, max_size=40),
    max_length=st.integers(2, 200),
    turn=st.booleans(),
)
def test_truncation_loses_no_more_than_it_says(
    chat_tokenizers: dict[str, Any], prompt: str, response: str, max_length: int, turn: bool
) -> None:
    tokenizer = chat_tokenizers["llama3" if turn else "qwen"]
    [whole] = Encoder(tokenizer, "alpaca", max_length=10**6).encode([asked(prompt, response)])
    [row] = Encoder(tokenizer, "alpaca", max_length=max_length).encode([asked(prompt, response)])
    if not whole.status.scored:
        assert row.status is whole.status
        return
    assert len(row.input_ids) == min(max_length, len(whole.input_ids))
    assert row.n_cut <= whole.response_mask.sum()
    lost_first = 1 if row.status is Status.TRUNCATED and not turn and row.n_cut else 0
    assert abs(int(row.response_mask.sum()) + row.n_cut + lost_first - int(whole.response_mask.sum())) <= 1
    assert not row.response_mask[0]
    assert row.response_mask.any()


# ---- statuses ----


def test_statuses_keep_their_places(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["gemma"]
    calls = Message("assistant", "", True, tool_calls=({"id": "a", "function": {"name": "f", "arguments": {}}},))
    batch = [
        asked("Go", "Yes", row_id=7),
        asked("Go", " \n\t", row_id=8),
        conversation(("user", "Go"), Message("assistant", "Yes"), row_id=9),
        conversation(("user", "Go"), calls, row_id=10),
        asked("Go", "No", row_id=11),
    ]
    rows = Encoder(tokenizer, "alpaca", max_length=2000).encode(batch)
    assert [row.row_id for row in rows] == [7, 8, 9, 10, 11]
    assert [row.status for row in rows] == ["ok", "empty_response", "all_masked", "failed", "ok"]
    assert all(len(row.input_ids) == 0 and row.reason for row in rows[1:4])
    assert scored_pieces(tokenizer, rows[4]) == ["No<eos>"]
    one_by_one = [Encoder(tokenizer, "alpaca", max_length=2000).encode([sample])[0] for sample in batch]
    assert [row.content_hash for row in one_by_one] == [row.content_hash for row in rows]


def test_content_hash_is_of_ids_and_mask(chat_tokenizers: dict[str, Any]) -> None:
    [row] = Encoder(chat_tokenizers["qwen"], "alpaca", max_length=2000).encode([asked("Go", "Yes")])
    expected = hashlib.blake2b(row.input_ids.tobytes() + row.response_mask.tobytes(), digest_size=16).hexdigest()
    assert row.content_hash == expected


def test_a_mask_that_does_not_say_the_response_fails() -> None:
    from tokenizers import Regex, normalizers
    from transformers import PreTrainedTokenizerFast

    deletes_digits = byte_level(["<e>"], normalizers.Replace(Regex("[0-9]"), ""))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=deletes_digits, eos_token="<e>")
    silent = byte_level(["<e>"])
    silent.decoder = None
    rows = Encoder(tokenizer, "plain", max_length=2000).encode([asked("Go", "Yes 4"), asked("Go", "44")])
    assert rows[0].status is Status.OK  # what is left of it is there
    assert rows[1].status is Status.FAILED
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=silent, eos_token="<e>")
    [row] = Encoder(tokenizer, "plain", max_length=2000).encode([asked("Go", "größer naïve")])
    assert row.status is Status.FAILED
    assert "do not say the response" in row.reason


# ---- where offsets are treacherous ----

NASTY = [
    "👋",
    "👨‍👩‍👧 family",
    " leading blank",
    "\n\nleading lines",
    "trailing blank \n",
    "\t\tdef f():\n\t\treturn 1",
    "é decomposed e\u0301",
    "שלום עולם",
    "日本語のテキスト",
    "a\u2028b\u00a0c\u200bd",
    "x" * 300,
    "\x00\x01 control",
    "ﬁ ligature Å",
]


@pytest.mark.parametrize("family", ["llama3", "qwen", "chatml", "gemma", "mistral", "llama2"])
@pytest.mark.parametrize("template", ["alpaca", "plain", "chat"])
def test_nasty_responses_are_masked_whole(chat_tokenizers: dict[str, Any], family: str, template: str) -> None:
    tokenizer = chat_tokenizers[family]
    encoder = Encoder(tokenizer, template, max_length=5000)
    batch = [asked(before, after, row_id=i) for i, (before, after) in enumerate((a, b) for a in NASTY for b in NASTY)]
    for sample, row in zip(batch, encoder.encode(batch), strict=True):
        assert (row.status, row.reason) == (Status.OK, "")
        said = sample.messages[1].text
        text, scored = "".join(t for t, _ in encoder.render(sample)), "".join(t for t, r in encoder.render(sample) if r)
        assert text.endswith(scored) or template == "chat"
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row.input_ids.tolist()[-len(bare) :] == bare
        if family in ("llama3", "chatml"):  # byte-level without a normalizer: tokens are bytes
            mine = tokenizer.convert_ids_to_tokens(row.input_ids[row.response_mask].tolist())
            first = int(np.flatnonzero(row.response_mask)[0])
            outside = tokenizer.decode(row.input_ids[:first].tolist(), skip_special_tokens=False)
            assert text.startswith(outside.removeprefix("<|begin_of_text|>") if template != "chat" else outside)
            assert said.strip() in tokenizer.convert_tokens_to_string(mine)


def _without_eos(backend: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_trimmed_offsets_do_not_lose_blank_tokens() -> None:
    """Byte-level post-processors trim blanks off the offsets: a token of blanks has no width left."""
    tokenizer = _without_eos(byte_level(["<e>"], trim_offsets=True))
    assert (6, 6) in tokenizer("Hello \n", return_offsets_mapping=True)["offset_mapping"]
    encoder = Encoder(tokenizer, "alpaca", max_length=2000)
    sample = conversation(("user", "Hi"), ("assistant", "  \n Hello "), ("user", "Hi"), ("assistant", "\n4"))
    [row] = encoder.encode([sample])
    assert scored_pieces(tokenizer, row) == ["  \n Hello ", "\n4"]
    assert encoder.notes == ("the tokenizer has no end-of-sequence token, so none is appended",)


def test_tokens_across_the_end_are_scored() -> None:
    from tokenizers import AddedToken

    backend = byte_level(["<e>"])
    backend.add_tokens([AddedToken("\n\n", normalized=False)])
    sample = conversation(("user", "Hi"), ("assistant", "Yes\n"), ("user", "Hi"), ("assistant", "4"))
    tokenizer = _without_eos(backend)
    [row] = Encoder(tokenizer, "alpaca", max_length=2000).encode([sample])
    assert scored_pieces(tokenizer, row) == ["Yes\n\n", "4"]


def test_a_token_across_the_border_is_scored(chat_tokenizers: dict[str, Any]) -> None:
    """ "\\n" of the prompt and "\\n" of the response can be one token: it is scored, because it says the response."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(chat_tokenizers["chatml"].backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("\n\n", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    [row] = Encoder(tokenizer, "plain", max_length=2000).encode([asked("Go", "\nYes")])
    assert scored_pieces(tokenizer, row) == ["\n\nYes<|im_end|>"]


def test_unknown_characters_go_by_offsets() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Go": 2, "Yes": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    [row] = Encoder(tokenizer, "plain", max_length=2000).encode([asked("Go", "Yes indeed")])
    assert (row.status, row.input_ids.tolist()) == (Status.OK, [2, 3, 0, 1])
    assert row.response_mask.tolist() == [False, True, True, True]


# ---- what people get wrong ----


def test_errors_name_the_fix(chat_tokenizers: dict[str, Any], tmp_path: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    backend = chat_tokenizers["qwen"].backend_tokenizer
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    with pytest.raises(InputError, match=r"no chat template.*--template alpaca"):
        Encoder(bare, "auto", max_length=9, data_format="messages")
    with pytest.raises(InputError, match=r"no template 'alpacca'"):
        Encoder(bare, "alpacca", max_length=9)
    with pytest.raises(InputError, match="max-length 1"):
        Encoder(bare, "alpaca", max_length=1)
    with pytest.raises(InputError, match="no fast version"):
        Encoder(object(), "alpaca", max_length=9)
    for name, source in (("broken", "{% for m in messages %}"), ("silent", "{{ messages[0].content }}")):
        path = tmp_path / f"{name}.jinja"
        path.write_text(source, encoding="utf-8")
        with pytest.raises(InputError, match=f"{name}.jinja"):
            Encoder(bare, str(path), max_length=9)


def test_identity_tells_encoders_apart(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["qwen"]
    known = [
        Encoder(tokenizer, "alpaca", max_length=9).identity,
        Encoder(tokenizer, "alpaca", max_length=10).identity,
        Encoder(tokenizer, "chat", max_length=9).identity,
        Encoder(tokenizer, "alpaca", max_length=9, turns="last").identity,
        Encoder(tokenizer, "alpaca", max_length=9, overlong="drop").identity,
        Encoder(chat_tokenizers["chatml"], "alpaca", max_length=9).identity,
    ]
    assert all(a != b for i, a in enumerate(known) for b in known[:i])
    encoder = Encoder(tokenizer, "alpaca", max_length=9)
    tokenizer("cuts a long text", truncation=True, max_length=3)  # changes the tokenizer's state
    assert Encoder(tokenizer, "alpaca", max_length=9).identity == encoder.identity == known[0]
