"""What each command takes beside `RunConfig`: options of `config`, put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from instruct_prune.config import (
    By,
    DataConfig,
    EmbedConfig,
    EncodeConfig,
    ExportConfig,
    Name,
    Out,
    ScoreConfig,
    SelectConfig,
    Stage,
    TargetConfig,
    Text,
    Texts,
    told_default,
)


@dataclass(frozen=True)
class ScoreOnlyConfig(ScoreConfig):
    """Which subnets of which model."""

    restart: Annotated[Stage | None, arg(metavar="{read,encode,score}", help_behavior_hint=told_default)] = None
    """Discard this stage (read, encode or score) and what was made from it, and make it anew; earlier ones stay."""


@dataclass(frozen=True)
class ScoreCommand:
    """Score every row by its loss under the model's subnets; resumes when run again."""

    data: DataConfig = field(default_factory=DataConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    score: ScoreOnlyConfig = field(default_factory=ScoreOnlyConfig)
    run: Out = field(default_factory=Out)


@dataclass(frozen=True)
class EmbedCommand:
    """Embed the rows of a scored run."""

    embed: EmbedConfig = field(default_factory=EmbedConfig)
    run: Out = field(default_factory=Out)
    restart: Annotated[Literal["embed"] | None, arg(metavar="embed", help_behavior_hint=told_default)] = None
    """Discard the embeddings that are there, and a selection made with them; nothing is scored again."""


@dataclass(frozen=True)
class TargetCommand:
    """Measure rows that show what the model should become good at, for select --method targeted."""

    target: TargetConfig = field(default_factory=TargetConfig)
    by: By = None
    """How rows are compared with the target's: pooled hidden states (rds, the default), gradients, the embedder's vectors, or how
    much the loss falls with an adapter of the target (drop) or behind its rows (shown). What was measured before stays."""
    run: Out = field(default_factory=Out)


@dataclass(frozen=True)
class SelectCommand:
    """Select within an exact budget from a scored run, without a model; may be run many times."""

    select: SelectConfig = field(default_factory=SelectConfig)
    run: Out = field(default_factory=Out)


@dataclass(frozen=True)
class ExportCommand:
    """Write the kept rows of a run's selection."""

    export: ExportConfig = field(default_factory=ExportConfig)
    run: Out = field(default_factory=Out)


@dataclass(frozen=True)
class InspectCommand:
    """What will be scored? Formats, rejects, token statistics, duplicates and three rendered samples; nothing is written."""

    data: DataConfig = field(default_factory=DataConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    model: Text = None
    """Whose tokenizer and chat template: Hub id, local folder, GGUF file, or the embedded default."""
    model_revision: Text = None
    """Branch, tag or commit of a Hub model."""


@dataclass(frozen=True)
class CompareCommand:
    """Put selections from the same rows side by side, always with random at the same budget."""

    runs: Texts = ()
    """Run folders with a selection."""
    seed: int = 0
    """Seed of the random references."""


@dataclass(frozen=True)
class CorrelateCommand:
    """Rank correlation between all score columns of runs over the same rows."""

    runs: Texts = ()
    """Scored run folders."""
    top: float = 0.3
    """Share of the hardest rows whose overlap is shown."""


@dataclass(frozen=True)
class ReportCommand:
    """Write report.html and report.json: one self-contained page that opens offline."""

    out: Name = ""
    """The run folder."""
    runs: Texts = ()
    """Further runs over the same data, put beside it."""
    samples: int = 5000
    """Rows whose text is in the page."""


@dataclass(frozen=True)
class ShowCommand:
    """Show runs in the terminal: summary, kept and dropped examples, clusters."""

    runs: Texts = ()
    """Run folders; each is shown."""
