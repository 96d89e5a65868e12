"""A sample as other tools write it: Alpaca, OpenAI messages, ShareGPT. And which turns are learnt, where a format cannot say so of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from instruct_prune.encode.rendering import with_context
from instruct_prune.export.job import CannotExpressError, ExportJob
from instruct_prune.rows.row import Message, Row


def spoken(message: Message) -> str:
    """A turn's text with its thought before it, for formats that have no other place for one.

    LLaMA-Factory's reasoning templates look for these tags; Alpaca sets of reasoning models are written so.
    """
    thought = message.reasoning.strip()
    return f"<think>\n{thought}\n</think>\n\n{message.text}" if thought else message.text


def alpaca_row(sample: Row, *, system: bool = True, history: bool = True) -> dict[str, Any]:
    """instruction, input, output; with ``system`` and ``history`` also those keys, empty where the row has none.

    Raises:
        CannotExpressError: tools, plain text, or turns that do not alternate.
    """
    opening, turns = _opened(_turns(sample))
    _check_alternation(turns)
    if sample.tools or any(m.tool_calls or m.role == "tool" for m in turns):
        raise CannotExpressError("Alpaca rows have no place for tools")
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    question, answer = pairs[-1]
    row: dict[str, Any] = {
        "instruction": question.text,
        "input": question.context if question.context.strip() else "",
        "output": spoken(answer),
    }
    if system:
        row["system"] = opening
    elif opening:
        raise CannotExpressError("the row has a system message")
    if history:
        row["history"] = [[with_context(asked), spoken(given)] for asked, given in pairs[:-1]]
    elif pairs[:-1]:
        raise CannotExpressError("the row has several turns")
    return row


def messages_row(
    sample: Row, trained: set[int], *, weights: bool = False, tools: bool = False, pictures: bool = False
) -> dict[str, Any]:
    """OpenAI's ``messages``. Thoughts (``reasoning_content``) and keys of turns that nobody reads go along.

    Args:
        sample: the row.
        trained: positions of the turns that are trained on.
        weights: write ``weight`` 0 or 1 into every assistant turn.
        tools: write the key ``tools``, null where the row has none.
        pictures: the caller puts the pictures of turns beside their text.

    Raises:
        CannotExpressError: plain text, or pictures that nobody would see.
    """
    turns: list[dict[str, Any]] = []
    waiting: list[Mapping[str, Any]] = []  # calls without a result
    for i, message in enumerate(_turns(sample, pictures)):
        turn: dict[str, Any] = {"role": message.role, "content": with_context(message)}
        if message.reasoning.strip():
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            turn["tool_calls"] = [dict(call) for call in message.tool_calls]
            waiting = list(message.tool_calls)
        if message.role == "tool" and waiting:
            call = waiting.pop(next((n for n, call in enumerate(waiting) if call["id"] == message.call_id), 0))
            turn |= {"tool_call_id": call["id"], "name": call["function"]["name"]}
        turn = {**message.extra, **turn}
        if weights and message.role == "assistant":
            turn["weight"] = int(i in trained)
        turns.append(turn)
    row: dict[str, Any] = {"messages": turns}
    if tools:
        row["tools"] = [dict(tool) for tool in sample.tools] or None
    return row


SHAREGPT_TAGS = {"user": "human", "assistant": "gpt", "tool": "observation"}


def sharegpt_row(sample: Row, *, tools: bool = True) -> dict[str, Any]:
    """ShareGPT turns as LLaMA-Factory reads them: a question (human, observation), then an answer (gpt, function_call).

    Raises:
        CannotExpressError: plain text, or turns that do not alternate so (LLaMA-Factory would skip the row).
    """
    opening, turns = _opened(_turns(sample))
    _check_alternation(turns)
    conversation = []
    for message in turns:
        tag, value = SHAREGPT_TAGS[message.role], with_context(message)
        if message.reasoning.strip():
            value = spoken(message)
        if message.tool_calls:
            if value.strip() and not value.rstrip().endswith("</think>"):
                raise CannotExpressError(
                    "an assistant turn has both text and tool calls, a ShareGPT turn is one of them"
                )
            calls = [dict(call["function"]) for call in message.tool_calls]
            thought = value.rstrip() + "\n" if value.strip() else ""  # LLaMA-Factory takes it off before the JSON
            written = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
            tag, value = "function_call", thought + written
        conversation.append({"from": tag, "value": value})
    row: dict[str, Any] = {"conversations": conversation, "system": opening}
    if tools:
        row["tools"] = json.dumps([dict(tool) for tool in sample.tools], ensure_ascii=False) if sample.tools else ""
    return row


def text_row(sample: Row, bos: str = "", eos: str = "") -> dict[str, Any]:
    """Plain text, without the begin and end tokens that trainers add themselves.

    Raises:
        CannotExpressError: the row is a conversation.
    """
    if len(sample.messages) != 1 or sample.messages[0].role != "text":
        raise CannotExpressError("the row is a conversation among rows of plain text")
    text = sample.messages[0].text.removeprefix(bos)
    return {"text": text.rstrip().removesuffix(eos) if eos and text.rstrip().endswith(eos) else text}


def _turns(sample: Row, pictures: bool = False) -> Sequence[Message]:
    if not pictures and any(message.images for message in sample.messages):
        raise CannotExpressError("it shows pictures, and this format has no place for them")
    if any(message.role == "text" for message in sample.messages):
        raise CannotExpressError("the row is plain text without turns")
    return sample.messages


def _opened(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The system message ("" where there is none) and the turns after it."""
    if messages and messages[0].role == "system":
        return messages[0].text, messages[1:]
    return "", messages


def _check_alternation(turns: Sequence[Message]) -> None:
    for i, message in enumerate(turns):
        asks = message.role in ("user", "tool")
        if message.role == "system" or asks != (i % 2 == 0):
            raise CannotExpressError(f"its turns do not alternate: turn {i + 1} is {message.role!r}")
    if not turns or len(turns) % 2:
        raise CannotExpressError("its last turn is not the assistant's")


def check_masks(job: ExportJob, sample: Row) -> None:
    """Refuse a row whose untrained turns would be trained, unless all rows train their last turn only."""
    answers = {i for i, m in enumerate(sample.messages) if m.role == "assistant"}
    if job.survey.earlier_trained and answers - job.trained(sample):
        raise CannotExpressError("one of its assistant turns is not trained, and this format cannot say so")


def mask_notes(job: ExportJob) -> tuple[str, ...]:
    """What to tell the trainer where only the last turns were scored."""
    if job.survey.untrained and not job.survey.earlier_trained:
        return ("only the last turn of each row was scored: train with mask_history: true",)
    return ()
