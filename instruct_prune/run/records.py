"""What each stage of a run says about itself: which options made it, from which results, and what came of it.

A record carries the fingerprints of the stages that it was made from. When one of those is made anew under other options,
the fingerprints differ, and the record is stale: nobody reads what a stale stage left.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.run.target_facts import COMPARED, StageFacts, TargetFacts
from instruct_prune.score.health import Health
from instruct_prune.score.pilot import Earned
from instruct_prune.storage import digest

Stamps = Mapping[str, tuple[int, int, str]]
"""{path relative to the run folder: (bytes, time of change in ns, SHA-256)}."""
LAYOUT = 1
"""Version of the run folder's layout; a folder of another layout is refused in words."""


@dataclass(frozen=True)
class RowsFacts(StageFacts):
    """What was read; `RowTable.facts` says what it was.

    Attributes:
        names: of the data as the user wrote them, paths made absolute.
        read, rejected: rows.
        seconds: time taken.
    """

    stage = "rows"
    command = "score --data ..."

    names: tuple[str, ...]
    read: int
    rejected: int
    seconds: float


@dataclass(frozen=True)
class EncodeFacts(StageFacts):
    """What the rows became.

    Attributes:
        model: name of the model whose tokenizer (or size of pictures) decided it.
        revision: of a Hub model.
        options: `EncodeConfig`, as given.
        encoded: rows that were encoded, whatever came of it.
        scorable: rows that can be scored.
        notes: what people should know of the encoding.
        seconds: time taken.
    """

    stage = "encode"
    command = "score --data ..."

    model: str
    revision: str | None
    options: Mapping[str, Any]
    encoded: int
    scorable: int
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class SetAside:
    """Rows that ``--dedup-first`` took out before scoring (``set_aside.parquet``).

    Attributes:
        duplicates: rows that another one stands for.
        contaminated: rows that repeat a row of ``--decontaminate``.
        seconds: that finding them took, the vectors that it was done with left out.
    """

    duplicates: int
    contaminated: int
    seconds: float

    @property
    def rows(self) -> int:
        return self.duplicates + self.contaminated


@dataclass(frozen=True)
class ScoreFacts(StageFacts):
    """What was measured.

    Attributes:
        model: its name, as the user gave it.
        dtype: of its weights.
        score: name of the score in ``scores.parquet``.
        ladder: the subnets that were asked for, repeated as often as they count.
        collapsed: names of subnets that the score leaves out.
        health: what the losses say about the subnets.
        read, scored, rejected: rows.
        tokens: computed in all passes, padding included (pictures for an image model).
        passes: names of the passes that were run.
        unit: what ``tokens`` counts.
        processes: how many worked.
        device: on what.
        switching_seconds: time that the main process spent on making subnets.
        scoring_seconds: and on passes over its share of the rows.
        seconds: of the clock.
        left_whole: weights that no mask touched, with the reason.
        notes: what people should know of the measurement.
        earned: with ``--subnets auto``, which passes the pilot found worth their time; ``ladder`` has those alone.
        aside: with ``--dedup-first``, the rows that were not scored: read = scored + rejected + set aside.
    """

    stage = "score"
    command = "score --data ..."

    model: str
    dtype: str
    score: str
    ladder: tuple[SubnetSpec, ...]
    collapsed: tuple[str, ...]
    health: Health
    read: int
    scored: int
    rejected: int
    tokens: int
    passes: tuple[str, ...]
    unit: str
    processes: int
    device: str
    switching_seconds: float
    scoring_seconds: float
    seconds: float
    left_whole: Mapping[str, str]
    notes: tuple[str, ...] = ()
    earned: Earned | None = None
    aside: SetAside | None = None

    @property
    def set_aside(self) -> int:
        """Rows that were set aside before scoring."""
        return 0 if self.aside is None else self.aside.rows


