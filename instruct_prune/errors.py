"""The errors a user can cause, and can mend."""

from __future__ import annotations


class InputError(Exception):
    """Something that the user gave is wrong: the text says what, where, and what to do.

    The command line prints the text alone (no traceback) and exits with code 2.
    """


class IncompleteRunError(Exception):
    """A run stopped before all its parts were written; the same command completes it (exit code 1)."""
