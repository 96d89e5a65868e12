"""Families of chat templates: their tokens, and how each writes what an assistant says, written out by hand.

The templates in ``chat_templates`` are our own: each has the constructs of a family (where a thought goes, how a call
looks, which token ends a turn), in as few lines as show them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_backends import byte_level

TEMPLATES = Path(__file__).parent / "chat_templates"
REFUSED = "refused"

_JSON = '{"name": "NAME", "arguments": ARGS}'
_TAGGED = "<tool_call>\n" + _JSON + "\n</tool_call>"
_XML = "<tool_call>\n<function=NAME>\n<parameter=city>\nCITY\n</parameter>\n</function>\n</tool_call>"
_GLM = "<tool_call>NAME\n<arg_key>city</arg_key>\n<arg_value>CITY</arg_value>\n</tool_call>"
_DEEPSEEK = "<|call_begin|>function<|sep|>NAME\n```json\nARGS\n```<|call_end|>"
_COHERE = '\n    {"tool_call_id": "INDEX", "tool_name": "NAME", "parameters": ARGS}'
_GEMMA = '<|tool_call>call:NAME{city:<|"|>CITY<|"|>}<tool_call|>'


@dataclass(frozen=True)
class Family:
    """What the model has to write, by kind of turn.

    TEXT, THOUGHT and @CALLS stand for what the turn says, NAME, ARGS (JSON), CITY, ID and INDEX for parts of a call.

    Attributes:
        text: an answer with turns after it.
        last: an answer at the end.
        thought: an answer at the end with a thought before it; None: the template leaves the thought out.
        calls: a turn that calls.
        text_calls: one that says something and calls; None: the template leaves the text out; several pieces where
            others speak between them.
        call: one call; ``between`` stands between two.
        parallel: whether it takes two calls in one turn; "first": it writes the first one only.
        after_tool: an answer at the end to a result; None: as ``last``.
        strict: roles must alternate, so results of two calls are refused.
        last_calls: a turn that calls at the end; None: as ``calls``.
    """

    text: str
    last: str
    thought: str | None = None
    calls: str = "@CALLS"
    text_calls: str | tuple[str, ...] | None = "TEXT\n@CALLS"
    call: str = _JSON
    between: str = "\n"
    parallel: bool | str = True
    after_tool: str | None = None
    strict: bool = False
    last_calls: str | None = None

    def called(self, *cities: str) -> str:
        written = []
        for i, city in enumerate(cities):
            parts = {"NAME": "weather", "ARGS": json.dumps({"city": city}), "CITY": city, "INDEX": str(i)}
            parts["ID"] = f"c0001{i:04d}"
            written.append(re.sub("NAME|ARGS|CITY|INDEX|ID", lambda found, p=parts: p[found[0]], self.call))  # type: ignore[misc]
        return self.between.join(written[:1] if self.parallel == "first" else written)


def _plain(end: str, **more: Any) -> Family:
    """No thoughts and no calls of its own: calls are JSON in the text."""
    return Family(**{"text": f"TEXT{end}", "last": f"TEXT{end}", "calls": f"@CALLS{end}",
                     "text_calls": f"TEXT\n@CALLS{end}"} | more)  # fmt: skip


_IM, _EOT = "<|im_end|>", "<|eot_id|>"
_EMPTY = "<think>\n\n</think>\n\n"
FAMILIES: dict[str, Family] = {
    "qwen2_5": _plain(_IM, call=_TAGGED),
    "qwen3": Family(
        f"TEXT{_IM}", f"{_EMPTY}TEXT{_IM}", f"<think>\nTHOUGHT\n</think>\n\nTEXT{_IM}",
        f"@CALLS{_IM}", f"TEXT\n@CALLS{_IM}", _TAGGED, last_calls=f"{_EMPTY}@CALLS{_IM}",
    ),
    # The prompt opens the thought, so the model does not write its tag.
    "qwen3_5": Family(
        f"\n</think>\n\nTEXT{_IM}", f"\n</think>\n\nTEXT{_IM}", f"THOUGHT\n</think>\n\nTEXT{_IM}",
        f"\n</think>\n\n@CALLS{_IM}", f"\n</think>\n\nTEXT\n\n@CALLS{_IM}", _XML,
    ),
    "llama3_1": Family(
        f"TEXT{_EOT}", f"TEXT{_EOT}", None, "<|python_tag|>@CALLS<|eom_id|>", None,
        '{"name": "NAME", "parameters": ARGS}', parallel=False,
    ),
    "llama4": Family(
        "TEXT<|eot|>", "TEXT<|eot|>", None, "<|python_start|>@CALLS<|python_end|><|eom|>",
        "TEXT<|python_start|>@CALLS<|python_end|><|eom|>", '{"name": "NAME", "parameters": ARGS}', "",
    ),
    "mistral_v1": _plain("</s>", strict=True),
    "mistral_nemo": Family(
        "TEXT</s>", "TEXT</s>", None, "[TOOL_CALLS][@CALLS]</s>", None,
        '{"name": "NAME", "arguments": ARGS, "id": "ID"}', ", ",
    ),
    "gemma3": _plain("<end_of_turn>", strict=True),
    "phi3": _plain("<|end|>"),
    "phi4": _plain(_IM),
    "deepseek_v3": Family(
        "TEXT<|eos|>", "TEXT<|eos|>", None, "<|calls_begin|>@CALLS<|calls_end|><|eos|>",
        "TEXT<|calls_begin|>@CALLS<|calls_end|><|eos|>", _DEEPSEEK, "",
    ),
    "deepseek_r1": _plain("<|eos|>"),
    "glm4": Family("\nTEXT", "\nTEXT", None, "@CALLS", "\nTEXT<|assistant|>@CALLS", "NAME\nARGS", "<|assistant|>"),
    "glm4_5": Family(
        "\n<think></think>\nTEXT", "\n<think></think>\nTEXT", "\n<think>THOUGHT</think>\nTEXT",
        "\n<think></think>\n@CALLS", "\n<think></think>\nTEXT\n@CALLS", _GLM,
    ),
    "gpt_oss": Family(
        "<|channel|>final<|message|>TEXT<|end|>", "<|channel|>final<|message|>TEXT<|return|>",
        "<|channel|>analysis<|message|>THOUGHT<|end|><|start|>assistant<|channel|>final<|message|>TEXT<|return|>",
        "@CALLS<|call|>", "<|channel|>analysis<|message|>TEXT<|end|><|start|>assistant@CALLS<|call|>",
        " to=functions.NAME<|channel|>commentary json<|message|>ARGS", parallel="first",
    ),
    "olmo": _plain("</s>"),
    "granite": Family(
        "TEXT<|end_of_text|>", "TEXT<|end_of_text|>", None, "<|tool_call|>[@CALLS]<|end_of_text|>",
        "TEXT<|tool_call|>[@CALLS]<|end_of_text|>", _JSON, ", ",
    ),
    "command_r": Family(
        "<|START_RESPONSE|>TEXT<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        "<|START_RESPONSE|>TEXT<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", None,
        "<|START_ACTION|>[@CALLS\n]<|END_ACTION|><|END_OF_TURN_TOKEN|>",
        "<|START_THINKING|>TEXT<|END_THINKING|><|START_ACTION|>[@CALLS\n]<|END_ACTION|><|END_OF_TURN_TOKEN|>",
        _COHERE, ",",
    ),
    "hermes": _plain(_IM, call=_TAGGED, calls=f"@CALLS{_IM}"),
    "smollm3": Family(
        f"TEXT{_IM}", f"TEXT{_IM}", f"<think>\nTHOUGHT\n</think>\n\nTEXT{_IM}", f"@CALLS{_IM}", f"TEXT\n@CALLS{_IM}",
    ),
    "nemotron": Family(
        f"<think></think>TEXT{_IM}", f"<think></think>TEXT{_IM}", f"THOUGHT\n</think>\nTEXT{_IM}",
        f"<think></think>@CALLS\n{_IM}", f"<think></think>TEXT@CALLS\n{_IM}", _XML,
    ),
    "gemma4": Family(
        "TEXT<turn|>", "TEXT<turn|>", "<|channel>thought\nTHOUGHT\n<channel|>TEXT<turn|>", "@CALLS<|tool_response>",
        ("@CALLS<|tool_response>", "TEXT<turn|>"), _GEMMA, "",
    ),
}  # fmt: skip


def tokenizer_of(family: str) -> Any:
    """A byte-level tokenizer with the tokens that the template's text shows."""
    from transformers import PreTrainedTokenizerFast

    source = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    shown = re.findall(r"<\|[A-Za-z_]+\|>|<[a-z_]+\|>|<\|[a-z_]+>|<(?:start|end)_of_turn>|\[/?[A-Z_]{4,}\]", source)
    ends = {"<|im_end|>", "<|eos|>"} & set(shown)
    eos = ends.pop() if ends else "</s>"
    tokens = sorted({"<s>", eos, "<|User|>", "<|user|>", *shown})
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(tokens), bos_token="<s>", eos_token=eos, chat_template=source
    )
