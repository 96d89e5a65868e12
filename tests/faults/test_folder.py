"""Run folders that are removed, moved or strangely named."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_runs import STEPS, Fault, Told, differing, leftovers

from instruct_prune import storage
from instruct_prune.measure.heartbeat import Heartbeat

Call = Callable[..., Told]


def removed(out: Path) -> None:
    shutil.rmtree(out)


def moved(out: Path) -> None:
    os.rename(out, out.with_name("moved"))


def moved_and_made_anew(out: Path) -> None:
    moved(out)
    out.mkdir()


def gone_at(step: str, how: Callable[[Path], None], run_words: list[str], call: Call, tmp_path: Path) -> Path:
    out = tmp_path / "RUN"
    told = call(run_words, out, Fault("os.rename", step, how))
    assert told.is_clean(1)
    assert "was moved or removed while this command worked in it" in told.text
    assert "Exception in thread" not in told.text
    assert not out.exists() or not list(out.rglob("*.*"))  # it does not come back half filled
    return out


@pytest.mark.parametrize("step", ["rows/rows.arrow", "parts/score/dense/*1.parquet", "embeddings.npy", "report.json"])
def test_a_folder_that_is_removed_does_not_come_back(
    step: str, run_words: list[str], undisturbed: Path, call: Call, tmp_path: Path
) -> None:
    out = gone_at(step, removed, run_words, call, tmp_path)
    if step == "report.json":
        assert call(run_words, out).is_clean(0)
        assert differing(out, undisturbed) == []


def removed_between_two_parts(out: Path) -> None:
    """As soon as the part is there; the command does not notice before it writes the next one."""

    def remove() -> None:
        while not list(out.glob("parts/score/dense/*1.parquet")):
            time.sleep(0.001)
        while out.exists():
            shutil.rmtree(out, ignore_errors=True)

    threading.Thread(target=remove).start()


def test_a_folder_that_is_removed_between_two_parts_does_not_come_back(
    score_words: list[str], call: Call, tmp_path: Path
) -> None:
    gone_at("parts/score/dense/*1.parquet", removed_between_two_parts, score_words, call, tmp_path)


def test_a_folder_that_goes_while_one_is_made_in_it_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when it was looked at, and is gone when the folder is made."""
    out = tmp_path / "RUN"
    out.mkdir()
    with storage.in_use(out):
        storage.make_folder(out / "parts" / "score")
        assert (out / "parts" / "score").is_dir()
        monkeypatch.setattr(storage, "still_there", lambda root: True)
        shutil.rmtree(out)
        with pytest.raises(FileNotFoundError):
            storage.make_folder(out / "parts" / "score")
    assert not out.exists()


def test_a_heart_beats_on_in_silence_where_the_folder_is_gone(tmp_path: Path) -> None:
    """A thread that ends by an error would print a traceback (and fail this test, by the filter in pyproject.toml)."""
    (tmp_path / "beats").mkdir()
    with Heartbeat(tmp_path / "beats" / "beat", {}, 0.001) as heart:
        (tmp_path / "beats").rename(tmp_path / "moved")
        time.sleep(0.05)
        (tmp_path / "moved").rename(tmp_path / "beats")
        heart.path.unlink()
        end = time.monotonic() + 60
        while not heart.path.exists() and time.monotonic() < end:
            time.sleep(0.001)
        assert heart.path.exists()  # it goes on where the folder is there again


@pytest.mark.parametrize("how", [moved, moved_and_made_anew])
def test_a_folder_that_is_moved_goes_on_where_it_lies(
    how: Callable[[Path], None], run_words: list[str], undisturbed: Path, call: Call, tmp_path: Path
) -> None:
    gone_at("parts/score/dense/*2.parquet", how, run_words, call, tmp_path)
    again = call(run_words, tmp_path / "moved")
    assert again.is_clean(0)
    assert "resuming: " in again.text
    assert differing(tmp_path / "moved", undisturbed) == []
    assert leftovers(tmp_path / "moved") == []


@pytest.mark.nightly
@pytest.mark.parametrize("how", [removed, moved])
@pytest.mark.parametrize("step", STEPS)
def test_a_folder_that_is_gone_at_each_stage(
    step: str, how: Callable[[Path], None], run_words: list[str], undisturbed: Path, call: Call, tmp_path: Path
) -> None:
    out = gone_at(step, how, run_words, call, tmp_path)
    again = out if how is removed else tmp_path / "moved"
    assert call(run_words, again).is_clean(0)
    assert differing(again, undisturbed) == []


@pytest.mark.parametrize(
    "name", ["with space", "line\nbreak", "bell\x07 \x1b[31mred", "-dash", "ünï 日本", "a'b\"c$d`e"]
)
def test_names_of_all_kinds(name: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run under such a name: skipped, selected, exported, shown; nothing reaches the terminal raw."""
    from instruct_prune.cli import main

    out = finished.rename(finished.with_name(name))
    words = [f"--out={out}"]
    assert main(["select", "--keep", "5", "--clusters", "2", *words]) == 0
    assert main(["export", "--to", "alpaca", "llamafactory", *words]) == 0
    assert main(["report", *words]) == 0
    assert main(["show", "--runs", str(out)]) == 0
    told = capsys.readouterr()
    assert "\x1b[31m" not in told.out + told.err
    assert "\x07" not in told.out + told.err
    assert len((out / "pruned.jsonl").read_bytes().splitlines()) == 5


def test_a_whole_run_under_a_strange_name(
    run_words: list[str], fault_data: Path, undisturbed: Path, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "a b\n\x1b[31mc"
    folder.mkdir()
    data = shutil.copy(fault_data, folder / "rows \x07\n.jsonl")
    told = call([str(data) if word == str(fault_data) else word for word in run_words], folder / "RUN")
    assert told.is_clean(0)
    assert "\x1b[31m" not in told.text
    names = [
        name for name in differing(folder / "RUN", undisturbed) if name not in ("rows/rows.arrow", "items/rows.parquet")
    ]
    assert names == []  # those two hold the path of the data
