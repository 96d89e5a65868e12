"""Messages advise options and commands that exist, and that belong to what they speak of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import instruct_prune
from instruct_prune.config_file import flatten
from instruct_prune.menu import COMMANDS
from instruct_prune.registry import load_attribute

ROOT = Path(instruct_prune.__file__).parent
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
COMMAND = re.compile(r"instruct-prune ([a-z]+)([^`\n]*)")
ALWAYS = {"--config", "--print-config", "--help", "--version", "--quiet", "--json"}
OF_OTHER_TOOLS = {
    "--no-deps": "pip",
    "--multi_gpu": "accelerate launch",
    "--num_processes": "accelerate launch",
    "--long": "zstd",
    "--text": "embedding-atlas",
    "--x": "embedding-atlas",
    "--y": "embedding-atlas",
}


def options(name: str) -> set[str]:
    """Of a class of options, in the notation of the command line."""
    kind = load_attribute(f"instruct_prune.{name}", "options")
    return ALWAYS | {"--" + key.replace("_", "-") for key in flatten(kind())}


OF_COMMAND = {name: options(command.options) for name, command in COMMANDS.items()}
SCORING = OF_COMMAND["score"] | OF_COMMAND["inspect"]
OF_ROOM = {
    # What a room speaks of: --split is FlexRand's, so a message about data means --data-split.
    "rows": SCORING,
    "encode": SCORING,
    "models": SCORING | {"--embedder"},
    "measure": SCORING,
    "score": SCORING | OF_COMMAND["select"],
    "select": SCORING | OF_COMMAND["select"] | OF_COMMAND["target"],
    "export": SCORING | OF_COMMAND["export"],
}


def recipes_options() -> set[str]:
    """Fields of the dataclasses that training recipes take their options from."""
    paths = [*(ROOT / "train").glob("*.py"), *(ROOT.parent / "recipes").glob("*.py")]
    fields = (
        field.target.id
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )
    return {"--" + name.replace("_", "-") for name in fields}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string, those in f-strings put together with X for what is filled in."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(piece) for piece in node.values}
            pieces = (str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)
            yield node.lineno, "".join(pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


@pytest.mark.parametrize("name", FILES)
def test_options_in_messages_exist(name: str) -> None:
    room = name.partition("/")[0]
    every = set().union(*OF_COMMAND.values())
    known = OF_ROOM.get(room, every) | set(OF_OTHER_TOOLS)
    if room == "train" or name == "api.py":  # what recipes say
        known = known | recipes_options()
    for line, text in texts(FILES[name]):
        for command, words in COMMAND.findall(text):
            if command in COMMANDS:
                assert set(OPTION.findall(words)) <= OF_COMMAND[command], f"{name}, line {line}: {text}"
        unknown = set(OPTION.findall(COMMAND.sub("", text))) - known
        assert not unknown, f"{name}, line {line}: {unknown} in {text!r}"


def test_commands_in_messages_exist() -> None:
    named = {command for path in FILES.values() for _, text in texts(path) for command in COMMAND.findall(text)}
    assert {"score", "select", "export"} <= {command for command, _ in named if command in COMMANDS}
    assert sorted({command for command, _ in named} - set(COMMANDS)) == []


def test_the_test_reads_what_messages_say(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('def f(x):\n    raise InputError(f"{x} --nosuch-option " "and --data", 1)\n')
    assert [set(OPTION.findall(text)) for _, text in texts(tmp_path / "a.py")] == [{"--nosuch-option", "--data"}]
