"""What an export is given, what it says about itself, and how rows that a target cannot take are told."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.arrays import Int64, positions_of
from instruct_prune.encode.item import Tokens
from instruct_prune.encode.rendering import Writing, trained
from instruct_prune.encode.store import TokenStore
from instruct_prune.errors import InputError
from instruct_prune.rows.formats.conversations import PREFERENCE, answered
from instruct_prune.rows.formats.format import Fields
from instruct_prune.rows.reader import RowError, as_mapping
from instruct_prune.rows.row import Row
from instruct_prune.storage import atomic


class CannotExpressError(ValueError):
    """The target format has no place for something in this row; the text says for what."""


@dataclass
class Survey:
    """What the kept rows have, found in one pass: a file needs the same keys in its first row and in its last.

    Attributes:
        rows: how many.
        text: rows of plain text, without turns.
        pictures: rows that show a picture.
        pairs: rows with a chosen and a rejected answer.
        systems, tools, calls: rows with a system message, with tool definitions, with tool calls or tool results.
        many_turns: rows in which the assistant speaks more than once.
        earlier_trained: rows that train an assistant turn before the last one.
        untrained: rows with an assistant turn that is not trained.
        last_only: whether each row trains its last message and nothing else.
    """

    rows: int = 0
    text: int = 0
    pictures: int = 0
    pairs: int = 0
    systems: int = 0
    tools: int = 0
    calls: int = 0
    many_turns: int = 0
    earlier_trained: int = 0
    untrained: int = 0
    last_only: bool = True

    @classmethod
    def of(cls, job: ExportJob) -> Survey:
        found = cls()
        for sample in job.samples:
            answers = [i for i, m in enumerate(sample.messages) if m.role == "assistant"]
            trained = job.trained(sample)
            found.rows += 1
            found.text += any(m.role == "text" for m in sample.messages)
            found.pictures += any(m.images for m in sample.messages)
            found.pairs += job.is_pair(sample)
            found.systems += any(m.role == "system" for m in sample.messages)
            found.tools += bool(sample.tools)
            found.calls += any(m.tool_calls or m.role == "tool" for m in sample.messages)
            found.many_turns += len(answers) > 1
            found.earlier_trained += bool(set(answers[:-1]) & trained)
            found.untrained += bool(set(answers) - trained)
            found.last_only = found.last_only and trained == {len(sample.messages) - 1}
        return found


@dataclass(frozen=True)
class KeptTokens:
    """What the model was given of the kept rows, in input order; iterate as often as needed.

    Attributes:
        store: the tokens of all rows.
        row_id: int64 [m], the kept rows.
    """

    store: TokenStore
    row_id: Int64

    def __iter__(self) -> Iterator[tuple[int, Tokens]]:
        at = positions_of(self.row_id, self.store.row_id, str(self.store.folder))
        for row_id, i in zip(self.row_id.tolist(), at.tolist(), strict=True):
            yield row_id, self.store[i]

    @property
    def n_truncated(self) -> int:
        """Rows that were longer than the scorer's ``max_length``."""
        at = positions_of(self.row_id, self.store.row_id, str(self.store.folder))
        return int(np.sum(self.store.status_names[at] == "truncated"))


