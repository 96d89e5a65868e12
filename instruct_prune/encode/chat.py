"""Chat templates: the tokenizer's own, or a Jinja file written like one."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from instruct_prune.encode.habits import Takes, learn_frame
from instruct_prune.encode.marks import Found, Marker, find, free_stem, opens_thought, plain_values, written_as
from instruct_prune.encode.rendering import Rendered, RenderError, Span, counted, with_context
from instruct_prune.errors import InputError
from instruct_prune.rows.calls import written_calls
from instruct_prune.rows.row import Message, Row

# Some templates write today's date; then a row would have another text, and another score, tomorrow.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(
        f" | replace('%{code}', '{value}')"
        for code, value in {"Y": "2024", "m": "07", "d": "26", "b": "Jul", "B": "July", "A": "Friday"}.items()
    )
    + " -}}{%- endmacro -%}"
)
_LOST = {
    "thought": "the chat template leaves out thoughts: they are not scored",
    "text": "the chat template leaves out what turns say beside a call or a thought: it is not scored",
    "name": "the chat template leaves out calls: they are not scored",
    "argument": "the chat template leaves out arguments of calls, or writes them in another form",
}


class ChatTemplate:
    """The tokenizer's chat template, or a Jinja file written like one (``messages``, ``tools``, ``bos_token``, ...).

    Stock templates do not say which part of their text is the response, so every conversation is rendered twice: as
    it is, and with marks around all that its turns say (thoughts, text, names and arguments of calls). Without the
    marks both must be the same text, and the marks tell where each turn is. A turn's span goes from the end of what
    the template writes to prompt it to the token that ends it; how both look, `Frame` has learnt. What a turn says
    and the template does not write is counted in ``notes``.
    """

    writes_specials = True

    def __init__(self, tokenizer: Any, source: str, name: str) -> None:
        self._tokenizer = tokenizer
        self.name = name
        self._counts: Counter[tuple[str, str]] = Counter()
        if "strftime_now" in source:
            source = _FIXED_DATE + source
            note = "the chat template writes today's date: it is fixed to 26 July 2024, for scores that last"
            self._counts[note, ""] = 1
        self.text = source
        self._read: dict[str, bool] = {}
        tokens = [token for token in tokenizer.get_added_vocab() if token]
        try:
            self._takes = Takes.of(self._write, source)
            self._frame = learn_frame(self._write, self._takes, tokens)
        except RenderError as error:
            raise InputError(f"the template {self.name!r} cannot write one question and one answer: {error}.") from None
        except InputError as error:
            raise InputError(f"the template {self.name!r} {error}.") from None
        specials = {*tokenizer.all_special_tokens} & {*self._frame.ends}
        self._own_ends = tuple(specials | ({tokenizer.eos_token} if specials and tokenizer.eos_token else set()))
        self._bos = tokenizer.bos_token or "" if "bos_token" in source else ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to make rows fit this template, so far."""
        return counted(self._counts)

    def reads(self, key: str) -> bool:
        """Whether the template looks at this key of a turn."""
        if key not in self._read:
            name = rf"\b(?:message|messages\[[^\]]*\]|msg|m|turn)(?:\.get\(['\"]|\.|\[['\"]){re.escape(key)}\b"
            self._read[key] = re.search(name, self.text) is not None
        return self._read[key]

    def _say(self, note: str, unit: str = "rows") -> None:
        self._counts[note, unit] += 1

    def _write(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = (), prompt: bool = False
    ) -> str:
        return self._apply([messages], tools, prompt)[0]

    def _apply(
        self, conversations: list[list[dict[str, Any]]], tools: Sequence[Mapping[str, Any]], prompt: bool = False
    ) -> list[str]:
        import jinja2

        try:
            texts: list[str] = self._tokenizer.apply_chat_template(
                conversations,
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise RenderError(f"the chat template refuses this conversation: {error}") from None
        return texts

    def render(self, sample: Row, turns: Sequence[int]) -> Rendered:
        messages, positions = self._messages(sample)
        wanted = [positions[i] for i in turns]
        full, marker, found = self._marked(messages, wanted, sample.tools)
        if sample.tools and not self._takes.tools and self._write(messages) == full:
            self._say("the chat template takes no tool definitions: they are left out")
        numbers: dict[int, list[int]] = {turn: [] for turn in wanted}
        for number, piece in enumerate(marker.pieces[1:], 1):
            numbers[piece.turn].append(number)
        places = sorted([*found.others, *found.places.values()])
        spans: list[Span] = []
        for turn in wanted:
            there = sorted(found.places[number] for number in numbers[turn] if number in found.places)
            if not there:
                raise RenderError(f"the chat template leaves out all that turn {turn + 1} says")
            own = []
            for group in _groups(there, found.others):
                span = self._span(full, group, places, messages, turn)
                if spans and span.start < spans[-1].end:
                    raise RenderError("the chat template writes the turns in another order")
                spans.append(span)
                own.append(full[span.start : span.end])
            self._check(messages[turn], "".join(own), numbers[turn], marker, found)
        return Rendered(full, tuple(spans))

    def _span(
        self,
        full: str,
        group: Sequence[tuple[int, int]],
        places: Sequence[tuple[int, int]],
        messages: list[dict[str, Any]],
        turn: int,
    ) -> Span:
        """Widen pieces of a turn to all that the model has to write, between what is said before and after them."""
        first, last = group[0][0], max(end for _, end in group)
        low = max((end for _, end in places[: bisect_left(places, group[0])]), default=0)
        after = bisect_left(places, (last, last))
        high = places[after][0] if after < len(places) else len(full)
        start = low + self._start(full[low:first], messages, turn)
        end = last + self._frame.end(full[last:high], at_end=high == len(full) and turn == len(messages) - 1)
        return Span(start, end, tuple(full[a:b] for a, b in group))

    def _marked(
        self, messages: list[dict[str, Any]], wanted: Sequence[int], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[str, Marker, Found]:
        """The text as it is, and where in it the pieces of the turns are.

        A template that looks into what is said (at the tags that a result begins with, the order of arguments)
        writes another text with marks in it; then fewer are set.
        """
        stem: str | None = "Zq7m"
        for others, arguments in ((True, True), (False, True), (True, False), (False, False)):
            marker = Marker(stem or "", arguments)
            full, marked = self._apply([messages, self._with_marks(messages, wanted, marker, others)], tools)
            if marker.stem in full:
                stem = free_stem(full)
                if stem is None:
                    raise RenderError("the row holds the marks that turns are found by")
                marker = Marker(stem, arguments)
                full, marked = self._apply([messages, self._with_marks(messages, wanted, marker, others)], tools)
            found = find(marked, marker.stem)
            if found.text == full:
                return full, marker, found
        raise RenderError("the chat template changes the responses, so they cannot be found in its text")

    def _with_marks(
        self, messages: list[dict[str, Any]], wanted: Sequence[int], marker: Marker, others: bool
    ) -> list[dict[str, Any]]:
        marked: list[dict[str, Any]] = []
        scored = set(wanted)
        for i, turn in enumerate(messages):
            content = turn["content"] or ""
            if i not in scored:
                marked.append({**turn, "content": marker.other(content)} if others and content else turn)
                continue
            new = dict(turn)
            key = self._takes.reasoning
            if key and turn.get(key):
                new[key] = marker.piece(i, "thought", turn[key])
            if content:
                new["content"] = marker.spoken(i, content)
            if "tool_calls" in turn:
                new["tool_calls"] = [self._as_taken(marker.call(i, call)) for call in self._objects(turn["tool_calls"])]
            marked.append(new)
        return marked

    def _start(self, gap: str, messages: list[dict[str, Any]], turn: int) -> int:
        """Where in the text before its first piece a turn begins."""
        content = messages[turn]["content"] or ""
        own_tag = opens_thought(content)
        found = self._frame.start(gap, messages[turn - 1]["role"] if turn else "", own_tag)
        if found is not None:
            return found
        blanks = content[: len(content) - len(content.lstrip())]
        return len(gap) - len(blanks) if blanks and gap.endswith(blanks) else len(gap)

    def _check(
        self, turn: Mapping[str, Any], written: str, numbers: Sequence[int], marker: Marker, found: Found
    ) -> None:
        """Compare what the message says with what is in its span, and count what is missing.

        Raises:
            RenderError: thought, text or name stand there in other words.
        """
        lost: set[str] = set()
        for number in numbers:
            piece = marker.pieces[number]
            if number not in found.places:
                lost.add(piece.kind)
                continue
            start, end = found.places[number]
            if not written_as(piece.text, found.text[start:end]):
                if piece.kind != "argument":
                    raise RenderError("the chat template changes the responses, so they cannot be found in its text")
                lost.add("argument")
        if "name" not in lost:
            for call in self._objects(turn.get("tool_calls", ())):
                values = plain_values(call["function"]["arguments"], texts=not marker.arguments)
                if any(value.casefold() not in written.casefold() for value in values):
                    lost.add("argument")
        if "name" in lost:
            lost.discard("argument")
        for kind in lost:
            self._say(_LOST[kind], "turns")

    def _messages(self, sample: Row) -> tuple[list[dict[str, Any]], list[int]]:
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
            if message.role == "system" and not self._takes.system:
                system += turn["content"] + "\n\n"
                self._say("the chat template takes no system message: it is put before the next user turn")
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
        if not position and self._bos and turn["content"].startswith(self._bos):
            turn["content"] = turn["content"].removeprefix(self._bos)
            self._say("rows begin with the BOS that the chat template writes: it is written once")
        if message.role != "assistant":
            return turn
        if self._own_ends and turn["content"].rstrip().endswith(self._own_ends):
            while turn["content"].rstrip().endswith(self._own_ends):
                end = next(end for end in self._own_ends if turn["content"].rstrip().endswith(end))
                turn["content"] = turn["content"].rstrip().removesuffix(end)
            self._say("turns bring the end-of-turn token that the chat template writes: it is written once", "turns")
        if message.reasoning.strip():
            self._add_reasoning(turn, message.reasoning)
        return turn

    def _add_reasoning(self, turn: dict[str, Any], reasoning: str) -> None:
        if self._takes.reasoning:
            turn[self._takes.reasoning] = reasoning
        elif self._takes.inline:
            turn["content"] = f"<think>\n{reasoning.strip()}\n</think>\n\n{turn['content']}"
        else:
            self._say("the chat template has no place for thoughts (reasoning_content): they are left out", "turns")

    def _add_calls(self, turn: dict[str, Any], message: Message) -> list[Mapping[str, Any]]:
        """Hand a turn's calls to the template in the form that it takes; return them."""
        calls: Sequence[Mapping[str, Any]] = message.tool_calls
        if not calls and self._takes.calls:
            written = written_calls(turn["content"], 0)
            if written is not None and written.marker not in self.text:
                self._say(f"calls written as text ({written.marker}) are given to the chat template as calls", "turns")
                turn["content"], calls = written.before, written.calls
        if not calls:
            return []
        if not self._takes.calls:
            self._say("the chat template takes no tool calls: they are written as JSON in the assistant's turn")
            texts = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
            turn["content"] = "\n".join(filter(None, [turn["content"], *texts]))
            return list(calls)
        turn["tool_calls"] = [self._as_taken(call) for call in calls]
        turn["content"] = turn["content"] or self._takes.quiet
        return list(calls)

    def _as_taken(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """A call with its arguments as the template takes them, object or JSON text."""
        arguments = call["function"]["arguments"]
        if self._takes.arguments == "text" and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": arguments}}

    def _objects(self, calls: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Calls with their arguments as objects again."""
        if self._takes.arguments == "object":
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
        if not self._takes.results:
            turn["role"] = "user"
            self._say("the chat template takes no tool results: they are written as user turns")
        elif calls:
            place = next((i for i, call in enumerate(calls) if call["id"] == wanted), 0)
            call = calls.pop(place)
            turn |= {"tool_call_id": call["id"], "name": call["function"]["name"]}


def _groups(pieces: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Pieces of one turn, apart where others speak between them (Gemma 4 writes a result inside the turn that called)."""
    groups = [[pieces[0]]]
    for before, piece in pairwise(pieces):
        place = bisect_left(others, before)
        if place < len(others) and others[place] < piece:
            groups.append([])
        groups[-1].append(piece)
    return groups
