"""Row formats: which fields say what, and how a row becomes messages. Pure functions of one row.

The table is FORMATS; sources: LLaMA-Factory, axolotl, TRL and open-instruct documentation of their data formats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion
from instruct_prune.rows.reader import RowError, named_type
from instruct_prune.rows.row import Message
from instruct_prune.rows.turns import Tools, messages_of, tools_of, transcript

DETECTION_ROWS = 100


@dataclass(frozen=True, slots=True)
class Fields:
    """A row seen through the column mapping: ``fields["output"]`` may be the file's column "a"."""

    row: Mapping[str, Any]
    columns: Mapping[str, str]

    def get(self, name: str) -> Any:
        return self.row.get(self.columns.get(name, name))

    def present(self, *names: str) -> str | None:
        """The first of these names that the row has a value for."""
        for name in names:
            if self.row.get(self.columns.get(name, name)) is not None:
                return name
        return None

    def text(self, *names: str, required: bool = True) -> str:
        """The text of the first of these fields that is there.

        Raises:
            RowError: none is there and one is required, or it is no text.
        """
        name = self.present(*names)
        if name is None:
            if not required:
                return ""
            column = self.columns.get(names[0], names[0])
            if any(self.columns.get(n, n) in self.row for n in names):
                raise RowError(f"the field {column!r} is null", column)
            raise RowError(f"there is no field {' or '.join(repr(self.columns.get(n, n)) for n in names)}", column)
        value = self.get(name)
        if not isinstance(value, str):
            column = self.columns.get(name, name)
            raise RowError(f"the field {column!r} must be text, this is {named_type(value)}", column)
        return value


Parsed = tuple[list[Message], Tools]


@dataclass(frozen=True)
class Format:
    """One way to write a sample.

    Attributes:
        name: as given to ``--format``.
        needs: groups of names; a row has the format if it has a value for one name of every group.
        takes: other fields that are part of the conversation.
        parse: a row's fields -> messages and tools; raises RowError.
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    takes: tuple[str, ...]
    parse: Callable[[Fields], Parsed]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for group in self.needs for name in group) + self.takes

    def fits(self, fields: Fields) -> bool:
        return all(fields.present(*group) for group in self.needs)


_WRAPPED = re.compile(
    r"\s*Below is an instruction that describes a task[^\n]*\n+### Instruction:\n(.*?)"
    r"(?:\n\n### Input:\n(.*?))?\n+### Response:\s*",
    re.DOTALL,
)


def unwrapped(prompt: str, field: str) -> tuple[str, str]:
    """Split a prompt that already carries Stanford Alpaca's text into instruction and input; else (prompt, "").

    Raises:
        RowError: it begins like one and cannot be taken apart (it must never be wrapped twice).
    """
    if "Below is an instruction that describes a task" not in prompt[:64] or "### Instruction:" not in prompt:
        return prompt, ""
    found = _WRAPPED.fullmatch(prompt)
    if found is None:
        raise RowError("the text begins like an Alpaca prompt but is not one: it cannot be taken apart", field)
    return found[1], found[2] or ""


def _opening(fields: Fields, *names: str) -> list[Message]:
    system = fields.text(*names, required=False)
    return [Message("system", system)] if system.strip() else []


def _user(fields: Fields, names: Sequence[str], context: str) -> Message:
    instruction, inside = unwrapped(fields.text(*names), names[0])
    return Message("user", instruction, context=context or inside)


def _single(instruction: Sequence[str], context: Sequence[str], response: Sequence[str]) -> Callable[[Fields], Parsed]:
    """One question, one answer, under these names."""

    def parse(fields: Fields) -> Parsed:
        said = _opening(fields, "system", "system_prompt") + _history(fields)
        about = fields.text(*context, required=False) if context else ""
        said.append(_user(fields, instruction, about))
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


def _conversation(*names: str) -> Callable[[Fields], Parsed]:
    def parse(fields: Fields) -> Parsed:
        name = fields.present(*names)
        if name is None:
            fields.text(*names)  # raises, saying which
        assert name is not None
        said = messages_of(fields.get(name), name)
        if not any(message.role == "system" for message in said):
            said = _opening(fields, "system", "system_prompt") + said
        return _checked(said, name), _tools(fields)

    return parse


def _tools(fields: Fields) -> Tools:
    """``tools``, or ``functions`` as OpenAI's first function calls had them."""
    return tools_of(fields.get("tools"), "tools") or tools_of(fields.get("functions"), "functions")


