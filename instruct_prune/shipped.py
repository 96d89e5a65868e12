"""Recipes, configurations and samples, which come with the package: listed, copied and run."""

from __future__ import annotations

import contextlib
import io
import runpy
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from instruct_prune.config import DataConfig, Name, Out, RunConfig, ScoreConfig, SelectConfig, TargetConfig
from instruct_prune.errors import InputError
from instruct_prune.prove.config import LEAST_RANDOM, ProveConfig
from instruct_prune.registry import suggestion

HERE = Path(__file__).parent / "share"
KINDS = (".py", ".yaml", ".sbatch")


@dataclass(frozen=True)
class RecipeCommand:
    """Recipes are scripts to copy and change; each needs only the installed package."""

    name: Name = ""
    """Which one to copy; all are listed when not given."""
    to: str = "."
    """The folder to copy it into."""


def shipped(*names: str) -> Path:
    """A file or folder that comes with the package: inside it when installed, beside it in a clone.

    Raises:
        InputError: it is missing.
    """
    for root in (HERE, HERE.parents[1]):
        path = root.joinpath(*names)
        if path.exists():
            return path
    raise InputError(
        f"{'/'.join(names)} did not come with this installation of instruct-prune. Install its wheel anew."
    )


@dataclass(frozen=True)
class DemoCommand(RunConfig):
    """120 rows of the packaged samples, a fifth of them kept towards ten rows of Python code, and a small proof of what that is worth."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig((str(shipped("data_samples", "alpaca.jsonl")),), limit=120)
    )
    score: ScoreConfig = field(default_factory=lambda: ScoreConfig(subnets=("magnitude:1.0,0.8",)))
    target: TargetConfig = field(
        default_factory=lambda: TargetConfig((f"code={shipped('data_samples', 'target_code.jsonl')}",))
    )
    select: SelectConfig = field(default_factory=lambda: SelectConfig(keep=0.2, dedup=0.9))
    run: Out = field(default_factory=lambda: Out("demo_run"))


def demo_proof(run: str) -> ProveConfig:
    """As small as a proof can be, so that it ends within some two minutes: one learning rate, one epoch, the fewest random arms."""
    return ProveConfig(
        out=run,
        test=(f"code={shipped('data_samples', 'test_code.jsonl')}",),
        rules=("selection",),
        epochs=1,
        learning_rates=(2e-3,),
        random_arms=LEAST_RANDOM,
        rule_arms=2,
        extras=(),
        held_out=10,
    )


def recipes() -> dict[str, tuple[Path, str]]:
    """{name: (file, its first sentence)}: "lora", "configs/llama3-8b", "slurm/score"."""
    root = shipped("recipes")
    found = sorted(p for p in root.rglob("*") if p.suffix in KINDS and p.parent.name != "benchmarks")
    return {path.relative_to(root).with_suffix("").as_posix(): (path, _about(path)) for path in found}


def copy_recipe(name: str, to: str) -> Path:
    """Copy one into a folder; nothing is overwritten.

    Raises:
        InputError: there is no such recipe, the file is there already, or it cannot be written.
    """
    known = recipes()
    short = {key.rpartition("/")[2]: key for key in reversed(known)}  # where two share a name, the script is meant
    name = name if name in known else short.get(Path(name).stem, name)
    if name not in known:
        raise InputError(f"unknown recipe {name!r}.{suggestion(name, [*known, *short])} Known: {', '.join(known)}.")
    source = known[name][0]
    target = Path(to) / source.name
    if target.exists():
        raise InputError(
            f"{target} is there already, and was not overwritten. Move it, or copy into another folder with --to."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(f"--to {to}: {target} cannot be written: {error.strerror}.") from None
    return target


def planted_report(run: str) -> str:
    """What became of the rows that were planted among the samples, as recipes/demo_report.py says it."""
    arguments, told = sys.argv, io.StringIO()
    sys.argv = ["demo_report.py", run, str(shipped("data_samples", "alpaca_key.json"))]
    try:
        with contextlib.redirect_stdout(told):
            runpy.run_path(str(shipped("recipes", "demo_report.py")), run_name="__main__")
    finally:
        sys.argv = arguments
    return told.getvalue()


def _about(path: Path) -> str:
    """The first sentence of a recipe's docstring, or of the comment at the top of a configuration."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.lstrip('#"! ').strip()
        if text and not line.startswith("#!"):
            return text.partition(". ")[0].removesuffix(".")
    return ""
