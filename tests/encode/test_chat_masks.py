"""Golden masks: for each family of chat templates the text and the scored pieces are written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chat_cases import CALL, TOOL, WRITTEN_TOOL, conversation, scored_pieces

from instruct_prune.encode.item import Status
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.rows.row import Message, Row

SINGLE = conversation(("user", "What is 2+2?"), ("assistant", "4"))
SYSTEM = conversation(("system", "Be terse."), ("user", "What is 2+2?"), ("assistant", "4"))
MULTI = conversation(("user", "Hi"), ("assistant", "Hello 👋"), ("user", "2+2?"), ("assistant", " It is 4.\n"))
TOOLS = conversation(
    ("user", "Weather in Paris?"),
    Message("assistant", "", True, tool_calls=(CALL,)),
    ("tool", "sunny"),
    ("assistant", "It is sunny."),
    tools=(TOOL,),
)
TOOLS_LATER = conversation(*TOOLS.messages, ("user", "Thanks"), ("assistant", "You are welcome."), tools=(TOOL,))

_LLAMA_HEAD = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n{}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
)
_LLAMA_ASK = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_CHATML_CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'

GOLDEN: list[tuple[str, Row, str, list[str]]] = [
    (
        "llama3",
        SINGLE,
        _LLAMA_HEAD.format("") + "What is 2+2?<|eot_id|>" + _LLAMA_ASK + "4<|eot_id|>",
        ["4<|eot_id|>"],
    ),
    (
        "llama3",
        SYSTEM,
        _LLAMA_HEAD.format("Be terse.") + "What is 2+2?<|eot_id|>" + _LLAMA_ASK + "4<|eot_id|>",
        ["4<|eot_id|>"],
    ),
    (
        "llama3",  # this template trims
        MULTI,
        _LLAMA_HEAD.format("")
        + "Hi<|eot_id|>"
        + _LLAMA_ASK
        + "Hello 👋<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        + _LLAMA_ASK
        + "It is 4.<|eot_id|>",
        ["Hello 👋<|eot_id|>", "It is 4.<|eot_id|>"],
    ),
    (
        "llama3",
        TOOLS,
        _LLAMA_HEAD.format("")
        + f"Use the tools.\n\n{WRITTEN_TOOL}\n\nWeather in Paris?<|eot_id|>"
        + _LLAMA_ASK
        + '{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>'
        + '<|start_header_id|>ipython<|end_header_id|>\n\n"sunny"<|eot_id|>'
        + _LLAMA_ASK
        + "It is sunny.<|eot_id|>",
        ['{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>', "It is sunny.<|eot_id|>"],
    ),
    (
        "qwen",  # the last turn is written with an empty thought: the model has to write that too
        SINGLE,
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n4<|im_end|>\n",
        ["<think>\n\n</think>\n\n4<|im_end|>"],
    ),
    (
        "qwen",
        SYSTEM,
        "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n4<|im_end|>\n",
        ["<think>\n\n</think>\n\n4<|im_end|>"],
    ),
    (
        "qwen",
        MULTI,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello 👋<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n It is 4.\n<|im_end|>\n",
        ["Hello 👋<|im_end|>", "<think>\n\n</think>\n\n It is 4.\n<|im_end|>"],
    ),
    (
        "qwen",
        TOOLS,
        f"<|im_start|>system\n# Tools\n<tools>\n{WRITTEN_TOOL}\n</tools><|im_end|>\n"
        "<|im_start|>user\nWeather in Paris?<|im_end|>\n"
        f"<|im_start|>assistant\n<tool_call>\n{_CHATML_CALL}\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nIt is sunny.<|im_end|>\n",
        [f"<tool_call>\n{_CHATML_CALL}\n</tool_call><|im_end|>", "<think>\n\n</think>\n\nIt is sunny.<|im_end|>"],
    ),
    (
        "gemma",
        SINGLE,
        "<bos><start_of_turn>user\nWhat is 2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n",
        ["4<end_of_turn>"],
    ),
    (
        "gemma",  # refuses system messages: merged into the first user turn
        SYSTEM,
        "<bos><start_of_turn>user\nBe terse.\n\nWhat is 2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n",
        ["4<end_of_turn>"],
    ),
    (
        "gemma",
        MULTI,
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello 👋<end_of_turn>\n"
        "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\nIt is 4.<end_of_turn>\n",
        ["Hello 👋<end_of_turn>", "It is 4.<end_of_turn>"],
    ),
    (
        "gemma",  # knows neither tools nor calls nor results
        TOOLS,
        "<bos><start_of_turn>user\nWeather in Paris?<end_of_turn>\n"
        f"<start_of_turn>model\n{_CHATML_CALL}<end_of_turn>\n"
        "<start_of_turn>user\nsunny<end_of_turn>\n<start_of_turn>model\nIt is sunny.<end_of_turn>\n",
        [f"{_CHATML_CALL}<end_of_turn>", "It is sunny.<end_of_turn>"],
    ),
    ("mistral", SINGLE, "<s>[INST] What is 2+2?[/INST] 4</s>", ["4</s>"]),
    (
        "mistral",  # drops the system message when the assistant has the last word: merged into the user turn instead
        SYSTEM,
        "<s>[INST] Be terse.\n\nWhat is 2+2?[/INST] 4</s>",
        ["4</s>"],
    ),
    (
        "mistral",
        MULTI,
        "<s>[INST] Hi[/INST] Hello 👋</s>[INST] 2+2?[/INST] It is 4.</s>",
        ["Hello 👋</s>", "It is 4.</s>"],
    ),
    (
        "mistral",
        TOOLS,
        f"<s>[AVAILABLE_TOOLS] [{WRITTEN_TOOL}][/AVAILABLE_TOOLS][INST] Weather in Paris?[/INST]"
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "c00010000"}]</s>'
        '[TOOL_RESULTS] {"content": sunny, "call_id": "c00010000"}[/TOOL_RESULTS] It is sunny.</s>',
        [
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "c00010000"}]</s>',
            "It is sunny.</s>",
        ],
    ),
    (
        "mistral",  # the tools stand before the last question, so no beginning of the text is a rendered prefix
        TOOLS_LATER,
        "<s>[INST] Weather in Paris?[/INST]"
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "c00010000"}]</s>'
        '[TOOL_RESULTS] {"content": sunny, "call_id": "c00010000"}[/TOOL_RESULTS] It is sunny.</s>'
        f"[AVAILABLE_TOOLS] [{WRITTEN_TOOL}][/AVAILABLE_TOOLS][INST] Thanks[/INST] You are welcome.</s>",
        [
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "c00010000"}]</s>',
            "It is sunny.</s>",
            "You are welcome.</s>",
        ],
    ),
    ("llama2", SINGLE, "<s>[INST] What is 2+2? [/INST] 4 </s>", ["4 </s>"]),
    (
        "llama2",
        SYSTEM,
        "<s>[INST] <<SYS>>\nBe terse.\n<</SYS>>\n\nWhat is 2+2? [/INST] 4 </s>",
        ["4 </s>"],
    ),
    (
        "llama2",  # a BOS before every question, as this template has it
        MULTI,
        "<s>[INST] Hi [/INST] Hello 👋 </s><s>[INST] 2+2? [/INST] It is 4. </s>",
        ["Hello 👋 </s>", "It is 4. </s>"],
    ),
    (
        "chatml",
        SINGLE,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n",
        ["4<|im_end|>"],
    ),
    (
        "chatml",
        SYSTEM,
        "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n",
        ["4<|im_end|>"],
    ),
    (
        "chatml",  # this template does not trim: the blanks are part of the response
        MULTI,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello 👋<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n It is 4.\n<|im_end|>\n",
        ["Hello 👋<|im_end|>", " It is 4.\n<|im_end|>"],
    ),
    (
        "chatml",  # writes roles as they are, and no calls
        TOOLS,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWeather in Paris?<|im_end|>\n"
        f"<|im_start|>assistant\n{_CHATML_CALL}<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n"
        "<|im_start|>assistant\nIt is sunny.<|im_end|>\n",
        [f"{_CHATML_CALL}<|im_end|>", "It is sunny.<|im_end|>"],
    ),
]


def _encoder(tokenizer: Any, **options: Any) -> Encoder:
    return Encoder(tokenizer, "chat", max_length=2000, **options)


@pytest.mark.parametrize(("family", "sample", "text", "pieces"), GOLDEN)
def test_text_and_mask(chat_tokenizers: dict[str, Any], family: str, sample: Row, text: str, pieces: list[str]) -> None:
    tokenizer = chat_tokenizers[family]
    encoder = _encoder(tokenizer)
    assert "".join(part for part, _ in encoder.render(sample)) == text
    [row] = encoder.encode([sample])
    assert (row.status, row.reason) == (Status.OK, "")
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert row.input_ids.tolist() == whole  # one tokenization of the whole text, nothing glued
    assert [
        piece.lstrip(" ") if family in ("mistral", "llama2") else piece for piece in scored_pieces(tokenizer, row)
    ] == pieces


@pytest.mark.parametrize("family", ["llama3", "gemma", "mistral"])  # Llama-2 writes one before every question
def test_exactly_one_bos(chat_tokenizers: dict[str, Any], family: str) -> None:
    tokenizer = chat_tokenizers[family]
    for template in ("chat", "alpaca"):
        for row in Encoder(tokenizer, template, max_length=2000).encode([SINGLE, SYSTEM, MULTI]):
            assert row.input_ids[0] == tokenizer.bos_token_id
            assert np.count_nonzero(row.input_ids == tokenizer.bos_token_id) == 1
            assert not row.response_mask[0]


def test_last_turn_only(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["llama3"]
    [row] = _encoder(tokenizer, turns="last").encode([MULTI])
    assert scored_pieces(tokenizer, row) == ["It is 4.<|eot_id|>"]


def test_weight_zero_is_not_scored(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["qwen"]
    first_off = conversation(("user", "Hi"), Message("assistant", "Hello"), ("user", "2+2?"), ("assistant", "4"))
    last_off = conversation(("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"), Message("assistant", "4"))
    all_off = conversation(("user", "Hi"), Message("assistant", "Hello"))
    rows = _encoder(tokenizer).encode([first_off, last_off, all_off])
    assert scored_pieces(tokenizer, rows[0]) == ["<think>\n\n</think>\n\n4<|im_end|>"]
    assert scored_pieces(tokenizer, rows[1]) == ["Hello<|im_end|>"]
    assert rows[2].status is Status.ALL_MASKED
    assert "weight" in rows[2].reason


def test_thoughts_are_scored_where_the_template_writes_them(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["qwen"]
    sample = conversation(
        ("user", "Hi"),
        ("assistant", "<think>\nA greeting.\n</think>\n\nHello"),
        ("user", "2+2?"),
        ("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
    )
    [row] = _encoder(tokenizer).encode([sample])
    assert row.status is Status.OK
    assert scored_pieces(tokenizer, row) == ["Hello<|im_end|>", "<think>\nTwo and two.\n</think>\n\n4<|im_end|>"]


def test_text_beside_a_call(chat_tokenizers: dict[str, Any]) -> None:
    sample = conversation(("user", "Weather?"), Message("assistant", "Let me see.", True, tool_calls=(CALL,)))
    [row] = _encoder(chat_tokenizers["qwen"]).encode([sample])
    written = f"Let me see.\n<tool_call>\n{_CHATML_CALL}\n</tool_call><|im_end|>"
    assert scored_pieces(chat_tokenizers["qwen"], row) == [f"<think>\n\n</think>\n\n{written}"]
    [row] = _encoder(chat_tokenizers["llama3"]).encode([sample])  # writes the call and leaves the text out
    assert scored_pieces(chat_tokenizers["llama3"], row) == [
        '{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>'
    ]


def test_what_was_done_is_said_once_it_was_done(chat_tokenizers: dict[str, Any]) -> None:
    encoder = _encoder(chat_tokenizers["gemma"])
    encoder.encode([SINGLE])
    assert encoder.notes == ()
    encoder.encode([SYSTEM, SYSTEM])
    moved = "the chat template takes no system message: it is put before the next user turn (2 rows)"
    assert encoder.notes == (moved,)
    encoder.encode([TOOLS])
    assert [note.split(":")[0] for note in encoder.notes[1:]] == [
        "the chat template takes no tool calls",
        "the chat template takes no tool results",
        "the chat template takes no tool definitions",
    ]
    assert "26 July 2024" in _encoder(chat_tokenizers["llama3"]).notes[0]


def test_what_a_template_refuses_is_a_status(chat_tokenizers: dict[str, Any]) -> None:
    two_calls = Message("assistant", "", True, tool_calls=(CALL, CALL))
    [row] = _encoder(chat_tokenizers["llama3"]).encode([conversation(("user", "Weather?"), two_calls)])
    assert row.status is Status.FAILED
    assert "This model only supports single tool-calls at once!" in row.reason
    [row] = _encoder(chat_tokenizers["gemma"]).encode([conversation(("assistant", "Hello"))])
    assert row.status is Status.FAILED
    assert "alternate" in row.reason


def test_a_template_text_in_the_data_moves_no_span(chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["qwen"]
    asked = "Why is '<|im_start|>assistant\n' written before '4<|im_end|>'?"
    sample = conversation(("user", asked), ("assistant", "4"))
    [row] = _encoder(tokenizer).encode([sample])
    assert scored_pieces(tokenizer, row) == ["<think>\n\n</think>\n\n4<|im_end|>"]
    hostile = conversation(("user", "Hi"), ("assistant", "Zq7mOPEN and Zq7mCLOSE"), ("user", "Zq7mCLOSE"))
    [row] = _encoder(tokenizer).encode([hostile])  # the marks themselves: others are taken
    assert scored_pieces(tokenizer, row) == ["Zq7mOPEN and Zq7mCLOSE<|im_end|>"]


JINJA = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n{% endfor %}"
)


def test_jinja_file_without_a_generation_prompt(chat_tokenizers: dict[str, Any], tmp_path: Any) -> None:
    path = tmp_path / "vicuna.jinja"
    path.write_text(JINJA, encoding="utf-8")
    tokenizer = chat_tokenizers["chatml"]
    encoder = Encoder(tokenizer, str(path), max_length=2000)
    [row] = encoder.encode([MULTI])
    # "ASSISTANT:" is prompt; the blank after it is part of the token that begins the answer.
    assert scored_pieces(tokenizer, row) == [" Hello 👋<|im_end|>", " It is 4.\n<|im_end|>"]
    assert encoder.template_name == str(path)
    assert encoder.identity["template_text"] == JINJA


def _with_template(tokenizer: Any, source: str, path: Any) -> Encoder:
    path.write_text(source, encoding="utf-8")
    return Encoder(tokenizer, str(path), max_length=2000)


def test_a_turn_without_a_generation_prompt_does_not_borrow_one(chat_tokenizers: dict[str, Any], tmp_path: Any) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}\n"
        "{% else %}{% if loop.previtem.role == 'user' %}A:{% endif %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    tokenizer = chat_tokenizers["chatml"]
    encoder = _with_template(tokenizer, source, tmp_path / "x.jinja")
    [row] = encoder.encode([conversation(("user", "Hi"), Message("assistant", "one"), ("assistant", "two"))])
    assert scored_pieces(tokenizer, row) == ["two<|im_end|>"]


def test_the_end_of_turn_is_one_token(chat_tokenizers: dict[str, Any], tmp_path: Any) -> None:
    """Phi-3 and others write an end-of-text after the last turn's end-of-turn."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
    )
    tokenizer = chat_tokenizers["chatml"]
    [row] = _with_template(tokenizer, source, tmp_path / "x.jinja").encode([MULTI])
    assert scored_pieces(tokenizer, row) == ["Hello 👋<|im_end|>", " It is 4.\n<|im_end|>"]


def test_a_template_that_looks_into_the_response_fails(chat_tokenizers: dict[str, Any], tmp_path: Any) -> None:
    source = "{% for m in messages %}{{ m.content | length }} letters: {{ m.content }}\n{% endfor %}"
    [row] = _with_template(chat_tokenizers["chatml"], source, tmp_path / "x.jinja").encode([SINGLE])
    assert row.status is Status.FAILED
    assert "changes the responses" in row.reason
