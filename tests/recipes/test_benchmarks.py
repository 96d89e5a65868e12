"""The benchmarks run: each --help, and on tiny models those that need one. What they time is not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from sample_rows import alpaca_rows, write_jsonl

FOLDER = Path(__file__).parents[2] / "recipes" / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def run(name: str, *words: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a benchmark in this process: for those that start no process of their own."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def call(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *words])
        import_module(name).main()
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help(path: Path) -> None:
    assert "usage:" in run(path.stem, "--help")


def test_there_are_scripts() -> None:
    assert {path.stem for path in SCRIPTS} >= {
        "duplicates",
        "clusters",
        "measurements",
        "scoring",
        "selection",
        "report",
    }


@pytest.mark.slow
def test_scoring(data: Path, tiny_model_folder: Path) -> None:
    words = ["--data", str(data), "--rows", "12", "--repeats", "1", "--model", str(tiny_model_folder)]
    found = run("scoring", *words, "--methods", "paper", "ours", "--subnets", "magnitude:1.0,0.8")
    lines = {line.split()[0]: line.split() for line in found.splitlines() if line.split()}
    heads = found[found.index("method") :].splitlines()[0]
    assert "max diff" in heads
    # method, s a pass, rows/s, tokens/s, ours is, computed, peak MB, max diff, rho, of rate
    assert float(lines["ours"][7]) < 1e-4  # the same losses as the paper's loop ...
    assert float(lines["ours"][8]) == 1.0  # ... in the same order
    assert "12 rows" in found
    assert "all subnets of magnitude:1.0,0.8" in found


@pytest.mark.usefixtures("in_factory_folder")
def test_images(here: Callable[..., str]) -> None:
    images = str(FOLDER.parents[1] / "data_samples" / "images")
    found = here("images", "--data", images, "--per-class", "6", "--model", "recipe_cnn:make", "--epochs", "1")
    lines = [line.split(" | ") for line in found.splitlines()[2:]]
    assert [line[0] for line in lines[:2]] == ["| dense loss", "| DLC, --subnets auto"]
    assert [line[2].strip(" |") for line in lines][-1] == "1.0"  # the training over itself


@pytest.mark.slow
def test_measurements(data: Path, tiny_model_folder: Path) -> None:
    words = ["--data", str(data), "--rows", "8", "--repeats", "1", "--model", str(tiny_model_folder)]
    found = run("measurements", *words, "--dtype", "float32")
    assert found.startswith("8 rows,")
    lines = found.splitlines()[3:]
    assert [line[:34].strip() for line in lines] == [
        "loss",
        "loss + mean",
        "loss + mean, weighted, last",
        "loss + gradient sketch, 4,096",
        "loss + gradient sketch, 8,192",
        "drop: the loss with an adapter",
        "shown: the loss behind one row",
    ]
    assert float(lines[0].split()[2]) == float(lines[0].split()[4]) == 1.0
    assert all(float(line.split()[-1]) < 1e-5 for line in lines[:5])  # what else is read changes no loss


def test_pipeline(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_model_folder: Path,
    tmp_path: Path,
    one_thread: None,
) -> None:
    """Each stage, in one process here; what it took is its last line."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(import_module("pipeline_model"), "TOKENIZER", str(tiny_model_folder))
    pipeline = import_module("pipeline")
    pipeline.write_rows(tmp_path / "rows.jsonl", 80)
    for name in pipeline.STAGES:
        pipeline.measure(name, tmp_path)
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found.keys() == {"seconds", "processor", "own", "peak"}
    counts = json.loads((tmp_path / "run" / "report.json").read_text())["counts"]
    assert (counts["read"], counts["scored"], counts["kept"]) == (80, 80, 24)
    assert np.load(tmp_path / "run" / "embeddings.npy").shape == (80, 256)


def test_pictures(here: Callable[..., str]) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    found = here("pictures", "--rows", "12", "--shape", json.dumps(shape), "--device", "cpu").splitlines()
    lines = {line[:16].strip(): line[16:].split() for line in found[4:]}
    assert list(lines) == ["one at a time", "batches of 64", "ours", "ours, 3 probes"]
    # seconds, pictures/s, ours is, of rate, peak MB, max diff
    assert all(float(line[-1]) < 1e-4 for line in lines.values())


