"""The errors a user can cause, and can mend."""

from __future__ import annotations

from collections.abc import Callable

MANY = "several things are wrong, and nothing was begun:"


class InputError(Exception):
    """Something that the user gave is wrong: the text says what, where, and what to do.

    The command line prints the text alone (no traceback) and exits with code 2.
    """


class IncompleteRunError(Exception):
    """A run stopped before all its parts were written; the same command completes it (exit code 1)."""


def told_together(*checks: Callable[[], object]) -> None:
    """Make every check, also after one has failed.

    Raises:
        InputError: what all of them found, in one message, each thing once.
    """
    told: list[str] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            told += [text for text in str(error).split("\n- ") if text not in (MANY, *told)]
    if told:
        raise InputError(told[0] if len(told) == 1 else "\n- ".join([MANY, *told]))
