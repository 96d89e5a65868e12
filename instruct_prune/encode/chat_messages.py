"""A row's messages as a chat template takes them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from instruct_prune.encode.rendering import RenderError, with_context
from instruct_prune.encode.takes import Takes
from instruct_prune.rows.calls import written_calls
from instruct_prune.rows.row import Message, Row


@dataclass
class ChatMessages:
    """Puts messages into the keys, the roles and the form of calls that one chat template takes.

    Attributes:
        source: the template.
        takes: which messages it takes.
        bos: the BOS that it writes, "" where it writes none.
        ends: end-of-turn tokens that it writes.
        counts: (note, what is counted) -> how often it was true.
    """

    source: str
    takes: Takes
    bos: str
    ends: tuple[str, ...]
    counts: Counter[tuple[str, str]]
    _read: dict[str, bool] = field(default_factory=dict)

    def say(self, note: str, unit: str = "rows") -> None:
        self.counts[note, unit] += 1

    def reads(self, key: str) -> bool:
        """Whether the template looks at this key of a turn."""
        if key not in self._read:
            name = rf"\b(?:message|messages\[[^\]]*\]|msg|m|turn)(?:\.get\(['\"]|\.|\[['\"]){re.escape(key)}\b"
            self._read[key] = re.search(name, self.source) is not None
        return self._read[key]

    def of(self, sample: Row) -> tuple[list[dict[str, Any]], list[int]]:
        """The turns as the template takes them, and where each message of the sample went."""
        messages: list[dict[str, Any]] = []
        positions: list[int] = []
        system = ""
        calls: list[Mapping[str, Any]] = []  # those without a result yet
        for message in sample.messages:
            if message.role == "text":
                raise RenderError("the row is plain text, not a conversation; use --template plain")
            positions.append(len(messages))
            turn = self._turn(message, len(messages))
            if message.role == "system" and not self.takes.system:
                system += turn["content"] + "\n\n"
                self.say("the chat template takes no system message: it is put before the next user turn")
                continue
            if message.role == "user" and system:
                turn["content"], system = system + turn["content"], ""
            if message.role == "assistant":
                calls = self._add_calls(turn, message) or calls
            if message.role == "tool":
                self._add_call_id(turn, calls, message.call_id)
            messages.append(turn)
        if system:
            raise RenderError("the chat template takes no system message, and no user turn follows to put it before")
        return messages, positions

    def _turn(self, message: Message, position: int) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": message.role, "content": with_context(message)}
        for key, value in message.extra.items():
            if self.reads(key):
                turn[key] = value
        if not position and self.bos and turn["content"].startswith(self.bos):
            turn["content"] = turn["content"].removeprefix(self.bos)
            self.say("rows begin with the BOS that the chat template writes: it is written once")
        if message.role != "assistant":
            return turn
        if self.ends and turn["content"].rstrip().endswith(self.ends):
            while turn["content"].rstrip().endswith(self.ends):
                end = next(end for end in self.ends if turn["content"].rstrip().endswith(end))
                turn["content"] = turn["content"].rstrip().removesuffix(end)
            self.say("turns bring the end-of-turn token that the chat template writes: it is written once", "turns")
        if message.reasoning.strip():
            self._add_reasoning(turn, message.reasoning)
        return turn

    def _add_reasoning(self, turn: dict[str, Any], reasoning: str) -> None:
        if self.takes.reasoning:
            turn[self.takes.reasoning] = reasoning
        elif self.takes.inline:
            turn["content"] = f"<think>\n{reasoning.strip()}\n</think>\n\n{turn['content']}"
        else:
            self.say("the chat template has no place for thoughts (reasoning_content): they are left out", "turns")

    def _add_calls(self, turn: dict[str, Any], message: Message) -> list[Mapping[str, Any]]:
        """Hand a turn's calls to the template in the form that it takes; return them."""
        calls: Sequence[Mapping[str, Any]] = message.tool_calls
        if not calls and self.takes.calls:
            written = written_calls(turn["content"], 0)
            if written is not None and written.marker not in self.source:
                self.say(f"calls written as text ({written.marker}) are given to the chat template as calls", "turns")
                turn["content"], calls = written.before, written.calls
        if not calls:
            return []
        if not self.takes.calls:
            self.say("the chat template takes no tool calls: they are written as JSON in the assistant's turn")
            texts = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
            turn["content"] = "\n".join(filter(None, [turn["content"], *texts]))
            return list(calls)
        turn["tool_calls"] = [self.as_taken(call) for call in calls]
        turn["content"] = turn["content"] or self.takes.quiet
        return list(calls)

    def as_taken(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """A call with its arguments as the template takes them, object or JSON text."""
        arguments = call["function"]["arguments"]
        if self.takes.arguments == "text" and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": arguments}}

    def objects(self, calls: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Calls with their arguments as objects again."""
        if self.takes.arguments == "object":
            return list(calls)
        found: list[Mapping[str, Any]] = []
        for call in calls:
            arguments = call["function"]["arguments"]
            with suppress(ValueError):  # arguments that are no JSON stay the text that they are
                arguments = json.loads(arguments)
            found.append({**call, "function": {**call["function"], "arguments": arguments}})
        return found

    def _add_call_id(self, turn: dict[str, Any], calls: list[Mapping[str, Any]], wanted: str) -> None:
        """Say which call a result answers: the one that the data name, else the oldest one that has no result."""
        if not self.takes.results:
            turn["role"] = "user"
            self.say("the chat template takes no tool results: they are written as user turns")
        elif calls:
            place = next((i for i, call in enumerate(calls) if call["id"] == wanted), 0)
            call = calls.pop(place)
            turn |= {"tool_call_id": call["id"], "name": call["function"]["name"]}