def _checked(said: list[Message], field: str) -> list[Message]:
    if not any(message.role == "assistant" for message in said):
        raise RowError("the conversation has no assistant turn", field)
    return said


def _prompt(fields: Fields) -> list[Message]:
    """What stands before a completion: a list of turns, or text in one field or in Alpaca's."""
    name = fields.present("prompt", "conversations", "question", "instruction")
    if name is None:
        return []
    if not isinstance(fields.get(name), str):
        said = [replace(message, trained=False) for message in messages_of(fields.get(name), name)]
        return said if said and said[0].role == "system" else _opening(fields, "system", "system_prompt") + said
    return [*_opening(fields, "system", "system_prompt"), _user(fields, [name], fields.text("input", required=False))]


def _prompt_completion(fields: Fields) -> Parsed:
    said = _prompt(fields)
    if not said:
        fields.text("prompt")  # raises, saying why
    completion = fields.get("completion")
    if completion is None or isinstance(completion, str):
        said.append(Message("assistant", fields.text("completion"), trained=True))
    else:
        said += messages_of(completion, "completion")
    return _checked(said, "completion"), _tools(fields)


def _preference(fields: Fields) -> Parsed:
    prompt, chosen = _prompt(fields), fields.get("chosen")
    if chosen is None:
        fields.text("chosen")  # raises
    if isinstance(chosen, str):
        told = transcript(chosen) if not prompt else None
        if told is None and not prompt:
            raise RowError("there is no field 'prompt', and 'chosen' is not a dialogue", "prompt")
        return _last_trained(told or [*prompt, Message("assistant", chosen)]), ()
    said = messages_of([chosen] if isinstance(chosen, Mapping) else chosen, "chosen")
    if prompt and said and said[0].role == "assistant":
        said = prompt + said
    elif prompt:  # UltraFeedback: 'chosen' is the whole conversation and 'prompt' repeats its beginning
        said = [message for message in prompt if message.role == "system" and said[0].role != "system"] + said
    return _last_trained(said), _tools(fields)


def _last_trained(said: list[Message]) -> list[Message]:
    """Only the last answer was chosen; those before it are the prompt."""
    last = max((i for i, message in enumerate(said) if message.role == "assistant"), default=-1)
    return _checked([replace(message, trained=i == last) for i, message in enumerate(said)], "chosen")


def _text(fields: Fields) -> Parsed:
    return [Message("text", fields.text("text"), trained=True)], ()


_SYSTEM = ("system", "system_prompt")
_BEFORE = ("prompt", "conversations", "question", "instruction", "input", "tools", "functions", *_SYSTEM)

# Where a row fits several, the first wins.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("preference", (("chosen",), ("rejected",)), _BEFORE, _preference),
        Format("messages", (("messages",),), ("tools", "functions", "prompt", *_SYSTEM), _conversation("messages")),
        Format(
            "sharegpt",
            (("conversations", "conversation"),),
            ("tools", "functions", *_SYSTEM),
            _conversation("conversations", "conversation"),
        ),
        Format(
            "alpaca",
            (("instruction",), ("output",)),
            ("input", "history", *_SYSTEM),
            _single(["instruction"], ["input"], ["output"]),
        ),
        Format(
            "dolly",
            (("instruction",), ("context",), ("response",)),
            _SYSTEM,
            _single(["instruction"], ["context"], ["response"]),
        ),
        Format(
            "gpteacher",
            (("instruction",), ("response", "target")),
            ("input", "history", *_SYSTEM),
            _single(["instruction"], ["input"], ["response", "target"]),
        ),
        Format("dolly_hhrlhf", (("prompt",), ("response",)), _SYSTEM, _single(["prompt"], [], ["response"])),
        Format(
            "prompt-completion", (("prompt",), ("completion",)), ("tools", "functions", *_SYSTEM), _prompt_completion
        ),
        Format(
            "question",
            (("question", "query"), ("response", "answer", "output")),
            ("context", "input", *_SYSTEM),
            _single(["question", "query"], ["context", "input"], ["response", "answer", "output"]),
        ),
        Format("text", (("text",),), (), _text),
    )
}


