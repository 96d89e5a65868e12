"""Conversations: ShareGPT's, and the messages of OpenAI, TRL and the Hub."""

from __future__ import annotations

from collections.abc import Callable

from instruct_prune.rows.formats.format import SYSTEM, TOOLS, Fields, Format, Parsed, opening, tools
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import Message
from instruct_prune.rows.turns import messages_of


def _conversation(*names: str) -> Callable[[Fields], Parsed]:
    def parse(fields: Fields) -> Parsed:
        name = fields.required(*names)
        said = messages_of(fields.get(name), name)
        if not any(message.role == "system" for message in said):
            said = opening(fields, "system", "system_prompt") + said
        return checked(said, name), tools(fields)

    return parse


def checked(said: list[Message], field: str) -> list[Message]:
    """The turns, among which there must be one of the assistant."""
    if not any(message.role == "assistant" for message in said):
        raise RowError("the conversation has no assistant turn", field)
    return said


MESSAGES = Format(
    "messages",
    (("messages",),),
    ("prompt", *TOOLS, *SYSTEM),
    _conversation("messages"),
    structures=("messages", *TOOLS),
)
SHAREGPT = Format(
    "sharegpt",
    (("conversations", "conversation"),),
    (*TOOLS, *SYSTEM),
    _conversation("conversations", "conversation"),
    structures=("conversations", "conversation", *TOOLS),
)