@pytest.mark.nightly
def test_the_gpu_script_on_a_cpu(tiny_model_folder: Path) -> None:
    environment = {
        **os.environ,
        "SIZE": "tiny",
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "MODEL": str(tiny_model_folder),
    }
    environment |= {"TEXT_SECONDS": "3000", "PICTURE_SECONDS": "3000"}  # a busy processor is no slow GPU
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", str(FOLDER / "gpu.sh")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    for line in ("paper", "ours", "ours-probes", "all subnets of dlc", "ours, 3 probes"):
        assert line in done.stdout
    wrong = subprocess.run(
        ["bash", str(FOLDER / "gpu.sh")], capture_output=True, text=True, env={**environment, "SIZE": "9b"}, check=False
    )
    assert wrong.returncode == 2
    assert "take 8b or tiny" in wrong.stderr


def test_targets() -> None:
    found = run("targets", "--rows", "300", "--queries", "6", "--width", "16", "--keep", "20").splitlines()
    assert [line.split()[0] for line in found[2:]] == ["300", "300"]
    assert "20 rows for 6 queries" in found[2]


def test_duplicates(
    here: Callable[..., str], data: Path, tiny_model_folder: Path, tiny_embedder_folder: Path, tmp_path: Path
) -> None:
    model = ["--model", str(tiny_model_folder), "--keep-files", str(tmp_path / "kept")]
    embedders = ["--embedder", str(tiny_embedder_folder), "model", "model:last@1", "--raw"]
    words = ["--data", str(data), "--planted", "6", "--thresholds", "0.9", *model, *embedders]
    found = here("duplicates", *words)
    assert "20 rows and 6 planted near-duplicates; 14 rows are neither" in found
    for name in (str(tiny_embedder_folder), "model", "model raw", "model:last@1", "model:last@1 raw"):
        assert f"\n{name}: order " in found
    keys = next(line for line in found.splitlines() if line.startswith("keys")).split()
    assert keys[1:] == ["66.7%", "100.0%", "100.0%", "0.0%", "0.00%"]
    assert here("duplicates", *words) == found  # from the parts that were kept


def test_cost(data: Path, tiny_model_folder: Path, tiny_embedder_folder: Path) -> None:
    words = [
        "--data",
        str(data),
        "--rows",
        "20",
        "--model",
        str(tiny_model_folder),
        "--embedder",
        str(tiny_embedder_folder),
    ]
    found = run("cost", *words, "--subnets", "dlc", "--dtype", "float32")
    assert "in passes dense, magnitude_0800, magnitude_0640" in found
    assert "1 steps in float32" in found
    assert "(target 0.5)" in found


def test_clusters(here: Callable[..., str], tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = [{**row, "kind": "ab"[i % 2]} for i, row in enumerate(alpaca_rows(24))]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    words = ["--data", str(path), "--column", "kind", "--rows", "20", "--clusters", "3", "--seeds", "2"]
    found = here("clusters", *words, "--model", str(tiny_model_folder), "--embedder", "model")
    assert "20 rows, 0 left out, 2 labels, 3 clusters, 2 seeds" in found
    purity = float(next(line for line in found.splitlines() if line.startswith("model ")).split()[1])
    assert 0.5 <= purity <= 1


def test_agreement_with_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    agreement = import_module("clusters").agreement
    vectors = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    same, other = np.repeat(["a", "b"], 10), np.tile(["a", "b"], 10)
    assert agreement(vectors, same, 2, 0) == (1.0, pytest.approx(1.0), pytest.approx(1.0))
    purity, nmi, _ = agreement(vectors, other, 2, 0)
    assert (purity, nmi) == (0.5, pytest.approx(0.0))


def test_order_and_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    duplicates = import_module("duplicates")
    pairs, others = np.float32([0.9, 0.5]), np.float32([0.1, 0.5, 0.6, 0.95])
    assert duplicates.order(pairs, others) == (3 + 1.5) / 8
    assert duplicates.threshold_for(others, 0.5) == pytest.approx(0.6)
    assert duplicates.threshold_for(others, 0.001) == pytest.approx(0.95)  # at least one row


def test_made_up_runs_have_all_that_a_report_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from instruct_prune.report.html import write_report
    from instruct_prune.run.records import EmbedFacts, ScoreFacts, SelectFacts
    from instruct_prune.run.rows import rows_of

    monkeypatch.syspath_prepend(str(FOLDER))
    folder = import_module("report").make_run(tmp_path / "run", 400)
    facts = folder.facts(SelectFacts)
    assert (facts.scored, facts.kept, facts.dropped) == (400, 120, 280)
    assert folder.facts(ScoreFacts).health.subnets[0].name == "dense"
    assert folder.facts(EmbedFacts).width == 384
    assert write_report(folder, rows_of(folder)).stat().st_size > 100_000