@dataclass(frozen=True)
class EmbedFacts(StageFacts):
    """Where the vectors come from.

    Attributes:
        embedder: its name, as the user gave it.
        width: numbers of a vector.
        seconds: time taken.
    """

    stage = "embed"
    command = "embed"

    embedder: str
    width: int
    seconds: float


@dataclass(frozen=True)
class TokenCounts:
    """Response tokens, and all tokens, of the scored and of the kept rows."""

    scored_response: int
    kept_response: int
    scored: int
    kept: int


@dataclass(frozen=True)
class SelectFacts(StageFacts):
    """What was kept.

    Attributes:
        scored, kept, dropped: rows; those that were set aside before scoring are dropped, too.
        tokens: of the scored and the kept rows.
        score: name of the score that rows were ranked by.
        duplicates: near-duplicates that were dropped.
        contaminated: rows that were dropped because they repeat a row of ``--decontaminate``.
        unstable: rows that another mask seed would have decided otherwise; None with fewer than two seeds.
        selected_hash: of the kept rows' ids.
        params: how to make the selection again.
        clustered: whether ``clusters.parquet`` belongs to this selection.
        strata: how many.
        seconds: time taken.
    """

    stage = "select"
    command = "select --keep ..."

    scored: int
    kept: int
    dropped: int
    tokens: TokenCounts
    score: str
    duplicates: int
    contaminated: int
    unstable: int | None
    selected_hash: str
    params: Mapping[str, Any]
    clustered: bool
    strata: int
    seconds: float


@dataclass(frozen=True)
class ExportFacts(StageFacts):
    """What was written.

    Attributes:
        rows: in ``pruned.jsonl``.
        sha256: of it.
        told: a line for people about each file.
        held: {format of ``--to``: ``sha256`` of the rows that it was last written for}.
    """

    stage = "export"
    command = "export"

    rows: int
    sha256: str
    told: tuple[str, ...]
    held: Mapping[str, str] = dataclasses.field(default_factory=dict)


Facts = TypeVar("Facts", bound=StageFacts)
STAGES: tuple[type[StageFacts], ...] = (
    RowsFacts, EncodeFacts, ScoreFacts, EmbedFacts, TargetFacts, *COMPARED.values(), SelectFacts, ExportFacts,
)  # fmt: skip
"""In the order in which a run makes them."""
RESTARTS = {"rows": "read", "encode": "encode", "score": "score", "embed": "embed"}
"""{stage: its name in ``--restart``}; the later ones are made anew whenever they are asked for."""

COSTLY = ("score", "embed")
"""Stages that are not made anew unless the user says so, also where their files are damaged."""


@dataclass(frozen=True)
class Record(Generic[Facts]):
    """One stage of a run folder.

    Attributes:
        config: the options that decide its result, JSON-able.
        inputs: {stage: fingerprint} of what it was made from.
        facts: what came of it; None while it is unfinished.
        files: of what later stages read of it.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    facts: Facts | None = None
    files: Stamps = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Equal for equal results: the same options, applied to the same inputs."""
        return digest([self.config, self.inputs])

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "inputs": self.inputs,
            "fingerprint": self.fingerprint,
            "facts": None if self.facts is None else dataclasses.asdict(self.facts),
            "files": self.files,
        }


def read_record(kind: type[Facts], entry: Mapping[str, Any]) -> Record[Facts]:
    """A record from its JSON; a field that is unknown or of another type raises ValueError (pydantic's ValidationError)."""
    from pydantic import TypeAdapter

    facts = entry.get("facts")
    unknown = set(facts or {}) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    return Record(
        config=typing.cast(Mapping[str, Any], entry["config"]),
        inputs=typing.cast(Mapping[str, str], entry["inputs"]),
        facts=None if facts is None else TypeAdapter(kind).validate_python(facts),
        files={
            name: (int(size), int(time), str(sha256)) for name, (size, time, sha256) in entry.get("files", {}).items()
        },
    )
