"""What a chat template writes around the turns of the assistant, learnt by writing small conversations with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from instruct_prune.encode.rendering import RenderError
from instruct_prune.encode.takes import ASKS, CALL, CLOSE, OPEN, Takes, Turn, Write, answer, called_turn
from instruct_prune.errors import InputError

_TAG = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]")
_OPENS_THOUGHT = re.compile(r"<(?:seed:)?think|\[THINK|<\|channel|<\|START_THINKING|<thought|<reasoning")
_STEP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\s+|[^<\[\s]+|[<\[]")


@dataclass(frozen=True)
class Frame:
    """What a template writes around the turns of the assistant.

    Attributes:
        prompt: the generation prompt ("" where it has none).
        header: the part of it that stands before every turn; ``prompt`` may open a thought on top of that.
        plain: role of the turn before -> what stands between its text and a plain answer.
        ends: texts of end-of-turn tokens, whichever kind of turn they end.
        nexts: what stands between the end of a turn and the text of the next one, longest first.
    """

    prompt: str
    header: str
    plain: Mapping[str, str]
    ends: tuple[str, ...]
    nexts: tuple[str, ...]

    def start(self, gap: str, before: str, own_tag: bool) -> int | None:
        """Where in ``gap`` the model begins to write, or None where that cannot be told.

        Args:
            gap: what stands between what was said before and what this turn says first.
            before: role of the turn before.
            own_tag: the data open a thought themselves, so the prompt does not.
        """
        for opening in [self.header] if own_tag else [self.prompt, self.header]:
            place = gap.rfind(opening) if opening else -1
            if place >= 0:
                return place + len(opening)
        plain = self.plain.get(before)
        if plain is None:
            return None
        shared = plain if gap.startswith(plain) else _shared(gap, plain)
        whole = shared.rstrip() == plain.rstrip() or shared.endswith((">", "]"))
        return len(shared) if whole else None

    def end(self, gap: str, at_end: bool) -> int:
        """Where in ``gap``, which follows what a turn says last, the turn ends.

        Args:
            gap: what stands between that and what is said next, or the end of the text.
            at_end: nothing is said after the turn.
        """
        found = [(gap.find(end), -len(end)) for end in self.ends if end in gap]
        if found:
            place, length = min(found)
            return place - length
        for following in self.nexts:
            if gap.endswith(following):
                return len(gap[: -len(following)].rstrip())
        return len(gap.rstrip()) if at_end else 0


def learn_frame(write: Write, takes: Takes, tokens: Sequence[str]) -> Frame:
    """Learn how the assistant's turns begin and end.

    Args:
        write: renders a conversation.
        takes: what the template takes.
        tokens: texts of the tokenizer's added tokens.

    Raises:
        InputError: the template cannot write a question and an answer, or leaves the answer out.
    """
    plain_answer = answer(f"{OPEN}x{CLOSE}")
    asks = {"role": "user", "content": f"{OPEN}Hi{CLOSE}"}
    asked, prompted = write([ASKS]), write([ASKS], prompt=True)
    prompt = prompted[len(asked) :] if prompted.startswith(asked) else ""
    last = _gaps(write([asks, plain_answer]))
    if len(last) < 3:
        raise InputError("leaves out what the assistant says")
    plain = {"user": last[1]}
    called: Turn | None = None
    if takes.calls:
        called = called_turn("f", takes.arguments, takes.quiet, f"{OPEN}b{CLOSE}")
    result = {"role": "tool", "content": f"{OPEN}r{CLOSE}", "tool_call_id": CALL["id"], "name": "f"}
    after = _gaps_or_none(write, [asks, called or plain_answer, result, plain_answer]) if takes.results else None
    if after:
        plain["tool"] = after[-2]
    twice = _gaps_or_none(write, [asks, plain_answer, plain_answer])
    if twice:
        plain["assistant"] = twice[2]
    header = _header(prompt, [last[1], *((_gaps_or_none(write, [asks, plain_answer, asks]) or [])[1:2])])
    first = _gaps(write([asks]))[0]
    ends, nexts = _ends(write, asks, plain_answer, [asks, answer(f"{OPEN}y{CLOSE}")], prompt, first, tokens)
    if called is not None:
        followers = [result, asks] if takes.results else [asks]
        more, others = _ends(write, asks, called, followers, prompt, first, tokens)
        ends, nexts = ends | more, nexts | others
    unique = sorted(nexts, key=lambda text: (-len(text), text))
    return Frame(prompt, header, plain, tuple(sorted(ends)), tuple(unique))


def _ends(
    write: Write, asks: Turn, turn: Turn, followers: Sequence[Turn], prompt: str, first: str, tokens: Sequence[str]
) -> tuple[set[str], set[str]]:
    """End-of-turn tokens of one kind of turn, at the end and in the middle, and what may follow them."""
    last = _gaps(write([asks, turn]))[-1]
    followed = [gaps for f in followers if (gaps := _gaps_or_none(write, [asks, turn, f]))]
    middles = [gaps[-2] for gaps in followed]
    if not middles:
        end = _first_token(last, tokens)
        return ({end} if end else set()), set()
    nexts: set[str] = set()
    ends: set[str] = set()
    for middle in middles:
        shared = _shared(last, middle)
        closing = shared.rstrip()
        own = _last_token(closing, tokens) or ("" if "tool_calls" in turn else closing.strip())
        if own:  # one token ends the turn wherever it stands
            ends.add(own)
            nexts.add(middle[len(closing) :].lstrip())
            continue
        at_end = _first_token(last[len(shared) :], tokens)
        if at_end:
            ends.add(at_end)
        rest = middle[len(shared) :]
        inside = _before_header(rest, middles, shared, prompt, first, bool(at_end), tokens)
        if inside:
            ends.add(inside)
            rest = rest[rest.index(inside) + len(inside) :]
        nexts.add(rest.lstrip())
    return ends, nexts - {""}


def _before_header(
    rest: str, middles: Sequence[str], shared: str, prompt: str, first: str, ends_last: bool, tokens: Sequence[str]
) -> str:
    """The end token that stands before the header of the next turn, "" where there is none."""
    common = rest
    for other in middles:
        common = _shared(common, other[len(shared) :])
    if len(middles) > 1:  # what comes whoever speaks next, without the beginning of a header
        steps = _STEP.findall(common)
        while steps and prompt.startswith(steps[-1]) and steps[-1].strip():
            steps.pop()
        return _first_token("".join(steps), tokens)
    header = _shared(rest[::-1], first[::-1])[::-1]
    before = rest[: len(rest) - len(header)]
    if before.strip():
        return _first_token(before, tokens)
    token = _first_token(rest, tokens)
    return token if ends_last and not re.search(r"user|human|tool|observation|inst", token, re.IGNORECASE) else ""


def _header(prompt: str, gaps: Sequence[str]) -> str:
    """The part of the generation prompt that stands before plain answers, wherever they are."""
    if not prompt.strip():
        return ""
    steps = _STEP.findall(prompt)
    cuts = ["".join(steps[:n]) for n in range(len(steps), 0, -1)]
    header = prompt
    for gap in gaps:
        found = next((cut for cut in cuts if cut in gap and (cut == prompt or _is_header(cut, gap))), "")
        if len(found) < len(header):
            header = found
    opened = _OPENS_THOUGHT.search(header)
    return header[: opened.start()] if opened else header


def _is_header(cut: str, gap: str) -> bool:
    """Whether a beginning of the generation prompt is all of it but a thought that it opens."""
    rest = gap[gap.rfind(cut) + len(cut) :]
    return not _OPENS_THOUGHT.search(cut) and not _TAG.sub("", rest).strip()


def _first_token(text: str, tokens: Sequence[str]) -> str:
    text = text.lstrip()
    found = [token for token in tokens if text.startswith(token)]
    tag = _TAG.match(text)
    return max([*found, *([tag[0]] if tag else [])], key=len, default="")


def _last_token(text: str, tokens: Sequence[str]) -> str:
    found = [token for token in tokens if text.endswith(token)]
    tags = list(_TAG.finditer(text))
    if tags and tags[-1].end() == len(text):
        found.append(tags[-1][0])
    return max(found, key=len, default="")


def _shared(one: str, other: str) -> str:
    """What two texts begin with, without half of a tag."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    shared = one[:same]
    for opening, closing in (("<", ">"), ("[", "]")):
        begun = shared.rfind(opening)
        if begun >= 0 and closing not in shared[begun:] and _TAG.match(one, begun):
            shared = shared[:begun]
    return shared


def _gaps(text: str) -> list[str]:
    """What stands between the marked pieces of a text."""
    return re.split(f"{OPEN}.*?{CLOSE}", text, flags=re.DOTALL)


def _gaps_or_none(write: Write, messages: Sequence[Turn]) -> list[str] | None:
    try:
        gaps = _gaps(write(messages))
    except RenderError:
        return None
    marked = sum(json.dumps(message).count(OPEN) for message in messages)
    return gaps if len(gaps) > marked else None
