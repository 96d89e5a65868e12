"""One question and one answer in fields of their own (Alpaca and its kin), and plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from instruct_prune.rows.formats.format import SYSTEM, Fields, Format, Parsed, opening, user
from instruct_prune.rows.reader import RowError, named_type
from instruct_prune.rows.row import Message


def _single(instruction: Sequence[str], context: Sequence[str], response: Sequence[str]) -> Callable[[Fields], Parsed]:
    """One question, one answer, under these names."""

    def parse(fields: Fields) -> Parsed:
        said = opening(fields, "system", "system_prompt") + _history(fields)
        about = fields.text(*context, required=False) if context else ""
        said.append(user(fields, instruction, about))
        said.append(Message("assistant", fields.text(*response), trained=True))
        return said, ()

    return parse


def _history(fields: Fields) -> list[Message]:
    said: list[Message] = []
    history = fields.get("history")
    if history is None or (isinstance(history, str) and not history.strip()):
        return said
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise RowError(f"history must be a list of [question, answer], this is {named_type(history)}", "history")
    for i, pair in enumerate(history):
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError("history must be a list of [question, answer]", f"history[{i}]")
        said += [Message("user", pair[0]), Message("assistant", pair[1], trained=True)]
    return said


ALPACA = Format(
    "alpaca",
    (("instruction",), ("output",)),
    ("input", "history", *SYSTEM),
    _single(["instruction"], ["input"], ["output"]),
    structures=("history",),
)
DOLLY = Format(
    "dolly",
    (("instruction",), ("response",)),
    ("context", *SYSTEM),
    _single(["instruction"], ["context"], ["response"]),
    check=lambda fields: fields.column("context") in fields.row,  # it may be null
)
GPTEACHER = Format(
    "gpteacher",
    (("instruction",), ("response", "target")),
    ("input", "context", "history", *SYSTEM),
    _single(["instruction"], ["input", "context"], ["response", "target"]),
    structures=("history",),
)
DOLLY_HHRLHF = Format("dolly_hhrlhf", (("prompt",), ("response",)), SYSTEM, _single(["prompt"], [], ["response"]))
QUESTION = Format(
    "question",
    (("question", "query"), ("response", "answer", "output")),
    ("context", "input", *SYSTEM),
    _single(["question", "query"], ["context", "input"], ["response", "answer", "output"]),
)


def _text(fields: Fields) -> Parsed:
    return [Message("text", fields.text("text"), trained=True)], ()


TEXT = Format("text", (("text",),), (), _text)
