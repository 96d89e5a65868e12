"""What there is to choose from, one line each: methods, scores, subnets, formats, exports; and completion for shells."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instruct_prune.commands import Outcome
from instruct_prune.config import Texts
from instruct_prune.menu import COMMANDS
from instruct_prune.plugin import Plugin

OWN = "your own, as package.module:NAME (docs/extending.md)"


@dataclass(frozen=True)
class ListCommand:
    """What there is."""


@dataclass(frozen=True)
class OwnCommand:
    """What there is, and what you add."""

    own: Texts = ()
    """Your own beside them, as package.module:function."""


@dataclass(frozen=True)
class CompletionCommand:
    """A completion script."""

    shell: Literal["bash", "zsh"] = "bash"
    """For which shell."""


def methods(command: OwnCommand) -> Outcome:
    from instruct_prune.select.methods import METHODS, find_method

    found = [find_method(name) for name in (*METHODS, *command.own)]
    return _listed([_line(m.name, m.about, needs=_names(m.needs), parameters=_parameters(m)) for m in found])


def scores(command: OwnCommand) -> Outcome:
    from instruct_prune.score.scores import SCORES, find_score

    found = [find_score(name) for name in (*SCORES, *command.own)]
    return _listed([_line(s.name, s.about, needs=_names(s.needs)) for s in found])


def subnets(command: ListCommand) -> Outcome:
    from instruct_prune.measure.ladder import FAMILIES, PRESETS
    from instruct_prune.models import MODELS
    from instruct_prune.registry import resolve

    lines = [_line(name, p.about, subnets=" ".join(p.subnets), score=p.score) for name, p in PRESETS.items()]
    for kind in MODELS:
        for name, p in resolve(MODELS, kind, "kind of model").ladders.items():
            lines.append(_line(name, p.about, subnets=" ".join(p.subnets), score=p.score, rows=kind))
    return _listed(lines + [_line(name, about) for name, about in FAMILIES.items()])


def formats(command: ListCommand) -> Outcome:
    from instruct_prune.rows.formats import FORMATS

    found = FORMATS.values()
    return _listed([_line(f.name, "fields " + " and ".join(" or ".join(g) for g in f.needs)) for f in found])


def exports(command: ListCommand) -> Outcome:
    from instruct_prune.export import EXPORTS, exporters_of

    found = exporters_of(list(EXPORTS)).items()
    return _listed([_line(name, " ".join((inspect.getdoc(f) or "").partition("\n\n")[0].split())) for name, f in found])


def completion(command: CompletionCommand) -> Outcome:
    """Of the commands, their options, and files."""
    script = completion_script(command.shell)
    return Outcome(lambda: print(script, end=""), lambda: {"script": script})


def completion_script(shell: str) -> str:
    """Source text for a shell that completes commands and options, and file names for everything else."""
    from instruct_prune.config_file import flatten
    from instruct_prune.registry import load_attribute

    cases = []
    for name, command in COMMANDS.items():
        options = flatten(load_attribute(f"instruct_prune.{command.options}", name)())
        flags = ["--" + option.replace("_", "-") for option in options]
        cases.append(f"    {name}) words='{' '.join([*flags, *COMMON])}' ;;")
    script = BASH.format(commands=" ".join(COMMANDS), cases="\n".join(cases))
    return "autoload -U +X bashcompinit && bashcompinit\n" + script if shell == "zsh" else script


COMMON = ("--help", "--config", "--print-config", "--quiet", "--json")
BASH = """\
_instruct_prune() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=''
  if [ "$COMP_CWORD" -eq 1 ]; then words='{commands}'; else
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _instruct_prune instruct-prune
"""


def _names(needs: Any) -> str:
    return "depends on its parameters" if callable(needs) else ", ".join(needs) or "nothing"


def _parameters(found: Plugin) -> str:
    each = found.parameters.values()
    return ", ".join(p.name if p.required else f"{p.name}={p.default} ({p.takes})" for p in each)


def _line(name: str, about: str, **more: str) -> dict[str, str]:
    return {"name": name, "about": about.replace("`", ""), **{key: value for key, value in more.items() if value}}


def _listed(lines: Sequence[dict[str, str]]) -> Outcome:
    def show() -> None:
        width = max(len(line["name"]) for line in lines) + 2
        for line in lines:
            print(f"{line['name']:<{width}}{line['about']}")
            rest = "; ".join(f"{key}: {value}" for key, value in line.items() if key not in ("name", "about"))
            for piece in textwrap.wrap(rest, 110 - width):
                print(" " * width + piece)
        print(f"{'':<{width}}and {OWN}")

    return Outcome(show, lambda: list(lines))
