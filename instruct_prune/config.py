"""One frozen dataclass a stage: at once the command line (tyro), the YAML schema and the Python arguments.

Field names are unique over all stages, so that a YAML file is flat and its keys are the flags without dashes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from tyro.conf import arg

from instruct_prune.errors import InputError

Stage = Literal["read", "encode", "score", "embed"]
"""A stage that can be made anew on its own; select, export and report are made anew whenever they are asked for."""


def told_default(default: str) -> str:
    """What ``--help`` says of a default: nothing where there is none."""
    return "" if default in ("None", "", "''") else f"(default: {default})"


Number = Annotated[int | None, arg(metavar="INT", help_behavior_hint=told_default)]
Real = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=told_default)]
Text = Annotated[str | None, arg(metavar="STR", help_behavior_hint=told_default)]
Name = Annotated[str, arg(help_behavior_hint=told_default)]
Texts = Annotated[tuple[str, ...], arg(help_behavior_hint=told_default)]
Reals = Annotated[tuple[float, ...], arg(help_behavior_hint=told_default)]
Restart = Annotated[Stage | None, arg(metavar="{read,encode,score,embed}", help_behavior_hint=told_default)]
Keep = Annotated[int | float | None, arg(metavar="SHARE|PERCENT%|ROWS", help_behavior_hint=told_default)]
By = Annotated[str | None, arg(metavar="gradient|rds|embedding|drop|shown", help_behavior_hint=told_default)]
DedupKeep = Annotated[
    Literal["hardest", "longest", "first"] | None,
    arg(metavar="{hardest,longest,first}", help_behavior_hint=told_default),
]


@dataclass(frozen=True)
class DataConfig:
    """What to read."""

    data: Texts = ()
    """Dataset files, globs, folders, Hub ids, or - for standard input."""
    limit: Number = None
    """Read only the first N rows."""
    format: Text = None
    """Format of the rows; detected from the first 100 rows when not given."""
    columns: Texts = ()
    """Column mapping, as in: instruction=q output=a"""
    image_folder: Text = None
    """Folder that the pictures of conversations are relative to; the data file's own folder when not given."""
    data_split: Text = None
    """Split of a Hub or datasets source."""
    data_subset: Text = None
    """Configuration name of a Hub source."""
    strict: bool = False
    """Stop at the first row that cannot be read, instead of listing it in rejected.jsonl."""

    def __post_init__(self) -> None:
        given: Any = self.data
        if isinstance(given, str):  # DataConfig("alpaca.jsonl") in Python
            object.__setattr__(self, "data", (given,))

    def column_map(self) -> dict[str, str]:
        pairs = [text.partition("=") for text in self.columns]
        wrong = [name for name, sign, value in pairs if not (name and sign and value)]
        if wrong:
            raise InputError(
                f"--columns {wrong[0]}: write name=column, as in --columns instruction=question output=answer."
            )
        return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class EncodeConfig:
    """How a row becomes tokens."""

    template: str = "auto"
    """alpaca, chat, plain, a Jinja file, or auto: alpaca for single-turn rows, chat for conversations."""
    max_length: Number = None
    """Longest row in tokens; the model's context when not given."""
    turns: Literal["all", "last"] = "all"
    """Score every assistant turn, or the last one."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """Rows over --max-length: trim (prompt from the left first), or give them the status too_long."""


@dataclass(frozen=True)
class ScoreConfig:
    """Which subnets of which model."""

    model: Text = None
    """Hub id, local folder, GGUF file, or your own as module:function; an embedded default for the kind of rows."""
    model_revision: Text = None
    """Branch, tag or commit of a Hub model."""
    subnets: Texts = ("dense",)
    """dense (one pass), presets (dlc, auto, ifd and others: see `instruct-prune subnets`) or lists: magnitude:1.0,0.8 dropout:0.02
    depth:10,20 dense@alone adapter:FOLDER"""
    tolerance: float = 0.98
    """With --subnets auto: a pass is saved where the score predicted without it has this rank correlation with the measured one."""
    probes: Texts = ()
    """What else to read in the dense pass: pooled states (mean, weighted, last, each with @DEPTH), sketches of gradients (gradient,
    gradient@WIDTH), or your own module:Class"""
    subnet_seeds: int = 1
    """Mask seeds for random and dropout subnets."""
    include_head: bool = False
    """Also mask the output head, as the released code does (a tied head is the embedding too)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the hardware multiplies it natively, else float32."""
    batch_tokens: Number = None
    """Padded tokens in a forward pass; 4096 on a CPU, 32768 on a GPU when not given."""
    image_size: Number = None
    """Pixels a side that the embedded image backbone sees; fitted to the pictures (96 to 224) when not given."""
    device_map: Literal["none", "auto"] = "none"
    """auto: spread one model over all devices (one process only)."""
    share_prefix: bool = True
    """Compute the tokens that many rows begin with (a template's preamble) once for each subnet."""
    reuse: Text = None
    """A scored run: rows whose content it measured with the same model and options are not measured again."""
    update: bool = False
    """The data changed since --out was scored: read them again, and measure only the rows that are new."""
    dry_run: bool = False
    """Read, encode and plan; time a few batches; score nothing."""
    restart: Restart = None
    """Discard this stage (read, encode, score or embed) and what was made from it, and make it anew; earlier ones stay."""

    def __post_init__(self) -> None:
        if self.restart not in (None, *get_args(Stage)):
            raise InputError(f"restart is {self.restart!r}; name the stage: read, encode, score or embed.")


@dataclass(frozen=True)
class EmbedConfig:
    """How a row becomes a vector."""

    embedder: str = "auto"
    """model (the scoring model's own states, without another model), a Hub id or folder of a sentence-transformers model,
    all-minilm-l6-v2, or a .npy file of vectors; auto: all-minilm-l6-v2 for texts, model for pictures."""
    embed_batch: int = 64
    """Rows encoded at a time."""


@dataclass(frozen=True)
class TargetConfig:
    """What the model should become good at."""

    target: Texts = ()
    """Files of rows that show it (8 to 500 are usual), in the pool's format: FILE, or NAME=FILE for each of several tasks."""
    warmup_steps: int = 0
    """With --by gradient: train an adapter on random rows of the pool first, for so many steps of 8 rows."""
    shown: int = 1
    """With --by shown: how many rows of the target are put before each row of the pool."""

    def __post_init__(self) -> None:
        given: Any = self.target
        if isinstance(given, str):  # TargetConfig("dev.jsonl") in Python
            object.__setattr__(self, "target", (given,))


@dataclass(frozen=True)
class SelectConfig:
    """How much to keep, and by which rule."""

    keep: Keep = None
    """0.3 (or 30%) is a share of the scored rows, 5000 a number of rows."""
    keep_tokens: Number = None
    """Keep this many response tokens (never more)."""
    method: Text = None
    """Selection rule: a name that `instruct-prune methods` lists, or your own as module:function; flexrand when not given, or
    targeted where there is a target."""
    by: By = None
    """How rows are compared with the target's: gradients, pooled hidden states (rds), the embedder's vectors, or how much the loss
    falls with an adapter of the target (drop) or behind its rows (shown); rds when not given, else the one way that was measured."""
    param: Texts = ()
    """Parameters of the method, as in: split=0.25 or threshold=0.95"""
    score: Text = None
    """A name that `instruct-prune scores` lists, or your own as module:function; the score of --subnets when not given."""
    score_param: Texts = ()
    """Parameters of the score, as in: power=2"""
    score_subnets: Texts = ()
    """Average over these subnets only, as in: dense magnitude:0.8"""
    score_weights: Reals = ()
    """A weight for each of --score-subnets."""
    include_collapsed: bool = False
    """Average over collapsed subnets too."""
    clusters: str = "auto"
    """Number of clusters, auto (about the root of half the rows), or none (one stratum)."""
    stratify: Text = None
    """Take the strata from a column of the data instead of clusters (source: without such a column, the file of each row)."""
    balanced: bool = False
    """As much of the budget for each stratum as for any other, as far as it has rows, instead of shares by their sizes."""
    split: str = "auto"
    """FlexRand's split between easy and hard pool: a number in (0, 1), auto, or mmd."""
    min_per_stratum: int = 0
    """Keep at least this many rows of every stratum."""
    must_keep: Text = None
    """A file of row ids (one a line), or a predicate such as source=identity."""
    dedup: Real = None
    """Drop near-duplicates, keeping one of each group: rows of the same words, and rows whose cosine similarity reaches this."""
    dedup_keep: DedupKeep = None
    """Which of a group of duplicates stays; hardest when not given, or longest with --dedup-first."""
    decontaminate: Texts = ()
    """Files of tests and benchmarks: rows that repeat one of theirs (the same words, or 13 words in a row) are taken out."""
    decontaminate_above: Real = None
    """Also take out rows whose embedding's cosine with one of theirs reaches this (0.95 is usual)."""
    seed: int = 0
    """Seed of clustering and selection."""


@dataclass(frozen=True)
class ExportConfig:
    """What to write besides pruned.jsonl."""

    to: Texts = ()
    """Further formats: tokens (what was scored, for any trainer), trl, llamafactory, axolotl, swift, alpaca, messages, parquet, disk,
    viewer (all scored rows, to look at), hub; links and copies for labelled pictures."""
    hub_repo: Text = None
    """Where --to hub pushes to: owner/name."""
    hub_public: bool = False
    """Make a new Hub repository public."""
    license: Text = None
    """Licence of the data, for the dataset card; taken from the source on the Hub, else left blank."""


@dataclass(frozen=True)
class Out:
    """Where the run lies."""

    out: Name = ""
    """The run folder."""


@dataclass(frozen=True)
class RunConfig:
    """From a dataset file to a pruned dataset file; finished stages are skipped."""

    data: DataConfig = field(default_factory=DataConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    run: Out = field(default_factory=Out)
    dedup_first: bool = False
    """Find the rows that --dedup and --decontaminate take out before scoring, and do not score them."""


@dataclass(frozen=True)
class Preset:
    """A named list of subnets and the score that is made of them.

    Attributes:
        subnets: in the notation of ``--subnets``.
        score: name of the aggregate.
        about: one line for people.
        probes: further readings of the dense pass that the score is made of, in the notation of ``--probes``.
    """

    subnets: tuple[str, ...]
    score: str
    about: str
    probes: tuple[str, ...] = ()
