"""What a proof found, in the terminal: a table for each test, and the verdicts in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from instruct_prune.terminal import safe

if TYPE_CHECKING:
    from rich.table import Table


NOT_NORMAL = 0.01
NOT_NORMAL_WORDS = "the losses of the random arms lean to one side, so a rule that does nothing is called that way more often than 5 times in 100."


def print_proof(proof: Mapping[str, Any]) -> None:
    """The tables and the verdicts."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    for table in proof_tables(proof):
        console.print(table)
    print("\n".join(proof_words(proof)))


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
            table.add_row(
                f"random, {times:g}x tokens",
                "",
                _number(loss),
                _signed(loss - random["mean"]),
                "",
                "",
                f"{times:g}x",
                "",
            )
        if test["whole"] is not None:
            table.add_row("whole pool", "", _number(test["whole"]), _signed(test["whole"] - random["mean"]))
        for rule, found in sorted(test["rules"].items(), key=lambda pair: pair[1]["mean"]):
            table.add_row(
                safe(rule), str(found["arms"]), _number(found["mean"]), _signed(found["difference"]), f"{found['p_holm']:.2g}",
                f"{found['rank'] + 1}/{random['arms'] + 1}", worth_words(found["worth"]), _signed(found["held_out"]),
            )  # fmt: skip
        tables.append(table)
    return tables


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
