"""Files of a run folder that are torn, edited, swapped, foreign or stale: made again, or refused in words; never used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_runs import RESULTS, Fault, Send, Told, differing

from instruct_prune.cli import main
from instruct_prune.measure.parts import PartStore

Call = Callable[..., Told]
Damage = Callable[[Path], None]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edited(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


FILES = ("rows/rows.arrow", "rows/rows.json", "items/ids.bin", "items/mask.bin", "items/rows.parquet", "scores.parquet",
         "embeddings.npy", "embeddings_rows.npy", "selection.parquet", "clusters.parquet", "pruned.jsonl", "manifest.json")  # fmt: skip
MADE_AGAIN = ("rows/rows.arrow", "rows/rows.json", "items/ids.bin", "items/mask.bin", "items/rows.parquet", "selection.parquet",
              "clusters.parquet", "pruned.jsonl")  # fmt: skip
"""By the same command, without a word more."""
READ_BY_SELECT = (
    "rows/rows.arrow",
    "rows/rows.json",
    "scores.parquet",
    "embeddings.npy",
    "embeddings_rows.npy",
    "manifest.json",
)


DAMAGES = [
    pytest.param(name, damage, marks=[pytest.mark.nightly] if damage is emptied else [])
    for name in FILES
    for damage in (torn, edited, emptied, removed)
    if name != "manifest.json" or damage in (torn, emptied)  # without one the folder is nobody's; an edit may be any
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_file_is_made_again_or_refused(
    name: str,
    damage: Damage,
    run_words: list[str],
    finished: Path,
    undisturbed: Path,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    out = ["--out", str(finished)]
    damage(finished / name)
    code = main(["select", "--keep", "0.5", "--clusters", "3", *out])
    told = capsys.readouterr().err
    assert code == (2 if name in READ_BY_SELECT else 0), told
    if code:
        assert name.rpartition("/")[2] in told
    code = main([*run_words, *out])
    told = capsys.readouterr().err
    assert code == (0 if name in MADE_AGAIN else 2), told
    if code:
        assert name in told
    else:
        assert differing(finished, undisturbed) == []
        assert "scoring with" not in told  # and nothing is scored again for it


@pytest.mark.parametrize(
    "name", ["scores.parquet", "embeddings.npy", "selection.parquet", "items/ids.bin", "rows/rows.arrow"]
)
def test_a_file_of_another_run_is_not_taken_for_ones_own(
    name: str, finished: Path, tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole, readable, of the same rows, and yet not what this run made."""
    path = finished / name
    if name.endswith(".npy"):
        np.save(path, -np.load(path))
    elif name.endswith(".parquet"):
        table = pq.read_table(path)
        pq.write_table(table.set_column(0, "row_id", table.column("row_id").take(list(range(len(table)))[::-1])), path)
    else:
        path.write_bytes(path.read_bytes()[::-1])
    reader = {"selection.parquet": "export", "items/ids.bin": "export"}.get(name, "select")
    assert main([reader, *(["--keep", "3"] if reader == "select" else ["--to", "tokens"]), "--out", str(finished)]) == 2
    told = capsys.readouterr().err
    assert name in told
    assert "is not as the" in told


def test_a_copied_run_is_the_same_run(finished: Path, run_words: list[str], undisturbed: Path, tmp_path: Path) -> None:
    """Other times, the same content: nothing is made again."""
    for path in finished.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
    assert main(["select", "--keep", "0.5", "--clusters", "3", "--out", str(finished)]) == 0
    assert main(["export", "--out", str(finished)]) == 0
    assert differing(finished, undisturbed) == []


# ---- parts ----


@pytest.fixture
def with_parts(score_words: list[str], call: Call, tmp_path: Path) -> Path:
    """A run that was killed when all parts were written, and no table."""
    out = tmp_path / "RUN"
    assert call(score_words, out, Fault("os.rename", "scores.parquet", Send(9))).code == -9
    return out


def with_other_losses(path: Path) -> None:
    """A whole Parquet file that says of itself what it said before."""
    table = pq.read_table(path)
    at = table.column_names.index("loss_dense")
    pq.write_table(table.set_column(at, table.field(at), pa.array(np.zeros(len(table), np.float32))), path)


def test_parts_that_are_torn_edited_swapped_or_foreign_are_computed_again(
    with_parts: Path, score_words: list[str], undisturbed: Path, call: Call
) -> None:
    parts = with_parts / "parts" / "score"
    torn(parts / "dense" / "000000.parquet")
    with_other_losses(parts / "dense" / "000001.parquet")
    emptied(parts / "dense" / "000002.parquet")
    shutil.copy(parts / "dense" / "000004.parquet", parts / "dense" / "000003.parquet")  # of another chunk
    shutil.copy(parts / "magnitude_0800" / "000004.parquet", parts / "dense" / "000004.parquet")  # of another subnet
    shutil.copy(parts / "magnitude_0800" / "000000.parquet", parts / "magnitude_0640" / "000000.parquet")
    told = call(score_words, with_parts)
    assert told.is_clean(0)
    assert "resuming: 6 of 15 parts" in told.text
    assert (with_parts / "scores.parquet").read_bytes() == (undisturbed / "scores.parquet").read_bytes()


def test_a_part_with_any_byte_changed_is_missing_or_the_same(tmp_path: Path) -> None:
    store = PartStore(tmp_path, "f")
    store.write("dense", 0, {"position": np.arange(3), "loss_dense": np.asarray([0.5, 1.5, 2.5], dtype=np.float32)})
    path, whole = store.path("dense", 0), store.read("dense", 0)
    content = path.read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        found = store.read("dense", 0)
        assert found is None or found.equals(whole), at


def test_parts_of_another_embedder_are_not_taken_for_ones_own(
    undisturbed: Path, run_words: list[str], tiny_embedder_folder: Path, call: Call, tmp_path: Path
) -> None:
    """Interrupted with one embedder, gone on with another: as many vectors, of the same width, and other numbers."""
    import torch
    from sentence_transformers import SentenceTransformer

    other = SentenceTransformer(str(tiny_embedder_folder), device="cpu")
    torch.manual_seed(0)
    for parameter in other.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    other.save(str(tmp_path / "other"))
    out = Path(shutil.copytree(undisturbed, tmp_path / "RUN"))
    words = ["embed", "--restart", "embed", "--embedder"]
    assert call([*words, str(tmp_path / "other")], out, Fault("os.rename", "embeddings.npy", Send(9))).code == -9
    assert call(["embed", "--embedder", run_words[run_words.index("--embedder") + 1]], out).is_clean(0)
    assert (out / "embeddings.npy").read_bytes() == (undisturbed / "embeddings.npy").read_bytes()


# ---- stale ----


def test_what_was_made_from_an_earlier_result_is_stale(
    finished: Path, score_words: list[str], call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call([*score_words, "--subnets", "perplexity", "--restart", "score"], finished).is_clean(0)
    for words in (["export"], ["report"]):
        assert main([*words, "--out", str(finished)]) == 2
        assert "the select stage is stale: the score stage has changed since it was made" in capsys.readouterr().err
    assert main(["select", "--keep", "5", "--clusters", "2", "--out", str(finished)]) == 0
    assert main(["export", "--out", str(finished)]) == 0


def test_results_are_the_files_that_a_run_leaves(undisturbed: Path) -> None:
    assert [name for name in RESULTS if not (undisturbed / name).is_file()] == []
