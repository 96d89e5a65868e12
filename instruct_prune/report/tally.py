"""What is counted while a dataset streams by."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

from instruct_prune.arrays import Int32
from instruct_prune.encode.item import Encoded
from instruct_prune.report.scripts import script_of
from instruct_prune.rows.row import Reject, Row

N_EXAMPLES = 3
MAX_REASONS = 1000  # different reasons that are counted apart
SCRIPT_CHARACTERS = 2000  # of a row, that its script is judged by


class Tally:
    """Counts of rows, and a few of them drawn at random.

    Args:
        generator: of the draws.

    Attributes:
        n_read, n_cut: rows read; response tokens that were cut.
        rejected, unscored: reason (numbers in it replaced by N) -> rows.
        statuses, columns, scripts: what encoding found, further fields, writing systems -> rows.
        first_rejects: in input order.
        n_prompt, n_response, n_tokens: int32 [n], tokens of the rows that will be scored: prompt, response, both.
        drawn: some of the rows that will be scored.
    """

    def __init__(self, generator: np.random.Generator) -> None:
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


def _count(counter: Counter[str], reason: str) -> None:
    kind = re.sub(r"\d+", "N", reason)
    counter[kind if kind in counter or len(counter) < MAX_REASONS else "other reasons"] += 1
