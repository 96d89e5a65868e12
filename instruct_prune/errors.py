"""The errors a user can cause, and can mend."""

from __future__ import annotations

import errno
from collections.abc import Callable

MANY = "several things are wrong, and nothing was begun:"


class InputError(Exception):
    """Something that the user gave is wrong: the text says what, where, and what to do.

    The command line prints the text alone (no traceback) and exits with code 2.
    """


class IncompleteRunError(Exception):
    """A run stopped before all its parts were written; the same command completes it.

    Attributes:
        code: the exit code of the command line: 1, or 128 and the number of the signal that stopped it.
    """

    def __init__(self, text: str, signal: int = 0) -> None:
        super().__init__(text)
        self.signal = signal
        self.code = 128 + signal if signal else 1


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, told as Ctrl-C is: libraries let it through, files that are being written are removed."""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FAILING = {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO}
REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EILSEQ,
}


def of_the_disk(error: OSError) -> InputError | IncompleteRunError | None:
    """A fault of disks and rights in words; None for any other, which may be a fault of this program."""
    where = f"{error.filename}: " if error.filename is not None else ""
    said = f"{where}{error.strerror or error}"
    if error.errno in FULL:
        return IncompleteRunError(f"{said}. Make room there, and run the same command again; what is finished is kept.")
    if error.errno in FAILING:
        return IncompleteRunError(
            f"{said}. See to the disk or its connection, and run the same command again; what is finished is kept."
        )
    if error.errno in REFUSED:
        return InputError(f"{said}. Name files and folders that may be read, and an --out that may be written.")
    return None


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