@dataclass(frozen=True)
class ExportJob:
    """The kept rows and all that trainers' files say about them.

    Attributes:
        samples: the kept rows in input order; must be iterable many times.
        folder: where the files go.
        name: of the data set, in trainers' files.
        model: the base model to name in trainers' files, as a trainer can load it from any folder.
        revision: the commit, tag or branch of the base model on the Hub; None where it lies in a folder.
        writing: how rows are written as text for the model; None for rows that are no text.
        tokens: what the model was given of them; None for rows that are no text.
        model_kind: the kind of model that the rows are for.
        format: of the rows (``Source.format``).
        columns: field name of the format -> column of the file, as given to ``open_data``.
        kind: how the input rows were stored (``Source.kind``).
        split, subset: of a Hub or saved dataset, as given to ``open_data``.
        license: of the source data, or None where it is not known; never guessed.
        facts: lines for the dataset card, as in {"method": "flexrand", "kept": "125 of 417 rows"}.
        hub_repo: where "hub" pushes to, "owner/name".
        hub_private: whether a new repository is private.
    """

    samples: Iterable[Row]
    folder: Path
    name: str
    model: str
    writing: Writing | None
    revision: str | None = None
    tokens: KeptTokens | None = None
    model_kind: str = "causal_lm"
    format: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    kind: str = "jsonl"
    split: str | None = None
    subset: str | None = None
    license: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    hub_repo: str | None = None
    hub_private: bool = True

    def __post_init__(self) -> None:
        if iter(self.samples) is self.samples:
            raise TypeError("samples must be iterable more than once, not an iterator")

    @property
    def text(self) -> Writing:
        """How rows are written as text.

        Raises:
            InputError: they are no text.
        """
        if self.writing is None:
            raise InputError("these rows are no text for a language model, so this format cannot hold them.")
        return self.writing

    @property
    def chat(self) -> bool:
        """Whether a chat template writes the rows: the tokenizer's own, or a Jinja file written like one."""
        return self.text.template not in ("alpaca", "plain")

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.") or "pruned"

    @functools.cached_property
    def cut(self) -> str:
        """Why a trainer that reads text trains something else on some rows: they are cut; "" where none is."""
        n = self.tokens.n_truncated if self.tokens is not None else 0
        return f"{n} rows are cut to {self.text.max_length} tokens, and trainers cut them elsewhere" if n else ""

    @property
    def parted(self) -> str:
        """The same of a trainer that tokenizes a row in pieces; "" where that gives the tokens of the whole."""
        return self.cut or ("" if self.text.joins else "the tokenizer begins every piece of text with a blank")

    @functools.cached_property
    def survey(self) -> Survey:
        return Survey.of(self)

    def is_pair(self, sample: Row) -> bool:
        """Whether the row has a chosen and a rejected answer."""
        said = any(each.startswith(PREFERENCE.name) for each in self.format.split("+"))
        return said and PREFERENCE.fits(self._fields(sample))

    def rejected(self, sample: Row) -> Row:
        """A pair with its rejected answer in place of the chosen one.

        Raises:
            CannotExpressError: it has none, or none that can be read.
        """
        if not self.is_pair(sample):
            raise CannotExpressError("the row has no rejected answer")
        try:
            return replace(sample, messages=tuple(answered(self._fields(sample), "rejected")))
        except RowError as error:
            raise CannotExpressError(f"its rejected answer cannot be read: {error.reason}") from None

    def _fields(self, sample: Row) -> Fields:
        return PREFERENCE.fields(as_mapping(sample.raw), self.columns, Path(), sample.line)

    def trained(self, sample: Row) -> set[int]:
        """Positions of the messages that are trained on."""
        return set(trained(sample, "last" if self.writing is not None and self.writing.turns == "last" else "all"))


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        to: its name.
        paths: files and folders.
        rows: rows written.
        left_out: rows that the target cannot express; they are listed in ``left_out_file`` with the reasons.
        notes: what people should know before they train on it.
    """

    to: str
    paths: tuple[Path, ...]
    rows: int
    left_out: int = 0
    left_out_file: Path | None = None
    notes: tuple[str, ...] = ()


Convert = Callable[[Row], Mapping[str, Any]]


def write_json_rows(
    job: ExportJob, to: str, target: Path, convert: Convert, more: tuple[Path, ...] = (), notes: tuple[str, ...] = ()
) -> Exported:
    """Write one JSON object a line; rows that raise CannotExpressError go to a list beside the file.

    Args:
        job: the rows.
        to: the export's name.
        target: the file.
        convert: makes the object of a row.
        more: other files that belong to the export.
        notes: what people should know.

    Raises:
        InputError: no row can be expressed.
    """
    listed = target.with_name(f"{target.stem}.left_out.jsonl")
    written, reasons = 0, []
    with atomic(target) as file:
        for sample in job.samples:
            try:
                row = convert(sample)
            except CannotExpressError as error:
                entry = {"file": sample.source, "line": sample.line, "row_id": sample.row_id, "reason": str(error)}
                reasons.append(entry)
                continue
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            written += 1
        if not written:
            where = " The first: {file}, line {line}: {reason}.".format_map(reasons[0]) if reasons else ""
            raise InputError(f"--to {to}: none of the {len(reasons)} kept rows can be written so.{where}")
    if reasons:
        with atomic(listed, "w") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in reasons)
    else:
        listed.unlink(missing_ok=True)
    return Exported(to, (target, *more), written, len(reasons), listed if reasons else None, notes)
