"""Chat templates: the tokenizer's own, or a Jinja file written like one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from instruct_prune.encode.rendering import Pieces, Rendered, RenderError, Span, with_context
from instruct_prune.errors import InputError
from instruct_prune.rows.row import Row

# Letters and digits only, so that no template's JSON or HTML escaping changes them; no data contain them.
_OPEN, _CLOSE = "Zq7mOPEN", "Zq7mCLOSE"

# Some templates write today's date; then a row would have another text, and another score, tomorrow.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(
        f" | replace('%{code}', '{value}')"
        for code, value in {"Y": "2024", "m": "07", "d": "26", "b": "Jul", "B": "July", "A": "Friday"}.items()
    )
    + " -}}{%- endmacro -%}"
)

_ASKS = {"role": "user", "content": "Hi"}
_CALL: dict[str, Any] = {"id": "c00010000", "type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}


class ChatTemplate:
    """The tokenizer's chat template, or a Jinja file written like one (``messages``, ``tools``, ``bos_token``, ...).

    Stock templates do not say which part of their text is the response, so every conversation is rendered twice: as
    it is, and with markers around what the trained turns say. Without the markers both must be the same text, and
    the markers tell where the turns are. A turn's span begins after the generation prompt (with a tool call: at the
    call) and ends with the end-of-turn token; both are learnt from the template itself.
    """

    writes_specials = True

    def __init__(self, tokenizer: Any, source: str, name: str) -> None:
        self._tokenizer = tokenizer
        self.name = name
        self._notes: dict[str, None] = {}
        if "strftime_now" in source:
            source = _FIXED_DATE + source
            self._say("the chat template writes today's date: it is fixed to 26 July 2024, for scores that last")
        self.text = source
        self._learn_turns(tokenizer)
        self._learn_roles()

    def _learn_turns(self, tokenizer: Any) -> None:
        """Learn the generation prompt and the end-of-turn token ("" where the template has none)."""
        answer = {"role": "assistant", "content": f"{_OPEN}x{_CLOSE}"}
        try:
            asked, prompted = (self._apply([[_ASKS]], (), prompt=prompt)[0] for prompt in (False, True))
            last, followed = (self._apply([[_ASKS, answer, *more]], ())[0] for more in ([], [_ASKS]))
        except RenderError as error:
            raise InputError(f"the template {self.name!r} cannot write one question and one answer: {error}.") from None
        if _OPEN not in last:
            raise InputError(f"the template {self.name!r} leaves out what the assistant says.")
        self._ask = prompted[len(asked) :] if prompted.startswith(asked) else ""
        self._stop = _end_of_turn(last.partition(_CLOSE)[2], followed.partition(_CLOSE)[2], tokenizer)

    def _learn_roles(self) -> None:
        """Learn which messages the template takes, by writing some."""
        answer = {"role": "assistant", "content": "x"}
        # With an answer at the end: Mistral's template writes the system message only when the user speaks last.
        self._takes_system = self._writes({"role": "system", "content": _OPEN}, _ASKS, answer)
        self._takes_tools = self._writes(_ASKS, answer, tools=[_named({"type": "function", "function": {}}, _OPEN)])
        calls = {"role": "assistant", "content": "", "tool_calls": [_named(_CALL, _OPEN)]}
        self._takes_calls = self._writes(_ASKS, calls)
        quiet = {**calls, "tool_calls": [_CALL]}
        self._writes_text_of_calls = self._takes_calls and self._writes(_ASKS, {**quiet, "content": _OPEN})
        result = {"role": "tool", "content": _OPEN, "tool_call_id": _CALL["id"], "name": "f"}
        self._takes_results = self._writes(_ASKS, quiet if self._takes_calls else answer, result)
        self._before_call = ""  # what the model writes before the name of the function that it calls
        if self._takes_calls:
            prompted, called = self._apply([[_ASKS]], (), prompt=True)[0], self._apply([[_ASKS, calls]], ())[0]
            if called.startswith(prompted):
                self._before_call = called[len(prompted) : called.index(_OPEN)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to make rows fit this template, so far."""
        return tuple(self._notes)

    def _say(self, note: str) -> None:
        self._notes[note] = None

    def _writes(self, *messages: dict[str, Any], tools: Sequence[Mapping[str, Any]] = ()) -> bool:
        """Whether the template accepts these and writes the marker that is in one of them."""
        try:
            return _OPEN in self._apply([list(messages)], tools)[0]
        except RenderError:
            return False

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
        marked = list(messages)
        for i in turns:
            turn = messages[positions[i]]
            by_call = "tool_calls" in turn and not (turn["content"].strip() and self._writes_text_of_calls)
            marked[positions[i]] = _marked_call(turn) if by_call else _marked(turn)
        if sample.tools and not self._takes_tools:
            self._say("the chat template takes no tool definitions: they are left out")
        full, text = self._apply([messages, marked], sample.tools)
        pieces, said = Pieces(), []
        for n, part in enumerate(text.split(_OPEN)):
            inside, found, after = part.partition(_CLOSE)
            if bool(n) != bool(found):
                raise RenderError("the chat template does not write every response as it is")
            if n:
                said.append((pieces.length, pieces.length + len(inside)))
            pieces.add(inside)
            pieces.add(after)
        if len(said) != len(turns) or pieces.rendered().text != full:
            raise RenderError("the chat template changes the responses, so they cannot be found in its text")
        spans: list[Span] = []
        for n, i in enumerate(turns):
            low = spans[-1].end if spans else 0
            high = said[n + 1][0] if n + 1 < len(said) else len(full)
            spans.append(self._span(full, said[n], low, high, bool(messages[positions[i]].get("tool_calls"))))
        return Rendered(full, tuple(spans))

    def _span(self, full: str, said: tuple[int, int], low: int, high: int, is_call: bool) -> Span:
        """Widen what a turn says to all that the model has to write, within [low, high)."""
        start, end = said
        asked = full.rfind(self._ask, low, start) if self._ask else -1
        if asked >= 0 and not (self._stop and self._stop in full[asked + len(self._ask) : start]):
            start = asked + len(self._ask)
        elif is_call and full.endswith(self._before_call, low, start):
            start -= len(self._before_call)
        stop = full.find(self._stop, end, high) if self._stop else -1
        # Between what was said and its end-of-turn token there is at most white space, or the rest of a tool call.
        between = full[end:stop] if stop >= 0 else ""
        if stop >= 0 and (not between.strip() or (is_call and not (self._ask and self._ask in between))):
            end = stop + len(self._stop)
        return Span(start, end, full[said[0] : said[1]])

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
            turn: dict[str, Any] = {"role": message.role, "content": with_context(message)}
            if message.role == "system" and not self._takes_system:
                system += turn["content"] + "\n\n"
                self._say("the chat template takes no system message: it is put before the next user turn")
                continue
            if message.role == "user" and system:
                turn["content"], system = system + turn["content"], ""
            if message.tool_calls:
                self._add_calls(turn, message.tool_calls)
                calls = list(message.tool_calls)
            if message.role == "tool":
                self._add_call_id(turn, calls)
            messages.append(turn)
        if system:
            raise RenderError("the chat template takes no system message, and no user turn follows to put it before")
        return messages, positions

    def _add_calls(self, turn: dict[str, Any], calls: Sequence[Mapping[str, Any]]) -> None:
        if self._takes_calls:
            turn["tool_calls"] = [dict(call) for call in calls]
            return
        self._say("the chat template takes no tool calls: they are written as JSON in the assistant's turn")
        written = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
        turn["content"] = "\n".join(filter(None, [turn["content"], *written]))

    def _add_call_id(self, turn: dict[str, Any], calls: list[Mapping[str, Any]]) -> None:
        """Say which call a result answers: the oldest one that has none."""
        if not self._takes_results:
            turn["role"] = "user"
            self._say("the chat template takes no tool results: they are written as user turns")
        elif calls:
            call = calls.pop(0)
            turn |= {"tool_call_id": call["id"], "name": call["function"]["name"]}


