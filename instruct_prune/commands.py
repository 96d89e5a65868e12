"""What each subcommand does, and what it tells at its end: in words, or as data for ``--json``."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from instruct_prune.command_options import (
    CompareCommand,
    CorrelateCommand,
    EmbedCommand,
    ExportCommand,
    InspectCommand,
    ReportCommand,
    ScoreCommand,
    SelectCommand,
    ShowCommand,
    TargetCommand,
)
from instruct_prune.config import RunConfig
from instruct_prune.errors import InputError
from instruct_prune.run.folder import RunFolder, existing_run, open_run
from instruct_prune.run.records import STAGES, ExportFacts, Record
from instruct_prune.storage import json_able
from instruct_prune.terminal import tell

if TYPE_CHECKING:
    from instruct_prune.prove.config import ProveConfig
    from instruct_prune.shipped import DemoCommand, RecipeCommand


@dataclass(frozen=True)
class Outcome:
    """What a command tells at its end.

    Attributes:
        show: prints it for people.
        data: the same, JSON-able.
    """

    show: Callable[[], object]
    data: Callable[[], Any]


def run(config: RunConfig) -> Outcome | None:
    from instruct_prune.run.check import check_run

    source = check_run(config)
    from instruct_prune.report.summary import print_summary
    from instruct_prune.run.pipeline import run as whole_way

    if whole_way(config, source) is None:
        return None

    folder = open_run(config.run.out)

    def show() -> None:
        print_summary(folder)
        if config.export.to:
            tell("\n".join(folder.facts(ExportFacts).told))

    return _of_run(folder, show)


def score(config: ScoreCommand) -> Outcome | None:
    from instruct_prune.run.check import check_score

    if config.score.restart == "embed":
        raise InputError(
            "score does not embed. Say it to the command that does: instruct-prune embed RUN --restart embed."
        )
    source = check_score(config.run.out, config.data, config.encode, config.score)
    from instruct_prune.report.summary import print_score_summary
    from instruct_prune.run.score import Scoring

    folder = open_run(config.run.out)
    if Scoring(folder, config.data, config.encode, config.score, source=source).run() is None:
        return None
    return _of_run(folder, lambda: print_score_summary(folder))


def embed(config: EmbedCommand) -> Outcome:
    from instruct_prune.run.check import check_embedder

    folder = existing_run(config.run.out)
    check_embedder(config.embed)
    from instruct_prune.run.embed import embed as stage

    stage(folder, config.embed, config.restart is not None)
    told = f"embeddings: {folder / 'embeddings.npy'}. Next: instruct-prune select {folder.path} --keep 30%"
    return _of_run(folder, lambda: tell(told))


def target(config: TargetCommand) -> Outcome:
    from instruct_prune.run.target import target as stage

    folder = existing_run(config.run.out)
    stage(folder, config.target, config.by)
    by = "" if config.by is None else f" --by {config.by}"
    told = f"target: {folder / 'targets'}. Next: instruct-prune select {folder.path} --keep 30%{by}"
    return _of_run(folder, lambda: tell(told))


def select(config: SelectCommand) -> Outcome:
    from instruct_prune.report.summary import print_selection
    from instruct_prune.run.select import select as stage

    folder = existing_run(config.run.out)
    stage(folder, config.select)

    def show() -> None:
        print_selection(folder)
        tell(f"Next: instruct-prune export {folder.path}")

    return _of_run(folder, show)


def prove(config: ProveConfig) -> Outcome | None:
    from instruct_prune.run.prove import prove as stage

    folder = existing_run(config.out)
    found = stage(folder, config)
    if found is None:
        return None

    from instruct_prune.report.proof import print_proof

    return Outcome(lambda: print_proof(found, folder.path), lambda: found)


def export(config: ExportCommand) -> Outcome:
    from instruct_prune.run.check import check_export

    folder = existing_run(config.run.out)
    check_export(config.export)
    from instruct_prune.run.export import export as stage

    stage(folder, config.export)

    def show() -> None:
        tell(f"kept rows: {folder / 'pruned.jsonl'}")
        for line in folder.facts(ExportFacts).told:
            tell(line)

    return _of_run(folder, show)


def inspect(config: InspectCommand) -> Outcome:
    from rich.console import Console

    from instruct_prune.run.inspect import inspect as look

    return Outcome(lambda: look(config).print(Console()), _no_data("inspect"))


def show(config: ShowCommand) -> Outcome:
    from instruct_prune.report.show import show as show_run
    from instruct_prune.run.rows import rows_of

    folders = _run_folders(config.runs)

    def show_all() -> None:
        for folder in folders:
            show_run(folder, rows_of(folder))

    return Outcome(show_all, lambda: [_state(folder) for folder in folders])


def report(config: ReportCommand) -> Outcome:
    from instruct_prune.run.pipeline import report as write

    folders = _run_folders(((config.out,) if config.out else ()) + config.runs)
    path = write(folders[0], folders[1:], config.samples)
    return Outcome(lambda: tell(f"report: {path}"), lambda: {"report": str(path)})


def compare(config: CompareCommand) -> Outcome:
    from instruct_prune.report.compare import comparison_tables
    from instruct_prune.run.compare import compare as side_by_side

    return _tables(comparison_tables(side_by_side(_run_folders(config.runs), config.seed)))


def correlate(config: CorrelateCommand) -> Outcome:
    from instruct_prune.report.compare import correlate as ranks
    from instruct_prune.report.compare import correlation_tables
    from instruct_prune.run.compare import columns_of

    return _tables(correlation_tables(ranks(columns_of(_run_folders(config.runs)), config.top)))


def recipe(config: RecipeCommand) -> Outcome:
    from instruct_prune.shipped import copy_recipe, recipes

    if not config.name:
        found = recipes()
        told = [f"{name:<26} {about}" for name, (_, about) in found.items()]
        told.append("\nCopy one into the working folder: instruct-prune recipe NAME")
        return Outcome(lambda: print("\n".join(told)), lambda: {name: about for name, (_, about) in found.items()})
    path = copy_recipe(config.name, config.to)
    return Outcome(lambda: tell(f"copied: {path}"), lambda: {"copied": str(path)})


def demo(config: DemoCommand) -> Outcome | None:
    """The packaged samples, what became of the rows that were planted among them, and whether the kept ones are worth more than others."""
    from instruct_prune.shipped import demo_proof, planted_report

    done = run(config)
    if done is None:
        return None
    proof = prove(demo_proof(config.run.out))
    if proof is None:
        return None
    report(ReportCommand(config.run.out))  # once more, with the proof

    def show_all() -> None:
        done.show()
        print(planted_report(config.run.out))
        proof.show()

    return Outcome(show_all, lambda: {**done.data(), "proof": proof.data()})


def _of_run(folder: RunFolder, show: Callable[[], object]) -> Outcome:
    return Outcome(show, lambda: _state(folder))


def _state(folder: RunFolder) -> dict[str, Any]:
    """Where a run lies, and the facts of its stages that are finished and fresh."""
    stages = {}
    for kind in STAGES:
        record: Record[Any] | None = folder.find(kind)
        if record is not None and record.facts is not None:
            stages[kind.stage] = json_able(dataclasses.asdict(record.facts))
    files = sorted(path.name for path in folder.path.iterdir() if path.is_file() and not path.name.startswith("."))
    return {"out": os.path.abspath(folder.path), "stages": stages, "files": files}


def _no_data(name: str) -> Callable[[], Any]:
    def refuse() -> Any:
        raise InputError(f"{name} shows text for people and has no --json.")

    return refuse


def _tables(tables: Sequence[Any]) -> Outcome:
    """Tables of rich; as data, a list of rows for each, {heading: cell}."""

    def show_all() -> None:
        from rich.console import Console

        console = Console(file=sys.stdout)
        for table in tables:
            console.print(table)

    def data() -> list[dict[str, Any]]:
        found = []
        for table in tables:
            headings = [str(column.header) for column in table.columns]
            cells = zip(*(column.cells for column in table.columns), strict=True)
            rows = [dict(zip(headings, map(str, row), strict=True)) for row in cells]
            found.append({"title": str(table.title), "rows": rows})
        return found

    return Outcome(show_all, data)


def _run_folders(paths: Sequence[str]) -> list[RunFolder]:
    if not paths:
        raise InputError("name at least one run folder.")
    return [existing_run(path) for path in paths]
