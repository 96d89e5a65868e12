"""Rows of today's datasets, each reported of another tool: thoughts, calls and special tokens at odd places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_cases import CALL, TOOL, conversation, scored_pieces
from families import tokenizer_of
from tiny_backends import byte_level

from instruct_prune.encode.item import Status
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.report.inspect import inspect_data
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Message, Row

ASKS = {"role": "user", "content": "How many legs do three cats have?"}
THOUGHT = "One cat has four legs."
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'


def encoded(tokenizer: Any, path: Path, *rows: Any, template: str = "auto") -> tuple[list[list[str]], tuple[str, ...]]:
    """What is scored of each row, and the notes."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = open_data([str(path)])
    read = list(source)
    assert all(isinstance(row, Row) for row in read), read
    encoder = Encoder(tokenizer, template, max_length=2000, data_format=source.format)
    found = encoder.encode([row for row in read if isinstance(row, Row)])
    assert [(row.status, row.reason) for row in found] == [(Status.OK, "")] * len(rows)
    return [scored_pieces(tokenizer, row) for row in found], encoder.notes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_a_thought_and_a_call_without_words_between(path: Path) -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
    turn = {"role": "assistant", "content": f"<think>\n{THOUGHT}\n</think>\n\n", "tool_calls": calls}
    [[piece]], notes = encoded(tokenizer_of("qwen3"), path, {"messages": [ASKS, turn], "tools": [TOOL]})
    assert piece == f"<think>\n{THOUGHT}\n</think>\n\n{CALLED}"
    assert notes == ()


INLINE = [
    f"<think>\n{THOUGHT}\n</think>\n\nTwelve.",
    f"{THOUGHT}\n</think>\n\nTwelve.",
    "In some models the tag </think> ends the reasoning part.",
    "    return 4",
]


@pytest.mark.parametrize("content", INLINE)
@pytest.mark.parametrize("family", ["mistral", "llama2", "chatml", "phi3", "opens_think"])
def test_all_that_an_answer_says_is_scored(
    chat_tokenizers: dict[str, Any], path: Path, tmp_path: Path, family: str, content: str
) -> None:
    template = "auto"
    if family == "opens_think":
        template, family = str(tmp_path / "x.jinja"), "chatml"
        Path(template).write_text(
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' }}{% endif %}"
        )
    tokenizer = tokenizer_of("phi3") if family == "phi3" else chat_tokenizers[family]
    row = {"messages": [ASKS, {"role": "assistant", "content": content}]}
    [[piece]], notes = encoded(tokenizer, path, row, template=template)
    ends = {"mistral": "</s>", "llama2": " </s>", "chatml": "<|im_end|>", "phi3": "<|end|>"}
    expected = content.strip() if family in ("mistral", "llama2") else content  # these two trim
    assert (piece.lstrip(" ") if family in ("mistral", "llama2") else piece) == expected + ends[family]
    assert notes == ()


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen3", f"<think>\n{THOUGHT}\n</think>\n\nTwelve.<|im_end|>"),
        ("qwen3_5", f"{THOUGHT}\n</think>\n\nTwelve.<|im_end|>"),
        ("gpt_oss", f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>Twelve.<|return|>"),
        ("smollm3", f"<think>\n{THOUGHT}\n</think>\n\nTwelve.<|im_end|>"),  # it knows thoughts in the text only
    ],
)  # fmt: skip
def test_a_thought_under_a_key_of_its_own(path: Path, key: str, family: str, expected: str) -> None:
    row = {"messages": [ASKS, {"role": "assistant", "content": "Twelve.", key: THOUGHT}]}
    pieces, notes = encoded(tokenizer_of(family), path, row)
    assert pieces == [[expected]]
    assert notes == ()


def test_what_is_left_out_is_counted(path: Path) -> None:
    inside = {"messages": [ASKS, {"role": "assistant", "content": INLINE[0]}]}
    apart = {"messages": [ASKS, {"role": "assistant", "content": "Twelve.", "reasoning": THOUGHT, "mood": "merry"}]}
    pieces, notes = encoded(tokenizer_of("deepseek_r1"), path, inside, inside, apart)
    assert pieces == [["\n\nTwelve.<|eos|>"]] * 3
    assert notes == (
        "the chat template leaves out thoughts: they are not scored (3 turns)",
        "the key 'mood' of turns is not read; exports to messages carry it on (1 turn)",
    )
    _, notes = encoded(tokenizer_of("phi4"), path, inside, apart)
    assert notes[0] == "the chat template has no place for thoughts (reasoning_content): they are left out (1 turn)"
    _, notes = encoded(tokenizer_of("phi4"), path, apart, template="alpaca")
    assert any("the template alpaca has no place for thoughts" in note for note in notes)


