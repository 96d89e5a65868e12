"""Conversations for the encoder's tests, and how to read a mask back."""

from __future__ import annotations

from typing import Any

from instruct_prune.rows.row import Message, Row

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "c00010000", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
WRITTEN_TOOL = (
    '{"type": "function", "function": {"name": "weather", "description": "Tell the weather", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}'
)


def conversation(*turns: Message | tuple[str, str], tools: tuple[Any, ...] = (), row_id: int = 0) -> Row:
    """A sample of (role, content) pairs; assistant turns are trained."""
    messages = tuple(
        turn if isinstance(turn, Message) else Message(turn[0], turn[1], trained=turn[0] in ("assistant", "text"))
        for turn in turns
    )
    return Row(row_id, messages, "data.jsonl", row_id + 1, b"{}", tools=tools)


def scored_pieces(tokenizer: Any, row: Any) -> list[str]:
    """Each run of scored tokens, decoded."""
    pieces: list[list[int]] = []
    before = False
    for token, scored in zip(row.input_ids.tolist(), row.response_mask.tolist(), strict=True):
        if scored and not before:
            pieces.append([])
        if scored:
            pieces[-1].append(token)
        before = scored
    return [tokenizer.decode(piece, skip_special_tokens=False, clean_up_tokenization_spaces=False) for piece in pieces]
