"""The table of all scored rows, read back beside the run that it is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.cli import main
from instruct_prune.run.folder import RunFolder
from instruct_prune.select.projection import principal_components


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_embedder_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("viewer")
    rows = [*alpaca_rows(12), {"instruction": "Nothing", "output": ""}, *alpaca_rows(14)[12:]]
    words = ["--data", str(write_jsonl(folder / "rows.jsonl", rows)), "--model", str(tiny_model_folder)]
    words += ["--subnets", "perplexity", "--embedder", str(tiny_embedder_folder), "--clusters", "2"]
    assert main(["run", *words, "--keep", "5", "--to", "viewer", "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_every_scored_row_is_in_it_with_what_became_of_it(run: Path) -> None:
    table, selection = pq.read_table(run / "viewer.parquet"), RunFolder(run).read_selection()
    assert table.column_names == ["row_id", "text", "x", "y", "score", "kept", "reason", "cluster"]
    assert table["row_id"].to_pylist() == [*range(12), 13, 14]  # row 12 has an empty answer, and no score
    assert table["score"].to_pylist() == selection.score.tolist()
    assert table["kept"].to_pylist() == selection.selected.tolist()
    assert sum(table["kept"].to_pylist()) == 5
    assert table["reason"].to_pylist() == [selection.reasons[i] for i in selection.reason]
    assert table["cluster"].to_pylist() == [selection.strata_names[i] for i in selection.stratum]
    (sample,) = alpaca_rows(13)[12:]
    assert table["text"].to_pylist()[12] == "\n".join(s for s in sample.values() if s)


def test_the_map_is_that_of_the_vectors(run: Path) -> None:
    table, vectors = pq.read_table(run / "viewer.parquet"), np.load(run / "embeddings.npy")
    xy = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    np.testing.assert_allclose(xy, principal_components(vectors, np.arange(len(vectors))).xy)
    centred = vectors - vectors.mean(axis=0)
    largest = np.linalg.svd(centred, compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(xy, axis=0), largest, rtol=1e-3)


def test_without_embeddings_there_is_no_map(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--data",
        str(run.parent / "rows.jsonl"),
        "--subnets",
        "perplexity",
        "--clusters",
        "none",
        "--method",
        "easiest",
    ]
    model = (RunFolder(run).path / "manifest.json").read_text().split('"model": "')[1].split('"')[0]
    assert main(["score", *words[:4], "--model", model, "--out", str(tmp_path / "run")]) == 0
    assert main(["select", str(tmp_path / "run"), "--keep", "3", *words[4:]]) == 0
    assert main(["export", str(tmp_path / "run"), "--to", "viewer"]) == 0
    assert "x and y are empty" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "run" / "viewer.parquet")["x"].null_count == 14