def test_a_turn_of_which_nothing_is_left_fails() -> None:
    thinks = conversation(("user", "q"), ("assistant", f"<think>\n{THOUGHT}\n</think>\n\n"))
    [row] = Encoder(tokenizer_of("deepseek_r1"), "chat", max_length=2000).encode([thinks])
    assert (row.status, row.reason) == (Status.FAILED, "the chat template leaves out all that turn 2 says")


CALL_TEXT = '{"name": "weather", "arguments": {"city": "Oslo"}}'
PARTS = [{"type": "reasoning", "value": THOUGHT}, {"type": "tool_call", "value": CALL_TEXT}]


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "function_call", "value": f"<think>\n{THOUGHT}\n</think>\n{CALL_TEXT}"},
        {"from": "gpt", "value": "", "reasoning": THOUGHT, "function_call": json.loads(CALL_TEXT)},
        {"from": "gpt", "value": PARTS},
    ],
)
def test_thought_and_call_in_many_forms(path: Path, turn: dict[str, Any]) -> None:
    turns = [
        {"from": "human", "value": "q"},
        turn,
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "Yes."},
    ]
    [pieces], notes = encoded(tokenizer_of("qwen3"), path, {"conversations": turns, "tools": json.dumps([TOOL])})
    assert pieces == [f"<think>\n{THOUGHT}\n</think>\n\n{CALLED}", "<think>\n\n</think>\n\nYes.<|im_end|>"]
    assert notes == ()


WRITTEN = [
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}<|eom_id|>',
    '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]',
    '[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}',
    """<functioncall> {"name": "weather", "arguments": '{"city": "Oslo"}'} <|endoftext|>""",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_calls_in_another_familys_words_become_calls(path: Path, text: str) -> None:
    row = {"messages": [ASKS, {"role": "assistant", "content": "Let me look.\n" + text}]}
    [[piece]], notes = encoded(tokenizer_of("granite"), path, row)
    assert piece == 'Let me look.<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]<|end_of_text|>'
    assert len(notes) == 1
    assert "given to the chat template as calls (1 turn)" in notes[0]


def test_calls_in_the_familys_own_words_stay_as_they_are(path: Path) -> None:
    row = {"messages": [ASKS, {"role": "assistant", "content": WRITTEN[0]}]}
    [[piece]], notes = encoded(tokenizer_of("hermes"), path, row)
    assert (piece, notes) == (WRITTEN[0] + "<|im_end|>", ())


# ---- special tokens ----