def detect(rows: Sequence[Mapping[str, Any]], name: str, wanted: str | None, columns: Mapping[str, str]) -> Format:
    """Choose the format that most of the first rows fit.

    Args:
        rows: the first rows of a file, at least one.
        name: the file, for messages.
        wanted: a format that was asked for, or None.
        columns: canonical field name -> the file's column.

    Raises:
        InputError: an unknown format or column, or no row fits; the message names the fields and the fix.
    """
    found = sorted({key for row in rows for key in row})
    missing = [column for column in columns.values() if column not in found]
    if missing:
        raise InputError(
            f"{name} has no column {missing[0]!r}.{suggestion(missing[0], found)} Its columns: {', '.join(found)}."
        )
    known = {field for each in FORMATS.values() for field in each.names}
    unknown = [field for field in columns if field not in known]
    if unknown:
        raise InputError(
            f"--columns {unknown[0]}={columns[unknown[0]]}: no format has a field {unknown[0]!r}."
            f"{suggestion(unknown[0], known)} Known: {', '.join(sorted(known))}."
        )
    if wanted is not None and wanted not in FORMATS:
        raise InputError(f"unknown format {wanted!r}.{suggestion(wanted, FORMATS)} Known: {', '.join(FORMATS)}.")
    candidates: Iterable[Format] = [FORMATS[wanted]] if wanted else FORMATS.values()
    if not wanted and columns:
        candidates = [each for each in candidates if set(columns) <= set(each.names)]
    seen = [Fields(row, columns) for row in rows]
    counts = {each.name: sum(map(each.fits, seen)) for each in candidates}
    best = max(counts, key=lambda each: counts[each], default=None)
    if best is None or not counts[best]:
        raise InputError(_no_fit(name, rows, found, wanted))
    return FORMATS[best]


def conversational(chosen: Format, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
    """Whether most rows of a format that takes text or turns (preference, prompt-completion) are turns."""
    field = {"preference": "chosen", "prompt-completion": "prompt"}.get(chosen.name)
    if field is None:
        return chosen.name in ("messages", "sharegpt")
    values = [Fields(row, columns).get(field) for row in rows]
    turns = sum(
        isinstance(value, list) or (isinstance(value, str) and transcript(value) is not None) for value in values
    )
    return 2 * turns > len(values)


def _no_fit(name: str, rows: Sequence[Mapping[str, Any]], found: list[str], wanted: str | None) -> str:
    if len(rows) == 1:
        lists = [key for key, value in rows[0].items() if isinstance(value, list) and len(value) > 1]
        if lists:
            return (
                f"{name} is one JSON object, not a list of rows; its field {lists[0]!r} is a list of"
                f" {len(rows[0][lists[0]])}. Write that list to a file of its own: jq '.{lists[0]}' {name} > rows.json"
            )
    expected = FORMATS[wanted].needs if wanted else FORMATS["alpaca"].needs
    fields = " and ".join(" or ".join(group) for group in expected)
    formats = wanted or f"any of {', '.join(FORMATS)}"
    return (
        f"no row of {name} fits {formats}. Fields found: {', '.join(found) or 'none'}. For {wanted or 'alpaca'} the"
        f" rows need {fields}; say which columns hold them, for example --columns instruction=QUESTION output=ANSWER"
        " with the names of your columns."
    )
