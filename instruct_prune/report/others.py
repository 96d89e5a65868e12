"""Other selections over the same rows, to be put beside a run's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instruct_prune.arrays import Bool
from instruct_prune.errors import InputError
from instruct_prune.report.shift import Mmd
from instruct_prune.report.tables import Tables, read_records
from instruct_prune.rows.facts import content_of
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import SelectFacts


@dataclass(frozen=True)
class Other:
    """Another run's selection, in the order of the first run's n scored rows.

    Attributes:
        name: of the run's folder (told apart from the first run's).
        kept: bool [n].
        scored: bool [n], False for rows that the other run did not score.
        facts: what it was made with, in words.
    """

    name: str
    kept: Bool
    scored: Bool
    facts: dict[str, str]


@dataclass(frozen=True)
class OtherNumbers:
    """Two selections of the same rows.

    Attributes:
        name: the other run's.
        kept: rows it keeps among the first run's scored rows.
        both, only_here, only_there: rows that both keep, or one of them.
        jaccard: both / (rows that at least one keeps).
        response_tokens_kept: tokens of the rows it keeps.
        mean_score: of the rows it keeps, by the first run's score.
        group_kept: rows it keeps of each of the first run's groups.
        mmd: to the full set.
    """

    name: str
    facts: dict[str, str]
    kept: int
    both: int
    only_here: int
    only_there: int
    jaccard: float
    response_tokens_kept: int
    mean_score: float
    group_kept: list[int]
    mmd: Mmd | None


def read_other(folder: RunFolder, first: RunFolder, tables: Tables, name: str) -> Other:
    """Read another run's selection.

    Raises:
        InputError: it was made from other data, or has no selection.
    """
    theirs = read_records(folder)
    if content_of(theirs.source.identity) != content_of(tables.run.source.identity):
        raise InputError(
            f"{folder.path} and {first.path} were made from different data (another SHA-256), so their rows cannot be put side "
            "by side. Compare runs over the same files."
        )
    folder.require(SelectFacts)
    selection = folder.read_selection()
    at = np.minimum(np.searchsorted(selection.row_id, tables.row_id), len(selection) - 1)
    scored = selection.row_id[at] == tables.row_id
    if not scored.any():
        raise InputError(f"{folder.path} and {first.path} have no scored row in common.")
    facts = {"method": selection.method, "model": theirs.score.model, "rows kept": f"{int(selection.selected.sum()):,}"}
    facts |= {str(k): str(v) for k, v in selection.params.items() if isinstance(v, int | float | str) and k != "method"}
    return Other(name, scored & selection.selected[at], scored, facts | {"seed": str(selection.seed)})


def other_numbers(tables: Tables, other: Other, mmd: Mmd | None) -> OtherNumbers:
    """Count what two selections share."""
    ours, theirs = tables.kept, other.kept
    both, either = int((ours & theirs).sum()), int((ours | theirs).sum())
    return OtherNumbers(
        name=other.name,
        facts=other.facts,
        kept=int(theirs.sum()),
        both=both,
        only_here=int((ours & ~theirs).sum()),
        only_there=int((theirs & ~ours).sum()),
        jaccard=both / either if either else float("nan"),
        response_tokens_kept=int(tables.n_response[theirs].sum(dtype=np.int64)),
        mean_score=float(tables.score[theirs].mean(dtype=np.float64)) if theirs.any() else float("nan"),
        group_kept=np.bincount(tables.labels[theirs], minlength=len(tables.label_names)).tolist(),
        mmd=mmd,
    )
