"""The subcommands of ``instruct-prune``: what each takes and does, in one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        options: the dataclass of its options, "module:Class" in this package.
        action: what it does, "module:function": takes the options, returns a `commands.Outcome`, or None where there is
            nothing to tell.
        about: one line.
        examples: words after ``instruct-prune``.
        takes: the options that words in front stand for, one each; the last of them takes all that are left ("runs*").
        everywhere: every process that was launched works; else the main one alone.
    """

    options: str
    action: str
    about: str
    examples: tuple[str, ...]
    takes: tuple[str, ...] = ()
    everywhere: bool = False


COMMANDS: dict[str, Command] = {
    "run": Command(
        "config:RunConfig", "commands:run", "from a dataset file to a pruned dataset file, in one go",
        (
            "run --data alpaca.jsonl --keep 30% --out RUN",
            "run --data alpaca.jsonl --model Qwen/Qwen3-0.6B --keep 5000 --dedup 0.95 --to trl --out RUN",
        ),
        everywhere=True,
    ),
    "inspect": Command(
        "command_options:InspectCommand", "commands:inspect", "read a dataset and show what would be scored; nothing is written",
        ("inspect alpaca.jsonl", "inspect questions.csv --columns instruction=question output=answer"), ("data*",),
    ),
    "score": Command(
        "command_options:ScoreCommand", "commands:score", "score every row under subnets of the model (resumes when run again)",
        (
            "score --data alpaca.jsonl --out RUN",
            "score --data alpaca.jsonl --subnets magnitude:1.0,0.8 --dry-run --out RUN",
            "score --data alpaca.jsonl --subnets ifd --restart score --out RUN",
        ),
        everywhere=True,
    ),
    "embed": Command(
        "command_options:EmbedCommand", "commands:embed", "embed the rows of a scored run",
        ("embed RUN", "embed RUN --embedder model --restart embed"), ("out",),
    ),
    "target": Command(
        "command_options:TargetCommand", "commands:target", "measure rows that show what the model should become good at",
        ("target RUN --target math=gsm8k_dev.jsonl code=code_dev.jsonl", "target RUN --target dev.jsonl --by rds"), ("out",),
    ),
    "select": Command(
        "command_options:SelectCommand", "commands:select", "select within an exact budget from a scored run; no model needed",
        ("select RUN --keep 30%", "select RUN --keep 5000 --method hardest --dedup 0.95"), ("out",),
    ),
    "prove": Command(
        "prove.config:ProveConfig", "commands:prove", "is the selection worth more than random rows? train on both, and judge",
        (
            "prove RUN --test math=gsm8k_test.jsonl --budget-minutes 60",
            "prove RUN --rules flexrand targeted:rds hardest longest --train-model Qwen/Qwen3-0.6B --budget-minutes 600",
        ),
        ("out",), everywhere=True,
    ),
    "export": Command(
        "command_options:ExportCommand", "commands:export", "write the kept rows of a selection, also in trainers' formats",
        ("export RUN", "export RUN --to trl llamafactory axolotl"), ("out",),
    ),
    "report": Command(
        "command_options:ReportCommand", "commands:report", "write report.html: what was kept, what was dropped and why",
        ("report RUN", "report RUN OTHER_RUN --samples 1000"), ("out", "runs*"),
    ),
    "show": Command("command_options:ShowCommand", "commands:show", "a short report in the terminal", ("show RUN",), ("runs*",)),
    "compare": Command(
        "command_options:CompareCommand", "commands:compare", "put selections side by side, with random at the same budget",
        ("compare RUN_A RUN_B",), ("runs*",),
    ),
    "correlate": Command(
        "command_options:CorrelateCommand", "commands:correlate", "rank correlation between the scores of runs",
        ("correlate RUN_A RUN_B --top 0.1",), ("runs*",),
    ),
    "methods": Command("catalog:OwnCommand", "catalog:methods", "list the selection methods (--method)", ("methods",), ("own*",)),
    "scores": Command("catalog:OwnCommand", "catalog:scores", "list the scores (--score)", ("scores",), ("own*",)),
    "subnets": Command("catalog:ListCommand", "catalog:subnets", "list presets and families of subnets (--subnets)", ("subnets",)),
    "formats": Command("catalog:ListCommand", "catalog:formats", "list the row formats that are read (--format)", ("formats",)),
    "exports": Command("catalog:ListCommand", "catalog:exports", "list what export writes (--to)", ("exports",)),
    "recipe": Command(
        "shipped:RecipeCommand", "commands:recipe", "list the recipes and configurations, or copy one here",
        ("recipe", "recipe lora", "recipe configs/llama3-8b --to here"), ("name",),
    ),
    "demo": Command(
        "shipped:DemoCommand", "commands:demo", "prune the packaged samples (a few minutes on a CPU)",
        ("demo", "demo --model Qwen/Qwen3-0.6B"), everywhere=True,
    ),
    "completion": Command(
        "catalog:CompletionCommand", "catalog:completion", "print a completion script for a shell",
        ("completion bash >> ~/.bashrc", "completion zsh >> ~/.zshrc"), ("shell",),
    ),
}  # fmt: skip

HELP = """\
usage: instruct-prune COMMAND [options]

Find the part of an instruction-tuning dataset worth training on, without training.

commands:
{commands}

every command:
  -h, --help           its options, with examples
  --config FILE.yaml   options from a file (flags win over the file)
  --print-config       print the effective options as YAML and exit
  -q, --quiet          nothing but errors
  --json               the summary at the end as JSON on standard output (not of inspect)

without a command:
  -V, --version        print the version

example:
  instruct-prune run --data alpaca.jsonl --keep 30% --out RUN
"""
RESTART = (
    "--restart needs the name of a stage: read, encode, score or embed. That stage and what was made from it are discarded "
    "and made anew; earlier ones stay. The narrowest that helps is the best: --restart embed scores nothing again."
)
