"""Chat templates: the tokenizer's own, or a Jinja file written like one."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from instruct_prune.encode.chat_messages import ChatMessages
from instruct_prune.encode.frame import learn_frame
from instruct_prune.encode.marks import Found, Marker, find, free_stem, opens_thought, plain_values, written_as
from instruct_prune.encode.rendering import Counts, Rendered, RenderError, Span, Template
from instruct_prune.encode.takes import CLOSE, OPEN, Takes, answer
from instruct_prune.errors import InputError
from instruct_prune.rows.row import Row

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


class ChatTemplate(Template):
    """The tokenizer's chat template, or a Jinja file written like one (``messages``, ``tools``, ``bos_token``, ...).

    Stock templates do not say which part of their text is the response, so every conversation is rendered twice: as
    it is, and with marks around all that its turns say (thoughts, text, names and arguments of calls). Without the
    marks both must be the same text, and the marks tell where each turn is. A turn's span goes from the end of what
    the template writes to prompt it to the token that ends it; how both look, `Frame` has learnt. What a turn says
    and the template does not write is counted in ``notes``.

    Args:
        tokenizer: of transformers.
        source: the template.
        name: what it is called.
        mark: what stands for a picture in the text of a turn, and in what the template writes; "" where no row shows any.
            Templates that take turns as lists of parts are given such lists.
    """

    writes_specials = True

    def __init__(self, tokenizer: Any, source: str, name: str, mark: str = "") -> None:
        self._tokenizer = tokenizer
        self.name = name
        self._counts: Counter[tuple[str, str]] = Counter()
        if "strftime_now" in source:
            source = _FIXED_DATE + source
            note = "the chat template writes today's date: it is fixed to 26 July 2024, for scores that last"
            self._counts[note, ""] = 1
        self.text = source
        self._mark, self._in_parts = mark, False
        self._in_parts = bool(mark) and self._takes_parts()
        tokens = [token for token in tokenizer.get_added_vocab() if token]
        try:
            self._takes = Takes.of(self._write, source)
            self._frame = learn_frame(self._write, self._takes, tokens)
        except RenderError as error:
            raise InputError(f"the template {self.name!r} cannot write one question and one answer: {error}.") from None
        except InputError as error:
            raise InputError(f"the template {self.name!r} {error}.") from None
        specials = {*tokenizer.all_special_tokens} & {*self._frame.ends}
        ends = specials | ({tokenizer.eos_token} if specials and tokenizer.eos_token else set())
        bos = tokenizer.bos_token or "" if "bos_token" in source else ""
        self._messages = ChatMessages(source, self._takes, bos, tuple(sorted(ends)), self._counts)

    @property
    def counts(self) -> Counts:
        return (self._counts,)

    def reads(self, key: str) -> bool:
        """Whether the template looks at this key of a turn."""
        return self._messages.reads(key)

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
                [[self._turn(turn) for turn in turns] for turns in conversations] if self._in_parts else conversations,
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            RecursionError,
            ArithmeticError,
            MemoryError,
        ) as error:
            raise RenderError(
                f"the chat template refuses this conversation: {str(error).rstrip('.') or type(error).__name__}"
            ) from None
        return texts

    def _takes_parts(self) -> bool:
        """Whether the template writes the text and the picture of a list of parts."""
        self._in_parts = True
        try:
            written = self._write([{"role": "user", "content": f"{self._mark}{OPEN}"}, answer(CLOSE)])
        except RenderError:
            return False
        return all(text in written for text in (self._mark, OPEN, CLOSE))

    def _turn(self, turn: dict[str, Any]) -> dict[str, Any]:
        """A turn with its content as parts: text, and pictures where their marks stand."""
        if not isinstance(turn["content"], str):
            return turn
        parts: list[dict[str, str]] = []
        for i, text in enumerate(turn["content"].split(self._mark)):
            parts += [*([{"type": "image"}] if i else []), *([{"type": "text", "text": text}] if text else [])]
        return {**turn, "content": parts or [{"type": "text", "text": ""}]}

    def render(self, sample: Row, turns: Sequence[int]) -> Rendered:
        messages, positions = self._messages.of(sample)
        wanted = [positions[i] for i in turns]
        full, marker, found = self._marked(messages, wanted, sample.tools)
        if sample.tools and not self._takes.tools and self._write(messages) == full:
            self._messages.say("the chat template takes no tool definitions: they are left out")
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
                new["tool_calls"] = [
                    self._messages.as_taken(marker.call(i, call)) for call in self._messages.objects(turn["tool_calls"])
                ]
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
            for call in self._messages.objects(turn.get("tool_calls", ())):
                values = plain_values(call["function"]["arguments"], texts=not marker.arguments)
                if any(value.casefold() not in written.casefold() for value in values):
                    lost.add("argument")
        if "name" in lost:
            lost.discard("argument")
        for kind in lost:
            self._messages.say(_LOST[kind], "turns")


def _groups(pieces: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Pieces of one turn, apart where others speak between them (Gemma 4 writes a result inside the turn that called)."""
    groups = [[pieces[0]]]
    for before, piece in pairwise(pieces):
        place = bisect_left(others, before)
        if place < len(others) and others[place] < piece:
            groups.append([])
        groups[-1].append(piece)
    return groups
