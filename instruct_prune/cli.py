"""``instruct-prune``: subcommands. A room is imported only inside the command that needs it."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from types import FrameType
from typing import Any

from instruct_prune import __version__
from instruct_prune.errors import IncompleteRunError, InputError, TerminatedError, of_the_disk
from instruct_prune.menu import COMMANDS, HELP, RESTART, Command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 incomplete, 2 wrong input, 130 or 143 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<10} {each.about}" for name, each in COMMANDS.items())))
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"instruct-prune {__version__}")
        return 0
    words = _split(words)
    again = "run the same command again" + (" without --restart" if "--restart" in words else "")
    try:
        try:
            with _terminable():
                return _command(words[0], words[1:])
        except BrokenPipeError:
            raise
        except OSError as error:
            raise of_the_disk(error) or error from error
    except InputError as error:
        return _fail("error", str(error), 2)
    except IncompleteRunError as error:
        return _fail("incomplete", str(error).replace("run the same command again", again), error.code)
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, TerminatedError)
        told = f"{'stopped by SIGTERM; ' if terminated else ''}what is finished is kept; {again} to go on."
        return _fail("interrupted", told, 143 if terminated else 130)
    except BrokenPipeError:
        # Whoever read our output has stopped reading, as `head` does. That is no error, and output that is left is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, in words (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def console_script() -> None:
    """Entry point: exit at once with the code, also when another process of the run has died."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Tearing down a process group whose members are gone can hang or abort with a trace.
        os._exit(code)
    sys.exit(code)


def _is_main() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _fail(kind: str, text: str, code: int) -> int:
    from instruct_prune.terminal import safe

    if _is_main() or kind == "interrupted":  # of several processes, one tells it
        print(f"instruct-prune: {kind}: {safe(text)}", file=sys.stderr, flush=True)
    return code


def _command(name: str, words: list[str]) -> int:
    from instruct_prune import progress
    from instruct_prune.config_file import take_flags
    from instruct_prune.registry import load_attribute, suggestion

    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}.{suggestion(name, COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    # Importing torch and transformers makes millions of objects that stay: looking through them for garbage after every
    # 700 takes half a second of the start.
    gc.set_threshold(100_000, 50, 50)
    given, words = take_flags(words, ("--print-config",), ("--json",), ("--quiet", "-q"))
    config = _parse(name, command, words, given.config, given.print_config)
    if config is None or not (command.everywhere or _is_main()):
        return 0
    progress.be_quiet(given.quiet)
    # What is wrong with a picture is told in rejected.jsonl; a line of Pillow's source for each would bury that.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    outcome = load_attribute(f"instruct_prune.{command.action}", name)(config)
    if outcome is not None and given.json:
        print(json.dumps(outcome.data(), ensure_ascii=False, default=str))
    elif outcome is not None and not given.quiet:
        outcome.show()
    return 0


def _parse(name: str, command: Command, words: list[str], path: str | None, printing: bool) -> Any:
    """The command's configuration from YAML and flags; None when it was only printed."""
    import tyro

    from instruct_prune.config_file import flatten, load_yaml
    from instruct_prune.registry import load_attribute

    kind: type[Any] = load_attribute(f"instruct_prune.{command.options}", name)
    words = _as_flags(name, command, _restarted(name, words))
    default = load_yaml(path, kind) if path is not None else kind()
    try:
        with _without_colour() if os.environ.get("NO_COLOR") else nullcontext():
            config: Any = tyro.cli(
                kind,
                prog=f"instruct-prune {name}",
                args=words,
                default=default,
                description=command.about,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as end:
        if end.code in (0, None):
            print("examples:\n" + "\n".join(f"  instruct-prune {example}" for example in command.examples))
        raise
    if not printing:
        return config
    import yaml

    print(yaml.safe_dump(flatten(config), sort_keys=False, allow_unicode=True), end="")
    return None


@contextmanager
def _without_colour() -> Iterator[None]:
    """What is written goes by way of a buffer, which is no terminal: tyro does not know NO_COLOR (https://no-color.org)."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        sys.stdout.write(out.getvalue())
        sys.stderr.write(err.getvalue())


def _split(words: list[str]) -> list[str]:
    """``--out=RUN`` as ``--out RUN``; so with the other options whose values are looked at before tyro reads them."""
    ours = ("--out=", "--keep=", "--restart=")
    return [part for word in words for part in (word.split("=", 1) if word.startswith(ours) else [word])]


def _as_flags(name: str, command: Command, words: list[str]) -> list[str]:
    """Words in front as the flags that they stand for: `select RUN --keep 30%` is `select --out RUN --keep 0.3`."""
    from instruct_prune.config_file import percent

    first = next((i for i, word in enumerate(words) if word.startswith("-") and word != "-"), len(words))
    front, rest = words[:first], words[first:]
    if command.takes == ("runs*",):
        rest = ["--runs" if word == "--out" else word for word in rest]
    flags: list[str] = []
    for option in command.takes:
        taken, front = (front, []) if option.endswith("*") else (front[:1], front[1:])
        if taken:
            flags += ["--" + option.removesuffix("*"), *taken]
    if front:
        hint = "Options begin with --: the data are named by --data, the run folder by --out."
        raise InputError(f"{name}: what is {front[0]!r}? {hint if not command.takes else ''}".strip())
    if "--out" in flags and "--out" in rest:
        raise InputError(f"{name}: the run folder is named twice, as {flags[1]!r} and by --out.")
    for i, word in enumerate(rest):
        if word == "--keep" and i + 1 < len(rest):
            rest[i + 1] = str(percent(rest[i + 1]))
    return flags + rest


def _restarted(name: str, words: list[str]) -> list[str]:
    """``--restart`` with its stage: `embed` has one, the others must be told."""
    if "--restart" not in words:
        return words
    after = words.index("--restart") + 1
    if after < len(words) and not words[after].startswith("-"):
        return words
    if name != "embed":
        raise InputError(RESTART)
    return [*words[:after], "embed", *words[after:]]
