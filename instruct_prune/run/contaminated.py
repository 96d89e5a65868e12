"""Which rows of a run repeat rows of files that they must not: tests, benchmarks (``--decontaminate``), or the target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.arrays import Bool, Int64, positions_of
from instruct_prune.config import SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.progress import Progress, say
from instruct_prune.rows import open_data
from instruct_prune.rows.find import find_readers
from instruct_prune.rows.reader import RowError, as_mapping
from instruct_prune.rows.row import Reject
from instruct_prune.rows.table import RowTable
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.contamination import BATCH, HOW, References, Repeats, similar_to
from instruct_prune.storage import sha256_of

SIMILAR = 0.95
"""The cosine of embeddings from which a row of the pool counts as a repetition of a row of the target."""


@dataclass
class Listed:
    """Rows that must not be repeated: where they are, and their texts, filled while they are read.

    Attributes:
        places: (file, line) of each.
        texts: of each.
    """

    places: list[tuple[str, int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        """Read all rows of a file.

        Raises:
            InputError: it is not there, or has no rows that can be read.
        """
        before = len(self.texts)
        for source, line, text in _rows_of(path):
            if text.strip():
                self.places.append((source, line))
                self.texts.append(text)
        if len(self.texts) == before:
            raise InputError(f"--decontaminate {path}: it has no rows with text.")


def _rows_of(path: str) -> Iterator[tuple[str, int, str]]:
    """File, line and text of each row: as its format says, or all texts of the row where it has none that is known."""
    try:
        source = open_data([path])
    except InputError:
        for reader in find_readers([path], None, None):
            for line, data in reader.rows():
                try:
                    yield reader.name, line, "\n".join(_strings(as_mapping(data)))
                except RowError as error:
                    raise InputError(f"--decontaminate {reader.name}, line {line}: {error.reason}.") from None
        return
    for row in source:
        if isinstance(row, Reject):
            raise InputError(f"--decontaminate {row.source}, line {row.line}: {row.reason}.")
        yield row.source, row.line, row.text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


@dataclass(frozen=True)
class Contaminated:
    """The scored rows of a run, n of them, beside the rows that they must not repeat.

    Attributes:
        repeats: of the n rows.
        listed: what they repeat.
    """

    repeats: Repeats
    listed: Listed

    @property
    def rows(self) -> Bool:
        """bool [n]"""
        return np.asarray(self.repeats.of >= 0)

    def columns(self) -> dict[str, Any]:
        """Columns of ``selection.parquet``: the file and line that a row repeats, and how that was seen."""
        import pyarrow as pa

        nobody = ~self.rows
        places = [("", 0) if at < 0 else self.listed.places[at] for at in self.repeats.of.tolist()]
        how = pa.DictionaryArray.from_arrays(pa.array(self.repeats.how.astype(np.int32), mask=nobody), list(HOW))
        return {
            "repeats_file": pa.array([file for file, _ in places], pa.string(), mask=nobody).dictionary_encode(),
            "repeats_line": pa.array([line for _, line in places], pa.int64(), mask=nobody),
            "repeats_how": how,
        }


def find_contaminated(folder: RunFolder, table: ScoreTable, config: SelectConfig) -> Contaminated | None:
    """The scored rows that repeat rows of ``--decontaminate``; None where it names no file.

    Raises:
        InputError: a file is wrong, or embeddings are asked for and there are none.
    """
    if not config.decontaminate:
        return None
    above = config.decontaminate_above
    listed = Listed()
    for path in config.decontaminate:
        listed.add(path)
    row_id = table.row_id[table.scored]
    repeats = repeats_of(References(listed.texts), RowTable.open(folder / "rows"), row_id)
    if above is not None:
        repeats = repeats.with_similar(similar_rows(folder, row_id, listed.texts, above))
    found = Contaminated(repeats, listed)
    say(
        f"decontaminate: {int(found.rows.sum()):,} of {len(row_id):,} rows repeat one of {len(listed.texts):,} rows ({told(repeats)})"
    )
    return found


def sha256_of_file(path: str) -> str | None:
    """SHA-256 of a file that an option names; None where it is no file (a name on the Hub, a pattern)."""
    file = Path(path).expanduser()
    return sha256_of(file) if file.is_file() else None


def repeats_of(references: References, pool: RowTable, row_id: Int64) -> Repeats:
    """Rows of a pool (int64 [n], ascending row ids) that repeat one of the references in words."""
    with Progress("decontaminating", len(row_id), "rows") as progress:
        return references.repeated_by(_counted((row.text for row in pool.take(row_id)), progress))


def _counted(texts: Iterable[str], progress: Progress) -> Iterator[str]:
    for number, text in enumerate(texts, start=1):
        yield text
        if number % BATCH == 0:
            progress.advance(BATCH, BATCH)


def similar_rows(folder: RunFolder, row_id: Int64, texts: Sequence[str], threshold: float) -> Int64:
    """As `similar_to`, by the run's embeddings.

    Raises:
        InputError: there are none, or they come from no embedding model.
    """
    from instruct_prune.run.embed import encode_texts

    embeddings = folder.read_embeddings()
    at = positions_of(row_id, embeddings.row_id, str(folder / "embeddings.npy"))
    return similar_to(embeddings.vectors, at, encode_texts(folder.facts(EmbedFacts).embedder, list(texts)), threshold)


def told(repeats: Repeats) -> str:
    """ "3 by text, 1 by 13-gram"."""
    counts = [(how, int((repeats.how == code).sum())) for code, how in enumerate(HOW)]
    return ", ".join(f"{count:,} by {how}" for how, count in counts if count) or "none"
