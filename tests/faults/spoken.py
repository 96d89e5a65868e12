"""Commands run in this process: what they say and how they end."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from fault_runs import Told

from instruct_prune.cli import main


def tell(*words: object, stdin: bytes = b"") -> Told:
    """Run ``instruct-prune`` with these words. An exception that it does not turn into words ends the test.

    Args:
        words: after ``instruct-prune``.
        stdin: what is piped into it.
    """
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # of the parser of options
            code = int(end.code or 0)
    return Told(code, out.getvalue())


def refused(told: Told, *words: str) -> bool:
    """Refused in words, these among them (lines of a table are joined)."""
    assert told.is_clean(2)
    said = " ".join(told.text.replace("│", " ").split())
    for word in words:
        assert word in said, said
    return True


def kept(folder: Path) -> bytes:
    return (folder / "pruned.jsonl").read_bytes()
