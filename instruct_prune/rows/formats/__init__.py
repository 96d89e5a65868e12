"""Row formats: which fields say what, and how a row becomes messages. Pure functions of one row.

A format is a `Format` object; those below are known by name, others by ``package.module:NAME``. Sources: the documentation
of LLaMA-Factory, axolotl, TRL and open-instruct of their data formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.registry import load_attribute, suggestion
from instruct_prune.rows.formats.conversations import MESSAGES, PREFERENCE, PROMPT_COMPLETION, SHAREGPT
from instruct_prune.rows.formats.format import Fields, Format
from instruct_prune.rows.formats.images import IMAGE_CLASSIFICATION, IMAGES, is_picture
from instruct_prune.rows.formats.single import ALPACA, DOLLY, DOLLY_HHRLHF, GPTEACHER, QUESTION, TEXT
from instruct_prune.rows.reader import is_turn
from instruct_prune.rows.turns import transcript

DETECTION_ROWS = 100

# Where a row fits several, the first wins.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        PREFERENCE, MESSAGES, SHAREGPT, ALPACA, DOLLY, GPTEACHER, DOLLY_HHRLHF, PROMPT_COMPLETION, QUESTION,
        IMAGE_CLASSIFICATION, TEXT,
    )
}  # fmt: skip

__all__ = ["DETECTION_ROWS", "FORMATS", "Fields", "Format", "detect", "find_format", "shown_name"]


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
    candidates = [find_format(wanted)] if wanted else list(FORMATS.values())
    _check_columns(name, found, candidates, columns)
    if not wanted and columns:
        candidates = [each for each in candidates if set(columns) <= {*each.names, *_pictures_of(each)}]
    counts = {each.name: sum(each.fits(each.fields(row, columns, Path(), 1)) for row in rows) for each in candidates}
    said = max((n for each, n in counts.items() if each not in (TEXT.name, IMAGE_CLASSIFICATION.name)), default=0)
    if not wanted and 2 * said >= counts.get(IMAGE_CLASSIFICATION.name, 0) > 0 < said:
        del counts[IMAGE_CLASSIFICATION.name]  # conversations about pictures are no pictures to classify
    best = max(candidates, key=lambda each: counts.get(each.name, 0), default=None)
    if best is None or not counts[best.name]:
        raise InputError(_no_fit(name, rows, found, candidates[0] if wanted else None))
    return best


def find_format(name: str) -> Format:
    """A format by its name, or a user's own by ``package.module:NAME``.

    Raises:
        InputError: there is none.
    """
    if ":" not in name:
        if name not in FORMATS:
            raise InputError(f"unknown format {name!r}.{suggestion(name, FORMATS)} Known: {', '.join(FORMATS)}.")
        return FORMATS[name]
    own: Format = load_attribute(name, "--format", "a Format", lambda found: isinstance(found, Format))
    return own


def _check_columns(name: str, found: Sequence[str], candidates: Iterable[Format], columns: Mapping[str, str]) -> None:
    missing = [column for column in columns.values() if column not in found]
    if missing:
        raise InputError(
            f"{name} has no column {missing[0]!r}.{suggestion(missing[0], found)} Its columns: {', '.join(found)}."
        )
    twice = [column for column in columns.values() if list(columns.values()).count(column) > 1]
    if twice:
        fields = [field for field, column in columns.items() if column == twice[0]]
        raise InputError(f"--columns names the column {twice[0]!r} for {' and '.join(fields)}; a column is used once.")
    known = {field for each in (*FORMATS.values(), *candidates) for field in (*each.names, *_pictures_of(each))}
    unknown = [field for field in columns if field not in known]
    if unknown:
        raise InputError(
            f"--columns {unknown[0]}={columns[unknown[0]]}: no format has a field {unknown[0]!r}."
            f"{suggestion(unknown[0], known)} Known: {', '.join(sorted(known))}."
        )


def _pictures_of(each: Format) -> tuple[str, ...]:
    """The field that lists the pictures of a conversation."""
    return ("images",) if each.model == "causal_lm" else ()


def shown_name(chosen: Format, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A format's name, with "-messages" where it takes text or turns and most of these rows hold turns."""
    field = chosen.said_as_turns
    if field is None:
        return chosen.name
    values = [chosen.fields(row, columns, Path(), 1).get(field) for row in rows]
    turns = sum(
        isinstance(value, list | Mapping) or (isinstance(value, str) and transcript(value) is not None)
        for value in values
    )
    return f"{chosen.name}-messages" if 2 * turns > len(values) else chosen.name


def _no_fit(name: str, rows: Sequence[Mapping[str, Any]], found: list[str], wanted: Format | None) -> str:
    if all(map(is_turn, rows)):
        return (
            f"{name} holds turns where rows are expected: each conversation is a bare list, or the whole file is one"
            ' conversation. Write one object a conversation: {"messages": [{"role": ..., "content": ...}, ...]}.'
        )
    if len(rows) == 1:
        lists = [key for key, value in rows[0].items() if isinstance(value, list) and len(value) > 1]
        if lists:
            return (
                f"{name} is one JSON object, not a list of rows; its field {lists[0]!r} is a list of"
                f" {len(rows[0][lists[0]])}. Write that list to a file of its own: jq '.{lists[0]}' {name} > rows.json"
            )
    pictures = [key for key in found if key in IMAGES and any(is_picture(row.get(key)) for row in rows)]
    if pictures and (wanted is None or wanted is IMAGE_CLASSIFICATION):
        return (
            f"{name} lists images ({pictures[0]}), but no labels: its columns are {', '.join(rows[0])}. Name the column of"
            " the classes: --columns label=COLUMN."
        )
    expected = (wanted or FORMATS["alpaca"]).needs
    fields = " and ".join(" or ".join(group) for group in expected)
    formats = wanted.name if wanted else f"any of {', '.join(FORMATS)}"
    return (
        f"no row of {name} fits {formats}. Fields found: {', '.join(found) or 'none'}. For"
        f" {wanted.name if wanted else 'alpaca'} the rows need {fields}; say which columns hold them, {_example(found)}."
    )


def _example(found: Sequence[str]) -> str:
    """A mapping to copy: of this file's columns where their names tell what they hold."""
    asked = next((name for name in ("input", "question", "query", "prompt", "user", "problem") if name in found), None)
    answered = next(
        (name for name in ("output", "answer", "response", "completion", "assistant", "solution") if name in found),
        None,
    )
    if asked and answered:
        return f"probably --columns instruction={asked} output={answered}"
    return "for example --columns instruction=QUESTION output=ANSWER with the names of your columns"