def _marked(turn: dict[str, Any]) -> dict[str, Any]:
    """Put the markers around what a turn says.

    Blanks stay outside of them, because templates trim; so does what a model thinks aloud, because templates drop it
    from earlier turns.
    """
    content: str = turn["content"]
    thought = content.rfind("</think>")
    begin = thought + len("</think>") if thought >= 0 else 0
    core = content[begin:].strip()
    begin = content.index(core, begin) if core else begin
    return {**turn, "content": content[:begin] + _OPEN + core + _CLOSE + content[begin + len(core) :]}


def _marked_call(turn: dict[str, Any]) -> dict[str, Any]:
    """Put the markers around the name of the first function that a turn calls."""
    first, *others = turn["tool_calls"]
    return {**turn, "tool_calls": [_named(first, _OPEN + first["function"]["name"] + _CLOSE), *others]}


def _named(call: dict[str, Any], name: str) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "name": name}}


def _end_of_turn(last: str, followed: str, tokenizer: Any) -> str:
    """The text of the end-of-turn token, from what follows an answer at the end and in the middle."""
    tail = last.lstrip()
    specials: list[str] = [token for token in tokenizer.get_added_vocab() if token and tail.startswith(token)]
    if specials:
        return max(specials, key=len)
    same = 0
    while same < min(len(last), len(followed)) and last[same] == followed[same]:
        same += 1
    words: list[str] = last[:same].split()
    return words[0] if words else ""
