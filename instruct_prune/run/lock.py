"""One command at a time writes to a run folder.

``RUN/.lock`` is locked by the kernel (flock), which lets go when the process ends, however it ends: no crash leaves a folder
locked. Where a file system has no such locks, a file that is there or not stands for one (filelock). ``RUN/.holder.json``
says who holds the lock, and beats: some network file systems grant a lock on each machine by itself, so a holder on another
machine that still beats is believed rather than the lock.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.measure.heartbeat import Heartbeat, still_beats
from instruct_prune.progress import say
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.manifest import HOLDER, LOCK, SOFT_LOCK
from instruct_prune.storage import UNFINISHED, in_use, still_there

if TYPE_CHECKING:
    from instruct_prune.measure.ranks import Ranks

P = ParamSpec("P")
T = TypeVar("T")

BEAT_SECONDS = 5.0
SWEPT = ("rows", "items", "states", "targets")
"""Folders of a run in which nobody writes who does not hold the lock."""
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def alone(folder: RunFolder, ranks: Ranks | None = None) -> Iterator[None]:
    """While this lasts, no other command writes to the run folder. It may be entered again inside.

    Args:
        folder: the run; made where it is not there yet.
        ranks: the processes of this command: the main one holds the lock for all of them. None where it works by itself.

    Raises:
        InputError: another command holds it; the message says which, where and since when.
        IncompleteRunError: the folder was moved or removed meanwhile.
    """
    with ExitStack() as stack:

        def take() -> None:
            if not folder.locked:
                folder.path.mkdir(parents=True, exist_ok=True)
                _take(folder, stack)

        if ranks is None:
            take()
        else:
            ranks.on_main(take)
        stack.enter_context(in_use(folder.path))
        try:
            yield
        except Exception as error:
            if still_there(folder.path):
                raise
            raise IncompleteRunError(
                f"{folder.path} was moved or removed while this command worked in it. Put it back and run the same command again; "
                "or name the folder where it lies now by --out."
            ) from error


def writes(stage: Callable[Concatenate[RunFolder, P], T]) -> Callable[Concatenate[RunFolder, P], T]:
    """A stage that writes to the folder of a run, which no other command may do meanwhile."""

    @functools.wraps(stage)
    def guarded(folder: RunFolder, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if not folder.exists:
            return stage(folder, *args, **kwargs)  # which says that there is no run
        with alone(folder):
            return stage(folder, *args, **kwargs)

    return guarded


def _take(folder: RunFolder, stack: ExitStack) -> None:
    """Lock the folder until the stack is left."""
    from filelock import SoftFileLock, Timeout

    holder = folder / HOLDER
    try:
        if not _flock(folder / LOCK, stack):
            stack.enter_context(SoftFileLock(folder / SOFT_LOCK, timeout=0, thread_local=False))
    except (BlockingIOError, Timeout):
        raise InputError(_refusal(folder, _read(holder))) from None
    there = _read(holder)
    if there and there.get("machine") != _machine():
        say(f"{_who(there)} did not take leave of {folder.path}; looking whether it still works (90 seconds at most)")
        if still_beats(holder):
            raise InputError(_refusal(folder, there))
    _sweep(folder.path)
    folder.locked = True
    stack.callback(setattr, folder, "locked", False)
    stack.callback(holder.unlink, missing_ok=True)
    stack.enter_context(Heartbeat(holder, _me(), BEAT_SECONDS))


def _flock(path: Path, stack: ExitStack) -> bool:
    """Have the kernel lock a file until the stack is left; False where it cannot. BlockingIOError: another process has it."""
    try:
        import fcntl
    except ImportError:
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        return False
    return True


def _sweep(root: Path) -> None:
    """Remove what a process that was killed left under temporary names; parts go with their folder when it is finished."""
    found = [*root.glob(".*.tmp"), *(path for name in SWEPT for path in (root / name).rglob(".*.tmp"))]
    for path in found:
        if UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _me() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    words = shlex.join(["instruct-prune", *sys.argv[1:]])
    return {"command": words, "pid": os.getpid(), "host": socket.gethostname(), "machine": _machine(), "since": since}


def _machine() -> str:
    """Of one kernel: machines may share a name, and containers of one machine share its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _read(holder: Path) -> dict[str, Any]:
    """What the holder says; nothing where it has said nothing yet."""
    try:
        found = json.loads(holder.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "another command"
    return (
        f"`{holder.get('command')}` (process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})"
    )


def _refusal(folder: RunFolder, holder: dict[str, Any]) -> str:
    return (
        f"{folder.path} is in use by {_who(holder)}, and two commands must not write to one run folder. Wait until it has ended, "
        "or use another --out. Commands that only read (show, compare, correlate) may run beside it."
    )
