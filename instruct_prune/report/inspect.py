"""What will be scored? Numbers and samples of a dataset under a template, before an hour is spent on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING

import numpy as np

from instruct_prune.arrays import Int32
from instruct_prune.encode.item import Encoded
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.report.tally import Tally
from instruct_prune.rows.row import Reject, Row
from instruct_prune.rows.source import Source
from instruct_prune.terminal import one_line, safe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

BATCH = 512
N_LISTED = 8  # reasons and columns that are printed
SHOWN_CHARACTERS = 1200  # of a rendered sample


@dataclass(frozen=True)
class Example:
    """One row as the model will see it.

    Attributes:
        row_id, source, line: which row.
        segments: (text, is it scored) in order.
        n_prompt, n_response: tokens.
    """

    row_id: int
    source: str
    line: int
    segments: tuple[tuple[str, bool], ...]
    n_prompt: int
    n_response: int


@dataclass(frozen=True)
class Inspection:
    """What a dataset is under a template.

    Attributes:
        description: what was found where.
        files: what was read.
        template: name of the template.
        notes: what was done to fit rows to it.
        n_read: rows read = rejected + encoded.
        rejected: reason (numbers in it replaced by N) -> rows that could not be read.
        first_rejects: the first of them, in input order.
        statuses: what encoding found -> rows.
        unscored: "status: reason" -> rows that were read and carry no score.
        columns: further fields -> rows that have them.
        n_prompt: int32 [n], prompt tokens of the rows that will be scored.
        n_response: int32 [n], their response tokens.
        n_cut: response tokens that truncation takes away, in all.
        n_duplicates: rows whose tokens and mask are those of an earlier row.
        scripts: writing system of most letters ("Latin", "Cjk", ...) -> rows.
        examples: a few rows that will be scored, drawn at random with a fixed seed.
    """

    description: str
    files: tuple[str, ...]
    template: str
    notes: tuple[str, ...]
    n_read: int
    rejected: Mapping[str, int]
    first_rejects: tuple[Reject, ...]
    statuses: Mapping[str, int]
    unscored: Mapping[str, int]
    columns: Mapping[str, int]
    n_prompt: Int32
    n_response: Int32
    n_cut: int
    n_duplicates: int
    scripts: Mapping[str, int]
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        encoded = sum(self.statuses.values())
        if self.n_read != self.n_rejected + encoded:
            raise AssertionError(f"rows were lost: {self.n_read} read, {self.n_rejected} rejected, {encoded} encoded")

    @property
    def n_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def n_scored(self) -> int:
        return len(self.n_response)

    @property
    def n_tokens(self) -> Int32:
        """int32 [n], prompt and response."""
        return self.n_prompt + self.n_response

    def print(self, console: Console) -> None:
        """Write all of it to a terminal; text of the data is shown with its control characters escaped."""
        from rich.text import Text

        plain = Text
        console.print(plain(f"data      {safe(self.description)}"))
        console.print(plain(f"template  {safe(self.template)}"))
        for note in self.notes:
            console.print(plain(f"note      {safe(note)}"))
        unscored = self.n_read - self.n_rejected - self.n_scored
        console.print(
            plain(
                f"rows      {self.n_read:,} read = {self.n_scored:,} to be scored + {unscored:,} without a score"
                f" + {self.n_rejected:,} rejected"
            )
        )
        for counts, what in ((self.unscored, "no score"), (self.rejected, "rejected")):
            for reason, count in _largest(counts):
                console.print(plain(f"          {count:>9,} {what}: {one_line(reason)}"))
        for reject in self.first_rejects:
            console.print(plain(f"          {safe(reject.source)}, line {reject.line}: {one_line(reject.reason)}"))
        if self.columns:
            listed = ", ".join(f"{one_line(name, 40)} ({count:,})" for name, count in _largest(self.columns))
            console.print(plain(f"columns   {listed}"))
        console.print(plain(f"same      {self.n_duplicates:,} rows repeat an earlier one token for token"))
        listed = ", ".join(f"{name} {count:,}" for name, count in _largest(self.scripts))
        console.print(plain(f"scripts   {listed or 'none'}"))
        if self.n_cut:
            console.print(plain(f"cut       {self.n_cut:,} response tokens, of rows longer than the maximum"))
        if self.n_scored:
            console.print(self._token_table())
            console.print(self._histogram())
        for example in self.examples:
            console.print()
            console.print(plain(f"row {example.row_id} ({safe(example.source)}, line {example.line}): "), end="")
            console.print(plain(f"{example.n_prompt} prompt and {example.n_response} response tokens"))
            console.print(_highlighted(example.segments, console.color_system is not None), soft_wrap=True)

    def _token_table(self) -> Table:
        from rich.table import Table

        names = ("total", "mean", "min", "5%", "50%", "95%", "max")
        table = Table("tokens", *names, box=None, padding=(0, 2, 0, 0))
        for column in table.columns[1:]:
            column.justify = "right"
        for name, counts in (
            ("prompt", self.n_prompt),
            ("response", self.n_response),
            ("both", self.n_tokens),
        ):
            low, middle, high = np.quantile(counts, (0.05, 0.5, 0.95))
            numbers = (counts.sum(dtype=np.int64), counts.mean(), counts.min(), low, middle, high, counts.max())
            table.add_row(name, *(f"{number:,.0f}" for number in numbers))
        return table

    def _histogram(self) -> Text:
        """Rows by length, a bar for every doubling."""
        from rich.text import Text

        lengths = self.n_tokens
        doublings = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
        counts = np.bincount(doublings)
        lines = ["tokens in a row        rows"]
        for power in range(int(doublings.min()), len(counts)):
            low = 2 ** (power - 1) + 1 if power else 1
            bar = "█" * round(40 * counts[power] / counts.max()) or ("▏" if counts[power] else "")
            lines.append(f"{low:>7,} to {2**power:<7,} {counts[power]:>9,} {bar}")
        return Text("\n".join(lines))


def inspect_data(
    source: Source, encoder: Encoder, seed: int = 0, encode: Callable[[Sequence[Row]], Sequence[Encoded]] | None = None
) -> Inspection:
    """Read and encode a dataset once, in a stream, and count.

    Memory: 16 bytes for every scored row (its two lengths and a short hash).

    Args:
        source: an opened dataset.
        encoder: the template and tokenizer that will be used for scoring.
        seed: for the choice of examples.
        encode: rows as the model reads them, where that is more than text (pictures).

    Raises:
        InputError: the data cannot be read on, or are read strictly and a row is rejected.
    """
    counts = Tally(np.random.default_rng(seed))
    rows = iter(source)
    while chunk := list(islice(rows, BATCH)):
        samples = [row for row in chunk if isinstance(row, Row)]
        counts.reject([row for row in chunk if isinstance(row, Reject)])
        for sample, row in zip(samples, (encode or encoder.encode)(samples), strict=True):
            counts.add(sample, row)
    drawn = sorted(counts.drawn, key=lambda pair: pair[0].row_id)
    return Inspection(
        description=source.description,
        files=source.files,
        template=encoder.template_name,
        notes=encoder.notes,
        n_read=counts.n_read,
        rejected=dict(counts.rejected),
        first_rejects=tuple(counts.first_rejects),
        statuses=dict(counts.statuses),
        unscored=dict(counts.unscored),
        columns=dict(counts.columns),
        n_prompt=np.asarray(counts.n_prompt, dtype=np.int32),
        n_response=np.asarray(counts.n_response, dtype=np.int32),
        n_cut=counts.n_cut,
        n_duplicates=counts.n_duplicates,
        scripts=dict(counts.scripts),
        examples=tuple(_example(encoder, sample, row) for sample, row in drawn),
    )


def _example(encoder: Encoder, sample: Row, row: Encoded) -> Example:
    scored = int(row.response_mask.sum())
    segments = tuple(encoder.decode(row))  # the ids that are scored, not the text that they came from
    return Example(sample.row_id, sample.source, sample.line, segments, len(row.input_ids) - scored, scored)


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[N_LISTED:]
    if rest:
        return [*ordered[:N_LISTED], (f"{len(rest)} more", sum(count for _, count in rest))]
    return ordered


def _highlighted(segments: Sequence[tuple[str, bool]], colours: bool) -> Text:
    """Prompt dim, response bold and green; without colours the response stands in ⟦ ⟧. Long segments lose their middle."""
    from rich.text import Text

    text = Text()
    runs = [(scored, "".join(said for said, _ in run)) for scored, run in groupby(segments, key=lambda pair: pair[1])]
    room = max(80, SHOWN_CHARACTERS // max(1, len(runs)))
    for scored, said in runs:
        shown = said if len(said) <= room else f"{said[: room // 2]} […] {said[-room // 2 :]}"
        shown = safe(shown) if colours or not scored else f"⟦{safe(shown)}⟧"
        text.append(shown, style="bold green" if scored else "dim")
    return text
