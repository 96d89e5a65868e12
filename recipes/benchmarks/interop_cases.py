"""The rows that `interop.py` exports: one case for each thing that a trainer may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

QUESTIONS = ("Name a river.", "Add two and three.", "What is soft?", "Who sings?", "Say it in French.", "Stop.")
ANSWERS = ("The Rhine.", "\n5", " Wool,\nand felt.", "A lark", "C'est la vie: déjà vu!", "...")
CALL = {"id": "c00010000", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}}


@dataclass(frozen=True)
class Case:
    """Some rows.

    Attributes:
        name: in the table.
        rows: of the data file.
        template: that they are scored under.
        tokenizer: "" for the model's own, "bos" for the same with a token put before every text, "blanks" for a small one
            that writes blanks as part of words and puts one before every text, as Llama 2's does.
        max_length: tokens of a row at most.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    template: str
    tokenizer: str = ""
    max_length: int = 512


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _cases() -> list[Case]:
    pairs = list(zip(QUESTIONS, ANSWERS, strict=True))
    alpaca = [{"instruction": q, "input": "as a list" if i % 2 else "", "output": a} for i, (q, a) in enumerate(pairs)]
    single = [{"messages": [turn("system", "Be brief."), turn("user", q), turn("assistant", a)]} for q, a in pairs]
    several = [
        {"messages": [turn("user", q), turn("assistant", a), turn("user", "And then?"), turn("assistant", f"{a} No.")]}
        for q, a in pairs
    ]
    weighted = [
        {"messages": [row["messages"][0], {**row["messages"][1], "weight": 0}, *row["messages"][2:]]} for row in several
    ]
    asks = [turn("user", "Rain?"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "none")]
    calls = [{"messages": [*asks, turn("assistant", a)], "tools": [TOOL]} for a in ANSWERS]
    preferred = [{"prompt": q, "chosen": a, "rejected": "I cannot say."} for q, a in pairs]
    said = [[turn("user", q)] for q in QUESTIONS]
    spoken = [
        {"prompt": q, "chosen": [turn("assistant", a)], "rejected": [turn("assistant", "Hm.")]}
        for q, a in zip(said, ANSWERS, strict=True)
    ]
    return [
        Case("Alpaca rows, `alpaca`", alpaca, "alpaca"),
        Case("Alpaca rows, `alpaca`, tokenizer with BOS", alpaca, "alpaca", "bos"),
        Case("one answer, `chat`", single, "chat"),
        Case("several answers, `chat`", several, "chat"),
        Case("several answers, one with weight 0, `chat`", weighted, "chat"),
        Case("tool calls, `chat`", calls, "chat"),
        Case("several answers, `alpaca`, tokenizer with BOS", several, "alpaca", "bos"),
        Case("one answer, `plain`", single, "plain"),
        Case("Alpaca rows, `alpaca`, tokenizer with `▁`", alpaca, "alpaca", "blanks"),
        Case("Alpaca rows longer than `--max-length`", alpaca, "alpaca", max_length=28),
        Case("preference pairs, `alpaca`", preferred, "alpaca"),
        Case("preference pairs of turns, `chat`", spoken, "chat"),
    ]


CASES = _cases()
