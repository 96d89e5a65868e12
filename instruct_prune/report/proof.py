"""What a proof found, in the terminal: a table for each test, and the verdicts in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_prune.terminal import safe

if TYPE_CHECKING:
    from rich.table import Table


NOT_NORMAL = 0.01
NOT_NORMAL_WORDS = "the losses of the random arms lean to one side, so a rule that does nothing is called that way more often than 5 times in 100."


def print_proof(proof: Mapping[str, Any], run: Path) -> None:
    """The tables, where they lie, and last the verdicts."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    for table in [*proof_tables(proof), *task_tables(proof)]:
        console.print(table)
    print(safe(f"result: {run / 'prove' / 'prove.json'}; instruct-prune report {run} puts it into the page"))
    print("\n".join([*proof_words(proof), *task_words(proof)]))


def proof_tables(proof: Mapping[str, Any]) -> list[Table]:
    """A table for each test: random, then the rules, best first."""
    from rich.table import Table

    tables = []
    for name, test in proof["tests"].items():
        table = Table(title=safe(f"{name}: loss per response token, lower is better"), title_justify="left", box=None)
        for heading in ("", "arms", "loss", "to random", "p", "rank", "worth", "held-out"):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        random = test["random"]
        table.add_row("untrained", "1", _number(test["untrained"]))
        table.add_row("random", str(random["arms"]), _number(random["mean"]), f"± {random['sd']:.4f}", "", "", "1.0x")
        for times, loss in list(zip(test["curve"]["times"], test["curve"]["losses"], strict=True))[1:]:
            more = (_number(loss), _signed(loss - random["mean"]), "", "", f"{times:g}x")
            table.add_row(f"random, {times:g}x tokens", "", *more)
        if test["whole"] is not None:
            table.add_row("whole pool", "", _number(test["whole"]), _signed(test["whole"] - random["mean"]))
        for rule, found in sorted(test["rules"].items(), key=lambda pair: pair[1]["mean"]):
            table.add_row(
                safe(rule), str(found["arms"]), _number(found["mean"]), _signed(found["difference"]), f"{found['p_holm']:.2g}",
                f"{found['rank'] + 1}/{random['arms'] + 1}", worth_words(found["worth"]), _signed(found["held_out"]),
            )  # fmt: skip
        tables.append(table)
    return tables


def task_tables(proof: Mapping[str, Any]) -> Iterator[Table]:
    """One table for all tasks of lm-evaluation-harness; none where none was asked for."""
    from rich.table import Table

    if "lm_eval" not in proof:
        return
    title = f"lm-evaluation-harness {proof['lm_eval']['version']}: means over arms; the verdict by loss comes first"
    table = Table(title=safe(title), title_justify="left", box=None)
    for heading in ("", "mean", "to random", "p", "verdict"):
        table.add_column(heading, justify="left" if heading in ("", "verdict") else "right", no_wrap=True)
    for found in proof["lm_eval"]["compared"]:
        table.add_row(safe(task_name(found)))
        table.add_row("  untrained", _number(found["untrained"]))
        table.add_row("  random", _number(found["random"]["mean"]), f"± {found['random']['sd']:.4f}")
        for rule, of_rule in rules_of(found):
            p = "" if of_rule["p_holm"] is None else f"{of_rule['p_holm']:.2g}"
            row = (_number(of_rule["mean"]), _signed(of_rule["difference"]), p, of_rule["word"])
            table.add_row(f"  {safe(rule)}", *row)
    yield table


def task_name(found: Mapping[str, Any]) -> str:
    """A task and its metric."""
    direction = {True: "", False: ", lower is better", None: ", no direction"}[found["higher_is_better"]]
    return f"{found['task']} {found['metric']}{direction}"


def rules_of(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The rules on a task, best first."""
    sign = 1 if found["higher_is_better"] is False else -1
    return sorted(found["rules"].items(), key=lambda pair: sign * pair[1]["mean"])


def task_words(proof: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each rule, task and metric, and the notes."""
    if "lm_eval" not in proof:
        return
    yield from map(safe, task_notes(proof))
    for found in proof["lm_eval"]["compared"]:
        for rule, of_rule in found["rules"].items():
            yield safe(f"{task_name(found)}: {rule}: {of_rule['verdict']}.")


def task_notes(proof: Mapping[str, Any]) -> Iterator[str]:
    """What must be known of the numbers of tasks."""
    for found in proof["lm_eval"]["compared"]:
        if found["random"]["normal_p"] < NOT_NORMAL:
            yield f"{task_name(found)}: {NOT_NORMAL_WORDS.replace('losses', 'numbers')}"
    if left_out := proof["lm_eval"]["left_out"]:
        yield f"left out, because some arm has no number in it: {', '.join(left_out)}."


def proof_words(proof: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each rule and test."""
    for name, test in proof["tests"].items():
        if test["random"]["normal_p"] < NOT_NORMAL:
            yield safe(f"{name}: {NOT_NORMAL_WORDS}")
        for rule, found in test["rules"].items():
            more = ""
            if found["random_of_its_lengths"] is not None:
                more += f"; to random rows of its lengths {found['random_of_its_lengths']['difference']:+.4f}"
            for key, words in (
                ("equal_total_tokens", "at equal total tokens"),
                ("third_of_the_rate", "at a third of the learning rate"),
            ):
                if found[key] is not None:
                    more += f"; {words} {found[key]['word']} ({found[key]['difference']:+.4f})"
            yield safe(f"{name}: {rule}: {found['verdict']}{more}.")


def worth_words(worth: Mapping[str, Any] | None) -> str:
    """How many times its tokens a subset is worth: "2.1x", "> 4.0x"; "" where it is not known."""
    if worth is None:
        return ""
    return {"more": "> ", "less": "< ", "": ""}[worth["beyond"]] + f"{worth['times']:.1f}x"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"
