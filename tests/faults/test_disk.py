"""Disks that are full, or that may not be written: in words, and the same command ends with the right bytes."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fault_runs import SOME_STEPS, STEPS, Command, Fails, Fault, Told, differing, leftovers

from instruct_prune.cli import main
from instruct_prune.storage import array_file

Call = Callable[..., Told]

NEW_NAMESPACES = 0x00020000 | 0x10000000  # CLONE_NEWNS | CLONE_NEWUSER
READ_ONLY, REMOUNT, BIND, PRIVATE = 1, 32, 4096, 0x40000 | 0x4000


def mounted(source: str, target: str, kind: str, flags: int, options: str, user: tuple[int, int]) -> None:
    """Mount something that this process alone sees, in namespaces of its own, as any user may where the kernel lets them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NAMESPACES):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user[0]} 1")
    Path("/proc/self/gid_map").write_text(f"0 {user[1]} 1")
    steps = [
        (None, b"/", None, PRIVATE, None),
        (source.encode(), target.encode(), kind.encode(), flags, options.encode()),
    ]
    if flags & BIND:
        steps.append((None, target.encode(), None, REMOUNT | BIND | READ_ONLY, None))
    for step in steps:
        if libc.mount(*step):
            raise OSError(ctypes.get_errno(), "mount", target)


def may_mount() -> bool:
    """Whether a child may do what `mounted` does."""
    pid = os.fork()
    if not pid:
        try:
            mounted("tmpfs", "/tmp", "tmpfs", 0, "size=1m", (os.getuid(), os.getgid()))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


needs_mounts = pytest.mark.skipif(not hasattr(os, "fork") or not may_mount(), reason="no right to mount a file system")


def full_at(number: int, steps: tuple[str, ...], run_words: list[str], call: Call, out: Path) -> None:
    for path in steps:
        told = call(run_words, out, Fault("os.rename", path, Fails(number)))
        assert told.is_clean(1), path
        assert "instruct-prune: incomplete: " in told.text
        assert "what is finished is kept" in told.text
        assert leftovers(out) == [], path


def test_no_space_left_at_every_stage_in_turn(
    run_words: list[str], undisturbed: Path, call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "RUN"
    assert call(run_words, out, Fault("open", "items/ids.bin", Fails(errno.ENOSPC))).is_clean(1)
    full_at(errno.ENOSPC, SOME_STEPS[1:], run_words, call, out)
    assert call(run_words, out).is_clean(0)
    assert differing(out, undisturbed) == []


@pytest.mark.nightly
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", STEPS)
def test_no_space_left_at_each_stage(
    number: int, step: str, run_words: list[str], undisturbed: Path, call: Call, tmp_path: Path
) -> None:
    full_at(number, (step,), run_words, call, tmp_path / "RUN")
    assert call(run_words, tmp_path / "RUN").is_clean(0)
    assert differing(tmp_path / "RUN", undisturbed) == []


def saved_from(target: Path, copy: Path, before: Callable[[], None]) -> None:
    """In a command's process: a file system of its own, filled with what the last command left, and copied when it ends."""
    before()
    if copy.exists():
        shutil.copytree(copy, target, dirs_exist_ok=True, copy_function=shutil.copy2)
    leave = os._exit

    import instruct_prune.cli as cli

    run = cli.main

    def run_and_save() -> int:
        code = run()
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(target, copy, copy_function=shutil.copy2)
        return code

    cli.main = run_and_save  # type: ignore[assignment]
    assert leave is os._exit


@needs_mounts
def test_a_small_disk_that_grows(run_words: list[str], undisturbed: Path, tmp_path: Path) -> None:
    """A real file system of so many kilobytes, which is full somewhere inside a file, or in mapped memory."""
    out, copy = tmp_path / "disk", tmp_path / "copy"
    out.mkdir()
    stopped = 0
    for kilobytes in (8, 40, 72, 88, 104, 116, 124, 136, 160, 4096):
        mount = partial(mounted, "tmpfs", str(out), "tmpfs", 0, f"size={kilobytes}k", (os.getuid(), os.getgid()))
        words = [*run_words, "--out", str(out)]
        told = Command(words, tmp_path / "log", None, partial(saved_from, out, copy, mount)).end()
        assert told.is_clean(0 if kilobytes == 4096 else 1)
        if told.code:
            stopped += 1
            assert "No space left on device" in told.text
        if told.code == 0:
            break
    assert stopped >= 5
    assert differing(copy, undisturbed) == []


@needs_mounts
def test_a_folder_that_may_not_be_written(
    run_words: list[str], finished: Path, undisturbed: Path, tmp_path: Path
) -> None:
    mount = partial(mounted, str(finished), str(finished), "none", BIND, "", (os.getuid(), os.getgid()))
    for words in (run_words, ["select", "--keep", "3"], ["export"], ["report"]):
        told = Command([*words, "--out", str(finished)], tmp_path / "log", None, mount).end()
        assert told.is_clean(2)
        assert "no files can be written there" in told.text or "Read-only file system" in told.text
    assert Command(["show", "--runs", str(finished)], tmp_path / "log", None, mount).end().is_clean(0)
    assert differing(finished, undisturbed) == []


def test_where_nothing_may_be_made(score_words: list[str], call: Call, tmp_path: Path) -> None:
    told = call(score_words, tmp_path / "RUN", Fault("os.mkdir", ".", Fails(errno.EACCES)))
    assert told.is_clean(2)
    assert "Permission denied" in told.text
    assert not (tmp_path / "RUN").exists()


def test_a_name_that_is_too_long(score_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*score_words, "--out", str(tmp_path / ("n" * 300))]) == 2
    assert "File name too long" in capsys.readouterr().err


@needs_mounts
def test_a_full_disk_does_not_kill_who_writes_to_mapped_memory(tmp_path: Path) -> None:
    """Without a place that is taken before, the process ends by SIGBUS."""
    pid = os.fork()
    if not pid:
        mounted("tmpfs", str(tmp_path), "tmpfs", 0, "size=64k", (os.getuid(), os.getgid()))
        try:
            with array_file(tmp_path / "a.npy", np.float32, (1000, 1000)) as array:
                array[:] = 1.0
        except OSError as error:
            os._exit(error.errno if not list(tmp_path.iterdir()) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.ENOSPC
