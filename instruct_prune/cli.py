"""``instruct-prune``: subcommands. A room is imported only inside the command that needs it."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from instruct_prune import __version__
from instruct_prune.errors import IncompleteRunError, InputError

if TYPE_CHECKING:
    from instruct_prune.run.folder import RunFolder

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (configuration class, one line)
    "run": ("RunConfig", "from a dataset file to a pruned dataset file, in one go"),
    "score": ("ScoreCommand", "score every row by its loss under subnets of the model (resumes when run again)"),
    "embed": ("EmbedCommand", "embed the rows of a scored run"),
    "select": ("SelectCommand", "select within an exact budget from a scored run; no model needed"),
    "export": ("ExportCommand", "write the kept rows of a selection, also in trainers' formats"),
    "report": ("ReportCommand", "write report.html: what was kept, what was dropped and why"),
    "show": ("ShowCommand", "the same in the terminal, in short"),
    "inspect": ("InspectCommand", "look at a dataset before an hour is spent: what will be scored?"),
    "compare": ("CompareCommand", "put selections side by side, with random at the same budget"),
    "correlate": ("CorrelateCommand", "rank correlation between the scores of runs"),
}

HELP = """\
usage: instruct-prune COMMAND [options]

Find the part of an instruction-tuning dataset worth training on, without training.

commands:
{commands}

every command:
  --help               its options
  --config FILE.yaml   options from a file (flags win over the file)
  --print-config       print the effective options as YAML and exit
  --version            print the version

