"""What will be scored? Numbers and samples of a dataset under a template, before an hour is spent on it."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from instruct_prune.arrays import Int32, batched
from instruct_prune.encode.item import Encoded
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.report.scripts import script_of
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
N_EXAMPLES = 3
MAX_REASONS = 1000  # different reasons that are counted apart
SCRIPT_CHARACTERS = 2000  # of a row, that its script is judged by


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


class Inspection:
    """What a dataset is under a template, counted while it streams by.

    Args:
        description: what was found where.
        template: name of the template.
        generator: of the draws.

    Attributes:
        notes: what was done to fit rows to the template.
        examples: a few rows that will be scored, drawn at random with a fixed seed.
        n_read, n_cut: rows read; response tokens that were cut.
        rejected, unscored: reason (numbers in it replaced by N) -> rows.
        statuses, columns, scripts: what encoding found, further fields, writing systems -> rows.
        first_rejects: in input order.
        n_prompt, n_response, n_tokens: int32 [n], tokens of the rows that will be scored: prompt, response, both.
        drawn: some of the rows that will be scored.
    """

    def __init__(self, description: str, template: str, generator: np.random.Generator) -> None:
        self.description, self.template = description, template
        self.notes: tuple[str, ...] = ()
        self.examples: tuple[Example, ...] = ()
        self.n_read = self.n_cut = 0
        self.rejected, self.unscored, self.statuses = Counter[str](), Counter[str](), Counter[str]()
        self.columns, self.scripts = Counter[str](), Counter[str]()
        self.first_rejects: list[Reject] = []
        self._prompt, self._response, self._hashes = array("i"), array("i"), array("Q")
        self.drawn: list[tuple[Row, Encoded]] = []
        self._generator = generator

    def reject(self, rejects: Sequence[Reject]) -> None:
        """Count rows that could not be read."""
        self.n_read += len(rejects)
        for reject in rejects:
            _count(self.rejected, reject.reason)
        self.first_rejects += rejects[: N_EXAMPLES - len(self.first_rejects)]

    def add(self, sample: Row, row: Encoded) -> None:
        """Count a row that was encoded."""
        self.n_read += 1
        self.statuses[row.status.value] += 1
        self.columns.update(sample.columns.keys())
        self.scripts[script_of("".join(message.text for message in sample.messages)[:SCRIPT_CHARACTERS])] += 1
        self.n_cut += row.n_cut
        if not row.status.scored:
            _count(self.unscored, f"{row.status.value}: {row.reason}")
            return
        scored = int(row.response_mask.sum())
        self._prompt.append(len(row.input_ids) - scored)
        self._response.append(scored)
        self._hashes.append(int(row.content_hash[:16], 16))
        # Reservoir sampling: every scored row is as likely to stay (Vitter, "Random Sampling with a Reservoir", 1985).
        if len(self.drawn) < N_EXAMPLES:
            self.drawn.append((sample, row))
        elif (place := int(self._generator.integers(len(self._hashes)))) < N_EXAMPLES:
            self.drawn[place] = (sample, row)

    @property
    def n_scored(self) -> int:
        return len(self._response)

    @property
    def n_prompt(self) -> Int32:
        return np.asarray(self._prompt, dtype=np.int32)

    @property
    def n_response(self) -> Int32:
        return np.asarray(self._response, dtype=np.int32)

    @property
    def n_tokens(self) -> Int32:
        return self.n_prompt + self.n_response

    @property
    def n_duplicates(self) -> int:
        """Rows whose tokens and mask are those of an earlier row."""
        return len(self._hashes) - len(np.unique(np.asarray(self._hashes, dtype=np.uint64)))

    @property
    def n_rejected(self) -> int:
        return sum(self.rejected.values())

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
        for name, counts in (("prompt", self.n_prompt), ("response", self.n_response), ("both", self.n_tokens)):
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
    found = Inspection(source.description, encoder.template_name, np.random.default_rng(seed))
    for chunk in batched(source, BATCH):
        samples = [row for row in chunk if isinstance(row, Row)]
        found.reject([row for row in chunk if isinstance(row, Reject)])
        for sample, row in zip(samples, (encode or encoder.encode)(samples), strict=True):
            found.add(sample, row)
    drawn = sorted(found.drawn, key=lambda pair: pair[0].row_id)
    found.examples = tuple(_example(encoder, sample, row) for sample, row in drawn)
    found.notes = encoder.notes
    if found.n_read != found.n_rejected + sum(found.statuses.values()):
        raise AssertionError(f"rows were lost: {found.n_read} read, {found.n_rejected} rejected, {found.statuses}")
    return found


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


def _count(counter: Counter[str], reason: str) -> None:
    kind = re.sub(r"\d+", "N", reason)
    counter[kind if kind in counter or len(counter) < MAX_REASONS else "other reasons"] += 1