def test_text_that_brings_its_own_bos_and_eos(chat_tokenizers: dict[str, Any], path: Path) -> None:
    tokenizer = chat_tokenizers["llama2"]
    texts = [
        "<s>[INST] Name a fruit [/INST] Fig </s>",
        "[INST] Name a fruit [/INST] Fig ",
        "<s>[INST] A [/INST] B </s>\n",
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = open_data([str(path)])
    encoder = Encoder(tokenizer, "auto", max_length=2000, data_format=source.format)
    samples = [row for row in source if isinstance(row, Row)]
    rows = encoder.encode(samples)
    for sample, row in zip(samples, rows, strict=True):
        for token, place in ((tokenizer.bos_token_id, 0), (tokenizer.eos_token_id, -1)):
            assert np.count_nonzero(row.input_ids == token) == 1
            assert row.input_ids[place] == token
        assert not row.response_mask[0]
        shown = encoder.bos + "".join(text for text, _ in encoder.render(sample))
        assert (shown.count("<s>"), shown.count("</s>")) == (1, 1)
    shown = "".join(text for text, _ in inspect_data(source, encoder).examples[0].segments)
    assert (shown.count("<s>"), shown.count("</s>")) == (1, 1)


@pytest.mark.parametrize("family", ["llama3", "gemma", "mistral", "llama2"])
@pytest.mark.parametrize("template", ["chat", "alpaca", "plain"])
def test_a_cut_row_keeps_its_bos(chat_tokenizers: dict[str, Any], family: str, template: str) -> None:
    tokenizer = chat_tokenizers[family]
    sample = conversation(("user", "Hello there, how are you today?"), ("assistant", "It is sunny."))
    [row] = Encoder(tokenizer, template, max_length=8).encode([sample])
    assert (row.status, row.input_ids[0]) == (Status.TRUNCATED, tokenizer.bos_token_id)
    assert np.count_nonzero(row.input_ids == tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", ["chat", "alpaca", "plain"])
def test_an_answer_that_ends_in_eos_has_one(chat_tokenizers: dict[str, Any], template: str) -> None:
    tokenizer = chat_tokenizers["mistral"]
    turns = ("user", "Go"), ("assistant", "Yes</s> \n"), ("user", "Go"), ("assistant", "No</s>\n")
    encoder = Encoder(tokenizer, template, max_length=2000)
    [row] = encoder.encode([conversation(*turns)])
    assert [piece.strip() for piece in scored_pieces(tokenizer, row)] == ["Yes</s>", "No</s>"]
    assert sum(text.count("</s>") for text, _ in encoder.render(conversation(*turns))) == 2


def test_inspect_shows_the_ids_that_are_scored(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["llama3"]
    encoder = Encoder(tokenizer, "chat", max_length=20)
    sample = conversation(("user", "Hello there, how are you?"), ("assistant", "It is sunny in Paris 👋 and Oslo."))
    [row] = encoder.encode([sample])
    runs = encoder.decode(row)
    assert "".join(text for text, _ in runs) == tokenizer.decode(row.input_ids)
    assert [text for text, scored in runs if scored] == scored_pieces(tokenizer, row)


# ---- one template or another ----


def test_named_templates_go_by_row(path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    plain, tools = tokenizer_of("hermes").chat_template, tokenizer_of("qwen3").chat_template
    backend = byte_level(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template={"default": plain, "tool_use": tools}
    )
    turns = [ASKS, {"role": "assistant", "content": "Four."}]
    pieces, notes = encoded(tokenizer, path, {"messages": turns, "tools": [TOOL]}, {"messages": turns, "tools": []})
    assert pieces == [["<think>\n\n</think>\n\nFour.<|im_end|>"], ["Four.<|im_end|>"]]
    assert notes == ()


@pytest.mark.parametrize("arguments", [{"city": "Oslo", "days": [1, 2.5, True, None]}, "no JSON"])
def test_arguments_in_the_form_that_the_template_takes(arguments: Any) -> None:
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    sample = conversation(("user", "q"), Message("assistant", "", True, tool_calls=(call,)), tools=(TOOL,))
    for family in ("deepseek_v3", "qwen3", "llama4"):
        tokenizer = tokenizer_of(family)
        encoder = Encoder(tokenizer, "chat", max_length=2000)
        [row] = encoder.encode([sample])
        [piece] = scored_pieces(tokenizer, row)
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        assert text in piece
        assert not any("leaves out" in note for note in encoder.notes)


# ---- where marks could mislead ----


def test_equal_questions_stay_equal(chat_tokenizers: dict[str, Any]) -> None:
    """Mistral's template writes the tools before every question that equals the last one."""
    turns = [("user", "Again?"), ("assistant", "one"), ("user", "Again?"), ("assistant", "two")]
    [row] = Encoder(chat_tokenizers["mistral"], "chat", max_length=2000).encode([conversation(*turns, tools=(TOOL,))])
    assert [piece.strip() for piece in scored_pieces(chat_tokenizers["mistral"], row)] == ["one</s>", "two</s>"]


def test_a_template_that_looks_at_the_tags_of_results(chat_tokenizers: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.jinja"
    path.write_text(
        "{% for m in messages %}{{ '<|im_start|>' }}{{ 'tool' if m.content.startswith('<result>') else m.role }}"
        "{{ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tokenizer = chat_tokenizers["chatml"]
    sample = conversation(("user", "q"), ("assistant", "one"), ("user", "<result>4</result>"), ("assistant", "two"))
    [row] = Encoder(tokenizer, str(path), max_length=2000).encode([sample])
    assert scored_pieces(tokenizer, row) == ["one<|im_end|>", "two<|im_end|>"]


def test_the_end_token_inside_an_argument_ends_nothing() -> None:
    call = {**CALL, "function": {"name": "weather", "arguments": {"city": "<|im_end|>", "days": 3}}}
    sample = conversation(
        ("user", "q"), Message("assistant", "", True, tool_calls=(call,)), ("tool", "r"), ("assistant", "a")
    )
    tokenizer = tokenizer_of("qwen3")
    [row] = Encoder(tokenizer, "chat", max_length=2000).encode([sample])
    assert scored_pieces(tokenizer, row)[0].endswith('{"city": "<|im_end|>", "days": 3}}\n</tool_call><|im_end|>')


def test_results_in_another_order_answer_their_calls(chat_tokenizers: dict[str, Any], path: Path) -> None:
    function = {"name": "weather", "arguments": {}}
    turns = [
        ASKS,
        {"role": "assistant", "content": "", "tool_calls": [{"id": f"call_{i}", "function": function} for i in (1, 2)]},
        {"role": "tool", "tool_call_id": "call_2", "content": "second"},
        {"role": "tool", "tool_call_id": "call_1", "content": "first"},
        {"role": "assistant", "content": "Done."},
    ]
    path.write_text(json.dumps({"messages": turns}))
    source = open_data([str(path)])
    encoder = Encoder(chat_tokenizers["mistral"], "chat", max_length=2000)
    text = "".join(piece for piece, _ in encoder.render(next(row for row in source if isinstance(row, Row))))
    assert '{"content": second, "call_id": "c00010001"}' in text
    assert '{"content": first, "call_id": "c00010000"}' in text
