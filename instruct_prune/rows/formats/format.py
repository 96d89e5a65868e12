"""What a row format is, and a row seen through a column mapping."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_prune.rows.containers import undone
from instruct_prune.rows.reader import RowError, named_type
from instruct_prune.rows.row import Message
from instruct_prune.rows.turns import Tools, tools_of

Parsed = tuple[list[Message], Tools]


@dataclass(frozen=True, slots=True)
class Fields:
    """A row seen through the column mapping: ``fields["output"]`` may be the file's column "a".

    A column that is mapped to one name is no longer the default of another.

    Attributes:
        row: the row.
        columns: field name of the format -> column of the file.
        folder: where the file of the row lies; paths in the row are relative to it.
        line: 1-based position of the row in its file.
    """

    row: Mapping[str, Any]
    columns: Mapping[str, str]
    folder: Path = Path()
    line: int = 1

    def column(self, name: str) -> str | None:
        """The column that holds a field; None where it is given away to another field."""
        if not self.columns:
            return name
        if name in self.columns:
            return self.columns[name]
        return None if name in self.columns.values() else name

    def get(self, name: str) -> Any:
        column = self.column(name)
        return None if column is None else self.row.get(column)

    def present(self, *names: str) -> str | None:
        """The first of these names that the row has a value for; a blank one counts where there is no other."""
        there = [name for name in names if self.get(name) is not None]
        return next((name for name in there if not _is_blank(self.get(name))), there[0] if there else None)

    def required(self, *names: str) -> str:
        """As `present`.

        Raises:
            RowError: the row has a value for none of these names.
        """
        name = self.present(*names)
        if name is None:
            columns = [self.column(n) or n for n in names]
            if any(self.column(n) in self.row for n in names):
                raise RowError(f"the field {columns[0]!r} is null", columns[0])
            raise RowError(f"there is no field {' or '.join(map(repr, columns))}", columns[0])
        return name

    def text(self, *names: str, required: bool = True) -> str:
        """The text of the first of these fields that is there, as `present` finds it.

        Raises:
            RowError: none is there and one is required, or it is no text.
        """
        name = self.required(*names) if required else self.present(*names)
        if name is None:
            return ""
        value = self.get(name)
        if not isinstance(value, str):
            column = self.column(name)
            raise RowError(f"the field {column!r} must be text, this is {named_type(value)}", column)
        return value


def _is_blank(value: object) -> bool:
    """Whether a value says nothing: tables that were put together fill the columns of one with such values for the other."""
    return not value.strip() if isinstance(value, str) else value in ([], {})


@dataclass(frozen=True)
class Format:
    """One way to write a row.

    Attributes:
        name: as given to ``--format``.
        needs: groups of names; a row has the format if it has a value for one name of every group.
        takes: other fields that are part of the conversation.
        parse: a row's fields -> messages and tools; raises RowError.
        model: the kind of model that its rows are for: "causal_lm" for text, "image_encoder" for labelled pictures, or
            the user's own as ``module:Class``.
        strata: the column that says by itself which rows belong together ("label"), or None.
        structures: fields that hold a list or an object; JSON text in them is parsed.
        turns: fields that hold text, or a list of turns; JSON text of turns in them is parsed.
        check: a further demand on a row that has the fields, or None.
        summary: the row in words, where the row itself cannot be shown (pictures); None where it can.
        said_as_turns: the field that may hold text or turns; its values decide whether the format is called "-messages".
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    takes: tuple[str, ...]
    parse: Callable[[Fields], Parsed]
    model: str = "causal_lm"
    strata: str | None = None
    structures: Collection[str] = ()
    turns: Collection[str] = ()
    check: Callable[[Fields], bool] | None = None
    summary: Callable[[Sequence[Message]], dict[str, Any]] | None = None
    said_as_turns: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for group in self.needs for name in group) + self.takes

    def fits(self, fields: Fields) -> bool:
        return all(fields.present(*group) for group in self.needs) and (self.check is None or self.check(fields))

    def fields(self, row: Mapping[str, Any], columns: Mapping[str, str], folder: Path, line: int) -> Fields:
        """A row as this format sees it, with what its container did undone."""
        seen = Fields(row, columns, folder, line)
        structures, turns = ({c for c in map(seen.column, n) if c is not None} for n in (self.structures, self.turns))
        return Fields(undone(row, structures, turns), columns, folder, line)


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


def opening(fields: Fields, *names: str) -> list[Message]:
    """The system message, where the row has one that is not blank."""
    system = fields.text(*names, required=False)
    return [Message("system", system)] if system.strip() else []


def user(fields: Fields, names: Sequence[str], context: str) -> Message:
    """The question: an Alpaca prompt is taken apart, so that it is never wrapped twice."""
    instruction, inside = unwrapped(fields.text(*names), names[0])
    return Message("user", instruction, context=context or inside)


def tools(fields: Fields) -> Tools:
    """``tools``, or ``functions`` as OpenAI's first function calls had them."""
    return tools_of(fields.get("tools"), "tools") or tools_of(fields.get("functions"), "functions")


SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
