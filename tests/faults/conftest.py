"""Tiny runs to be disturbed. What tests do with them is in fault_runs.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_runs import Fault, Told, run_command
from sample_rows import alpaca_rows, write_jsonl

ROWS = 24


@pytest.fixture(scope="session")
def fault_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows of Alpaca kind."""
    return write_jsonl(tmp_path_factory.mktemp("fault-data") / "rows.jsonl", alpaca_rows(ROWS))


@pytest.fixture(scope="session")
def score_words(fault_data: Path, tiny_model_folder: Path) -> list[str]:
    """`score` on the tiny model, in some ten parts; without --out."""
    return ["score", "--data", str(fault_data), "--model", str(tiny_model_folder), "--dtype", "float32",
            "--batch-tokens", "512", "--subnets", "dlc"]  # fmt: skip


@pytest.fixture(scope="session")
def run_words(score_words: list[str], tiny_embedder_folder: Path) -> list[str]:
    """The whole way; without --out."""
    return ["run", *score_words[1:], "--embedder", str(tiny_embedder_folder), "--keep", "0.5", "--clusters", "3"]


@pytest.fixture(scope="session")
def undisturbed(run_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `run_words`, which nothing has disturbed. Tests copy it and never write to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_command([*run_words, "--out", str(folder / "RUN")], folder / "log").is_clean(0)
    return folder / "RUN"


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run, to be disturbed."""
    return Path(shutil.copytree(undisturbed, tmp_path / "RUN"))


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Told]:
    """Runs words with ``--out``: call(words, out, fault=None, **environment)."""

    def run(words: list[str], out: Path, fault: Fault | None = None, **environment: str) -> Told:
        return run_command([*words, "--out", str(out)], tmp_path / "log", fault, **environment)

    return run


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A file that is there where foreign code was run."""
    yield tmp_path / "MARK"
    assert not (tmp_path / "MARK").exists()