example:
  instruct-prune run --data alpaca.jsonl --keep 0.3 --out RUN
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 incomplete, 2 wrong input, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items())))
        return 0 if words else 2
    if words[0] == "--version":
        print(f"instruct-prune {__version__}")
        return 0
    try:
        return _command(words[0], words[1:])
    except InputError as error:
        return _fail("error", str(error), 2)
    except IncompleteRunError as error:
        return _fail("incomplete", str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", "finished parts are kept; run the same command again to go on.", 130)
    except BrokenPipeError:
        # The reader of our output has gone (| head): not an error, and nothing more can be told to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def console_script() -> None:
    """Entry point: exit at once with the code, also when another process of the run has died."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Tearing down a process group whose members are gone can hang or abort with a trace.
        os._exit(code)
    sys.exit(code)


def _fail(kind: str, text: str, code: int) -> int:
    from instruct_prune.terminal import safe

    if os.environ.get("RANK", "0") == "0" or kind == "interrupted":  # one voice, however many processes
        print(f"instruct-prune: {kind}: {safe(text)}", file=sys.stderr, flush=True)
    return code


def _command(name: str, words: list[str]) -> int:
    from instruct_prune.registry import suggestion

    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}.{suggestion(name, COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    # Importing torch and transformers makes millions of objects that stay: looking through them for garbage after every
    # 700 takes half a second of the start.
    gc.set_threshold(100_000, 50, 50)
    config = _parse(name, words)
    if config is None:
        return 0
    # What is wrong with a picture is told in rejected.jsonl; a line of Pillow's source for each would bury that.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return ACTIONS[name](config)


def _parse(name: str, words: list[str]) -> Any:
    """The command's configuration from YAML and flags; None when it was only printed."""
    import tyro

    from instruct_prune import config as schema

    kind: type[Any] = getattr(schema, COMMANDS[name][0])
    words, path = _take_value(words, "--config")
    if words and not words[0].startswith("-") and "runs" in kind.__dataclass_fields__:
        words = ["--runs", *words]  # instruct-prune compare RUN_A RUN_B
    printing = "--print-config" in words
    words = [word for word in words if word != "--print-config"]
    default = schema.load_yaml(path, kind) if path is not None else kind()
    config: Any = tyro.cli(
        kind,
        prog=f"instruct-prune {name}",
        args=words,
        default=default,
        description=COMMANDS[name][1],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if not printing:
        return config
    import yaml

    print(yaml.safe_dump(schema.flatten(config), sort_keys=False, allow_unicode=True), end="")
    return None


def _take_value(words: list[str], option: str) -> tuple[list[str], str | None]:
    for i, word in enumerate(words):
        if word.startswith(option + "="):
            return words[:i] + words[i + 1 :], word.partition("=")[2]
        if word == option:
            if i + 1 == len(words):
                raise InputError(f"{option} needs a file name.")
            return words[:i] + words[i + 2 :], words[i + 1]
    return words, None


def _run(config: Any) -> int:
    from instruct_prune.report.summary import print_summary
    from instruct_prune.run.folder import open_run
    from instruct_prune.run.pipeline import run
    from instruct_prune.run.records import ExportFacts

    if run(config) is not None:
        folder = open_run(config.run.out)
        print_summary(folder)
        if config.export.to:
            print("\n".join(folder.facts(ExportFacts).told))
    return 0


def _score(config: Any) -> int:
    from instruct_prune.report.summary import print_score_summary
    from instruct_prune.run.folder import open_run
    from instruct_prune.run.score import score

    folder = open_run(config.run.out)
    if score(folder, config.data, config.encode, config.score) is not None:
        print_score_summary(folder)
    return 0


def _embed(config: Any) -> int:
    from instruct_prune.run.embed import embed
    from instruct_prune.run.folder import existing_run

    folder = existing_run(config.run.out)
    embed(folder, config.embed, config.restart)
    print(f"embeddings: {folder / 'embeddings.npy'}. Next: instruct-prune select --out {folder.path} --keep 0.3")
    return 0


def _select(config: Any) -> int:
    from instruct_prune.report.summary import print_selection
    from instruct_prune.run.folder import existing_run
    from instruct_prune.run.select import select

    folder = existing_run(config.run.out)
    select(folder, config.select)
    print_selection(folder)
    print(f"Next: instruct-prune export --out {folder.path}")
    return 0


def _export(config: Any) -> int:
    from instruct_prune.run.export import export
    from instruct_prune.run.folder import existing_run
    from instruct_prune.run.records import ExportFacts

    folder = existing_run(config.run.out)
    export(folder, config.export)
    print(f"kept rows: {folder / 'pruned.jsonl'}")
    for line in folder.facts(ExportFacts).told:
        print(line)
    return 0


def _inspect(config: Any) -> int:
    from rich.console import Console

    from instruct_prune.run.inspect import inspect

    inspect(config).print(Console())
    return 0


def _compare(config: Any) -> int:
    from instruct_prune.report.compare import comparison_tables
    from instruct_prune.run.compare import compare

    _print_tables(comparison_tables(compare(_run_folders(config.runs), config.seed)))
    return 0


def _correlate(config: Any) -> int:
    from instruct_prune.report.compare import correlate, correlation_tables, score_columns
    from instruct_prune.run.records import ScoreFacts

    folders = _run_folders(config.runs)
    for folder in folders:
        folder.require(ScoreFacts)
    columns = score_columns({f.path.name: f.read_scores() for f in folders})
    _print_tables(correlation_tables(correlate(columns, config.top)))
    return 0


def _report(config: Any) -> int:
    from instruct_prune.run.pipeline import report

    folders = _run_folders(((config.out,) if config.out else ()) + config.runs)
    print(f"report: {report(folders[0], folders[1:], config.samples)}")
    return 0


def _show(config: Any) -> int:
    from instruct_prune.report.show import show
    from instruct_prune.run.rows import rows_of

    for folder in _run_folders(config.runs):
        show(folder, rows_of(folder))
    return 0


def _print_tables(tables: Sequence[Any]) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)


def _run_folders(paths: Sequence[str]) -> list[RunFolder]:
    from instruct_prune.run.folder import existing_run

    if not paths:
        raise InputError("name at least one run folder.")
    return [existing_run(path) for path in paths]


ACTIONS: dict[str, Callable[[Any], int]] = {
    "run": _run,
    "score": _score,
    "embed": _embed,
    "select": _select,
    "export": _export,
    "report": _report,
    "show": _show,
    "inspect": _inspect,
    "compare": _compare,
    "correlate": _correlate,
}
