"""``--by``: the ways in which rows of the pool are compared with those of a target, in one table; and the tasks of a target.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from instruct_prune.config import TargetConfig
from instruct_prune.errors import InputError
from instruct_prune.registry import load_attribute, suggestion
from instruct_prune.rows.inputs import IMAGES

if TYPE_CHECKING:
    from instruct_prune.run.measuring import Measuring

DEFAULT = "rds"
OPTIONS = {"warmup_steps": 0, "shown": 1}
"""Fields of `TargetConfig` that belong to one way to compare, with their least values."""


@dataclass(frozen=True)
class Compared:
    """What a way to compare leaves, in one of two forms; files are named inside the run folder.

    Vectors: ``pool`` is a float16 or float32 [m, d] array and ``queries`` float32 [q, d], in the order of the tasks and, in
    each task, of its rows that can be scored. Rows are compared by the cosine of their vectors.
    Values: ``pool`` is float32 [tasks, m], higher = sooner taken, and ``queries`` is "". There are no queries then: each task
    takes its highest row in turn.

    Attributes:
        pool: of the m rows of the pool.
        rows: int64 [m], their row ids, ascending.
        queries: of the q rows of all tasks.
    """

    pool: str
    rows: str
    queries: str = ""


@dataclass(frozen=True)
class By:
    """One way to compare.

    Attributes:
        about: what is compared, in a few words.
        function: "module:function" in this package: takes a `Measuring`, writes its files and returns `Compared`.
        after: the stage whose results it is made from, beside the target itself.
        probes: of ``--probes``: what `run` reads in the passes that score, so that the pool needs no pass of its own.
        options: fields of `TargetConfig` that decide the result.
    """

    about: str
    function: str
    after: Literal["score", "embed"] = "score"
    probes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def probes_of(self, config: TargetConfig) -> tuple[str, ...]:
        """What `run` reads in the passes that score: nothing where vectors are read with an adapter, trained later."""
        return () if "warmup_steps" in self.options and config.warmup_steps else self.probes

    def measure(self, measuring: Measuring) -> Compared:
        function: Callable[[Measuring], Compared] = load_attribute(f"instruct_prune.{self.function}", "--by")
        return function(measuring)


BY: dict[str, By] = {
    "gradient": By(
        "sketches of the rows' gradients", "run.ways:by_gradients", probes=("gradient",), options=("warmup_steps",)
    ),
    "rds": By("hidden states of prompt and response, pooled (RDS+)", "run.ways:by_states", probes=("weighted",)),
    "embedding": By("the embedder's vectors", "run.ways:by_embedder", after="embed"),
    "drop": By("the share of the loss that an adapter trained on the target takes away", "run.ways:by_drop"),
    "shown": By(
        "how much the loss falls behind rows of the target",
        "run.ways:by_shown",
        probes=("weighted",),
        options=("shown",),
    ),
}
"""{name: how}. One function and one line here add a way."""


def find_by(name: str) -> By:
    """The way to compare of this name.

    Raises:
        InputError: there is none.
    """
    if name not in BY:
        raise InputError(f"unknown --by {name!r}.{suggestion(name, BY)} Known: {', '.join(BY)}.")
    return BY[name]


def options_of(by: str, config: TargetConfig) -> dict[str, Any]:
    """The options that decide what a way to compare finds.

    Raises:
        InputError: there is no such way, an option is of another one, or its value makes no sense.
    """
    how = find_by(by)
    for name in OPTIONS:
        value, flag = getattr(config, name), f"--{name.replace('_', '-')}"
        if value != getattr(TargetConfig(), name) and name not in how.options:
            owner = next(other for other, one in BY.items() if name in one.options)
            raise InputError(f"{flag} {value} is for --by {owner}, and the comparison is by {by}. Leave it out.")
        if value < OPTIONS[name]:
            raise InputError(f"{flag} {value}: at least {OPTIONS[name]} is needed.")
    return {name: getattr(config, name) for name in how.options}


NAME = re.compile(r"[^\W_][\w.-]*")
"""Of a task: it is that of a folder too."""


def tasks_of(config: TargetConfig, kind: str | None) -> dict[str, str]:
    """{task: file} of a target, for rows of a kind.

    Raises:
        InputError: there is none, the rows are labelled pictures, or as `named_files`.
    """
    if kind == IMAGES:
        raise InputError("--target: the rows are labelled pictures, and a target is of texts. Leave it out.")
    if not config.target:
        raise InputError("--target is missing: name a file of rows that show what the model should become good at.")
    return named_files(config.target, "--target")


def named_files(named: Sequence[str], option: str) -> dict[str, str]:
    """{name: file} of FILE or NAME=FILE.

    Args:
        named: as the user wrote them.
        option: where, for messages.

    Raises:
        InputError: a name is used twice or cannot be that of a folder, or a file is not there.
    """
    found: dict[str, str] = {}
    for text in named:
        name, sign, path = text.partition("=")
        if Path(text).expanduser().exists() or not sign:
            name, path = Path(text).name.partition(".")[0] or "target", text
        if name in found:
            raise InputError(f"{option}: two tasks are called {name!r}. Name them: {option} math=a.jsonl code=b.jsonl.")
        if not NAME.fullmatch(name):
            raise InputError(
                f"{option} {text}: the name of a task has letters, digits, '_', '-' and '.', and begins with a letter or digit. "
                f"Name it otherwise, as in: {option} math={path}"
            )
        if not Path(path).expanduser().is_file():
            folder = " (it is a folder)" if Path(path).expanduser().is_dir() else ""
            raise InputError(f"{option} {text}: there is no such file{folder}.")
        found[name] = path
    return found
