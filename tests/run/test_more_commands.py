"""inspect, select's options, compare, correlate, report, show and export from the command line, on one scored run."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.cli import main
from instruct_prune.run.compare import columns_of
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import SelectFacts

N = 60


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_embedder_folder: Path) -> Path:
    """60 rows with a column and 6 planted repeats, two mask seeds, embeddings."""
    rows: list[dict[str, str]] = [{**row, "topic": f"t{i % 3}"} for i, row in enumerate(alpaca_rows(54))]
    rows += [{**rows[i], "instruction": rows[i]["instruction"].upper() + "!", "topic": "copy"} for i in range(6)]
    folder = tmp_path_factory.mktemp("more")
    data = write_jsonl(folder / "rows.jsonl", rows)
    out = folder / "run"
    words = ["--data", str(data), "--model", str(tiny_model_folder), "--dtype", "float32", "--batch-tokens", "512"]
    words += ["--subnets", "dense", "dropout:0.1,0.2", "--subnet-seeds", "2"]
    assert main(["score", *words, "--out", str(out)]) == 0
    assert main(["embed", "--embedder", str(tiny_embedder_folder), "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(scored: Path, tmp_path: Path) -> Path:
    shutil.copytree(scored, tmp_path / "run")
    return tmp_path / "run"


def selected(run: Path, *options: str) -> dict[str, list[object]]:
    assert main(["select", "--out", str(run), *options]) == 0
    return pq.read_table(run / "selection.parquet").to_pydict()


def test_several_seeds_report_stability(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = selected(run, "--keep", "0.5", "--method", "hardest")
    scores = pq.read_table(run / "scores.parquet").to_pandas()
    per_seed = [
        scores[["loss_dense", f"loss_dropout_0100_s{s}", f"loss_dropout_0200_s{s}"]].mean(axis=1) for s in (0, 1)
    ]
    kept = [set(one.nlargest(30).index) for one in per_seed]
    unstable = {row for row, flag in zip(table["row_id"], table["unstable"], strict=True) if flag}
    assert unstable == kept[0] ^ kept[1]
    assert max(table["rank_spread"]) > 0  # type: ignore[type-var]
    assert f"{len(unstable)} rows would" in capsys.readouterr().out


def test_near_duplicates_go_and_are_named(run: Path) -> None:
    table = selected(run, "--keep", "0.5", "--dedup", "1.0", "--dedup-keep", "first", "--clusters", "3")
    pairs = [(r, d) for r, d in zip(table["row_id"], table["duplicate_of"], strict=True) if d is not None]
    assert {(54 + i, i) for i in range(6)} <= set(pairs)
    assert all(not s for s, d in zip(table["selected"], table["duplicate_of"], strict=True) if d is not None)
    assert sum(table["selected"]) == 30  # type: ignore[arg-type]


def test_strata_from_a_column_and_must_keep(run: Path, tmp_path: Path) -> None:
    table = selected(run, "--keep", "20", "--stratify", "topic", "--must-keep", "topic=copy")
    kept = [s for s, k in zip(table["stratum"], table["selected"], strict=True) if k]
    assert kept.count("copy") == 6
    assert len(kept) == 20
    ids = tmp_path / "ids.txt"
    ids.write_text("3\n59\n")
    table = selected(run, "--keep", "2", "--method", "easiest", "--must-keep", str(ids))
    assert [r for r, k in zip(table["row_id"], table["selected"], strict=True) if k] == [3, 59]


def test_equal_shares_for_the_values_of_a_column(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = selected(run, "--keep", "22", "--stratify", "topic", "--balanced")
    kept = Counter(s for s, k in zip(table["stratum"], table["selected"], strict=True) if k)
    assert sorted(kept.values()) == [5, 5, 6, 6]
    assert "4 strata of equal shares" in capsys.readouterr().out


def test_equal_shares_for_files(tmp_path: Path, tiny_model_folder: Path, tiny_embedder_folder: Path) -> None:
    rows = alpaca_rows(40)
    data = [write_jsonl(tmp_path / "many.jsonl", rows[:32]), write_jsonl(tmp_path / "few.jsonl", rows[32:])]
    words = [
        "run",
        "--data",
        *map(str, data),
        "--model",
        str(tiny_model_folder),
        "--embedder",
        str(tiny_embedder_folder),
    ]
    words += ["--subnets", "dense", "--keep", "10", "--method", "random", "--stratify", "source", "--balanced"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    table = pq.read_table(tmp_path / "run" / "selection.parquet").to_pydict()
    kept = Counter(s for s, k in zip(table["stratum"], table["selected"], strict=True) if k)
    assert kept == {"many": 5, "few": 5}


def test_token_budget_is_never_exceeded(run: Path) -> None:
    table = selected(run, "--keep-tokens", "900", "--clusters", "none")
    n_response = pq.read_table(run / "scores.parquet").column("n_response").to_pylist()
    spent = sum(n for n, k in zip(n_response, table["selected"], strict=True) if k)
    assert 900 - max(n_response) < spent <= 900


@pytest.mark.parametrize(
    "method", ["easy_diverse", "k_center", "herding", "moderate", "ccs", "deita", "d2", "facility_location"]
)
def test_every_method_meets_the_budget(run: Path, method: str) -> None:
    table = selected(run, "--keep", "17", "--method", method)
    assert sum(table["selected"]) == 17  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--stratify", "nowhere"], "no column of this name"),
        (["--balanced", "--clusters", "none"], "all rows are in one"),
        (["--must-keep", "nothing"], "no such file"),
        (["--must-keep", "topic=none"], "no scored row"),
        (["--split", "2"], "split"),
        (["--split", "half"], "split is 'half'"),
        (["--clusters", "few"], "--clusters few"),
        (["--clusters", "500"], "500"),
        (["--dedup", "3"], "3"),
        (["--score", "ifd"], "alone"),
        (["--score-subnets", "magnitude:0.5"], "magnitude_0500"),
        (["--score-weights", "1", "2"], "weights"),
    ],
)
def test_wrong_selection_options(run: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str) -> None:
    capsys.readouterr()
    assert main(["select", "--out", str(run), "--keep", "0.5", *options]) == 2
    assert says in capsys.readouterr().err
    assert not (run / "selection.parquet").exists()


def test_a_method_and_a_score_of_the_users_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_rules.py").write_text(
        "import numpy as np\n"
        "def last(stratum, *, split: float = 0.5):\n"
        "    return stratum.take(np.argsort(-stratum.pool.row_id[stratum.rows]))\n"
        "def negative(columns):\n"
        "    return -columns['loss_dense']\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--method", "own_rules:last", "--score", "own_rules:negative", "--split", "0.25"]
    assert main(["select", "--out", str(run), "--keep", "3", *options]) == 0, capsys.readouterr().err
    sys.modules.pop("own_rules")
    selection = RunFolder(run).read_selection()
    assert selection.kept.tolist() == selection.row_id[-3:].tolist()
    assert (selection.score < 0).all()
    assert selection.params == {"method": "own_rules:last", "split": 0.25}
    assert RunFolder(run).facts(SelectFacts).score == "own_rules:negative"


def test_compare_and_correlate(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    selected(run, "--keep", "0.5", "--clusters", "4")
    shutil.copytree(run, other)
    selected(other, "--keep", "0.5", "--method", "hardest")
    capsys.readouterr()
    assert main(["compare", str(run), str(other)]) == 0
    told = capsys.readouterr().out
    assert "random, 30 rows" in told
    assert main(["correlate", str(run)]) == 0
    assert "dropout" in capsys.readouterr().out


def test_correlate_runs_whose_folders_have_one_name(
    run: Path, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "twin" / "run")
    assert main(["correlate", str(run), str(tmp_path / "twin" / "run")]) == 0
    assert "note" not in capsys.readouterr().err
    names = columns_of([RunFolder(run), RunFolder(tmp_path / "twin" / "run")])
    assert len(names) == 2 * (1 + 5)
    assert "twin/run:loss_dropout_0200_s1" in names
    data = write_jsonl(tmp_path / "d.jsonl", alpaca_rows(60)[::-1])  # as many rows, others
    assert main(["score", "--data", str(data), "--model", str(tiny_model_folder), "--out", str(tmp_path / "o")]) == 0
    capsys.readouterr()
    assert main(["correlate", str(run), str(tmp_path / "o")]) == 0
    assert "the same by their place alone" in capsys.readouterr().err


def test_comparing_other_rows_is_refused(
    run: Path, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", alpaca_rows(10))
    other = tmp_path / "other"
    words = ["--data", str(data), "--model", str(tiny_model_folder), "--subnets", "dense"]
    assert main(["score", *words, "--out", str(other)]) == 0
    assert main(["compare", str(run), str(other)]) == 2
    assert "not over the same rows" in capsys.readouterr().err


def test_show_and_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selected(run, "--keep", "0.5", "--clusters", "4")
    assert main(["show", str(run)]) == 0
    assert "30" in capsys.readouterr().out
    assert main(["report", "--out", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 10_000
    assert json.loads((run / "report.json").read_text())


def test_exports_of_an_earlier_selection_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selected(run, "--keep", "0.5", "--clusters", "none")
    assert main(["export", str(run), "--to", "alpaca", "messages"]) == 0
    assert main(["export", str(run), "--to", "trl"]) == 0
    assert "earlier selection" not in capsys.readouterr().err
    selected(run, "--keep", "0.2", "--method", "random")
    assert main(["export", str(run), "--to", "messages"]) == 0
    assert f"note: what --to alpaca trl wrote into {run} is of an earlier selection" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "alpaca", "trl"]) == 0
    assert "earlier selection" not in capsys.readouterr().err


def test_exports(run: Path) -> None:
    selected(run, "--keep", "0.5", "--clusters", "4")
    assert (
        main(
            [
                "export",
                "--out",
                str(run),
                "--to",
                "tokens",
                "alpaca",
                "messages",
                "llamafactory",
                "axolotl",
                "trl",
                "swift",
                "parquet",
            ]
        )
        == 0
    )
    assert any(run.rglob("dataset_info.json"))
    assert len((run / "pruned.jsonl").read_bytes().splitlines()) == 30


def test_inspect_writes_nothing(
    run: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(
        tmp_path / "d.jsonl", [*alpaca_rows(12), {"instruction": "\x1b[31mred", "output": "x"}, {"nothing": 1}]
    )
    before = sorted(tmp_path.iterdir())
    assert main(["inspect", "--data", str(data), "--model", str(tiny_model_folder)]) == 0
    told = capsys.readouterr().out
    assert "14" in told
    assert "\x1b[31mred" not in told
    assert sorted(tmp_path.iterdir()) == before


def test_embeddings_resume_and_precomputed_vectors(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    assert main(["embed", "--out", str(run), "--embedder", str(tmp_path / "v.npy")]) == 2
    assert "--restart" in capsys.readouterr().err
    assert main(["embed", "--out", str(run), "--embedder", str(tmp_path / "v.npy"), "--restart"]) == 0
    found = np.load(run / "embeddings.npy", allow_pickle=False)
    np.testing.assert_allclose(found, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), rtol=1e-5)
    np.save(tmp_path / "short.npy", vectors[:7])
    assert main(["embed", "--out", str(run), "--embedder", str(tmp_path / "short.npy"), "--restart"]) == 2
    assert "7 vectors" in capsys.readouterr().err


def states_of(run: Path, model_folder: Path, pool: str) -> np.ndarray:
    """Unit vectors about the mean row: states after one block, one row a forward pass of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    from instruct_prune.encode.store import TokenStore

    items, model = TokenStore.open(run / "items"), AutoModelForCausalLM.from_pretrained(model_folder).eval()
    found = []
    for i in range(len(items)):
        ids = torch.as_tensor(items[i].ids.astype(np.int64))[None]
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[1][0].double().numpy()
        found.append(states[-1] if pool == "last" else states[1:].mean(axis=0))
    moved = np.asarray(found) - np.mean(found, axis=0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_vectors_of_the_scoring_model_itself(run: Path, tiny_model_folder: Path, pool: str) -> None:
    """One more pass where scoring did not read them; never another model."""
    assert main(["embed", "--out", str(run), "--embedder", f"model:{pool}@1", "--restart"]) == 0
    vectors = np.load(run / "embeddings.npy")
    np.testing.assert_allclose(vectors, states_of(run, tiny_model_folder, pool), atol=1e-4)
    assert not (run / "parts").exists()
    selected(run, "--keep", "0.5", "--clusters", "3")


def test_vectors_of_the_scoring_model_are_read_in_the_pass_that_scores(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instruct_prune.models.causal_lm import CausalLM

    data = write_jsonl(tmp_path / "d.jsonl", alpaca_rows(20))
    words = ["--data", str(data), "--model", str(tiny_model_folder), "--dtype", "float32", "--keep", "0.5"]
    loads = []
    load = CausalLM.load
    monkeypatch.setattr(CausalLM, "load", lambda self, *a, **k: (loads.append(1), load(self, *a, **k))[1])
    out = tmp_path / "run"
    assert main(["run", *words, "--embedder", "model:mean@1", "--clusters", "3", "--out", str(out)]) == 0
    assert len(loads) == 1
    np.testing.assert_allclose(np.load(out / "embeddings.npy"), states_of(out, tiny_model_folder, "mean"), atol=1e-4)
