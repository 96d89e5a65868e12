"""Image runs by the real commands: a tree in, a pruned list out; kills, two processes, bad input."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from instruct_prune.cli import main
from instruct_prune.report.summary import print_health
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "data_samples" / "images"
TINY = """
import os, numpy as np, torch
from torch import nn

def transform(image):
    return torch.from_numpy(np.asarray(image.resize((16, 16)), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)

def make():
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((3, 8), (8, 16))]
    model, left = nn.Sequential(*stages), [int(os.environ.get("FORWARDS", "-1"))]

    def count(*_):  # dies, as of kill -9, at its n-th forward pass
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), 9)

    model.register_forward_hook(count)
    return model, transform

def with_argument(size):
    return make()

def without_weights():
    return nn.Flatten(), transform
"""
LADDER = ["--subnets", "magnitude-global:1.0,0.8,0.6", "--batch-tokens", "4"]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny_cnn.py").write_text(TINY)
    return folder


@pytest.fixture(autouse=True)
def _in_the_factory_s_folder(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(where)


def words(out: Path, *more: str, command: str = "run") -> list[str]:
    return [command, "--data", str(IMAGES), "--model", "tiny_cnn:make", *LADDER, *more, "--out", str(out)]


@pytest.fixture(scope="module")
def finished(where: Path) -> Path:
    before = Path.cwd()
    os.chdir(where)
    assert main(words(where / "run", "--keep", "0.5", "--to", "links", "copies", "disk")) == 0
    os.chdir(before)
    return where / "run"


def environment(where: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(where)}


def test_rows_add_up_and_broken_pictures_have_reasons(finished: Path) -> None:
    stages = json.loads((finished / "manifest.json").read_text())["stages"]
    score, select = stages["score"]["facts"], stages["select"]["facts"]
    assert (score["read"], score["scored"], score["rejected"]) == (60, 57, 3)
    assert (select["scored"], select["kept"], select["dropped"]) == (57, 28, 29)
    rejected = [json.loads(line) for line in (finished / "rejected.jsonl").read_text().splitlines()]
    key = json.loads((ROOT / "data_samples" / "images_key.json").read_text())
    assert {"/".join(Path(r["file"]).parts[-2:]) for r in rejected} == set(key["broken"])
    assert ["truncated" in rejected[0]["reason"], "zero bytes" in rejected[1]["reason"]] == [True, True]
    scores = pq.read_table(finished / "scores.parquet").to_pandas()
    columns = ["loss_dense", "loss_magnitude_0800_global", "loss_magnitude_0600_global"]
    assert [c for c in scores.columns if c.startswith("loss")] == columns
    assert (scores.status == "failed").sum() == scores.score.isna().sum() == 3
    np.testing.assert_allclose(scores.score, scores[columns].astype(float).mean(axis=1), rtol=1e-5)


def test_classes_are_the_strata(finished: Path) -> None:
    selection = pq.read_table(finished / "selection.parquet").to_pandas()
    assert selection.groupby("stratum", observed=True).selected.sum().to_dict() == {
        "circle": 7, "square": 7, "stripes": 7, "triangle": 7,
    }  # fmt: skip
    assert not (finished / "clusters.parquet").exists()


def test_embeddings_are_the_dense_features(finished: Path) -> None:
    vectors = np.load(finished / "embeddings.npy", allow_pickle=False)
    assert vectors.shape == (57, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_kept_files_are_listed_linked_copied_and_a_dataset(finished: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kept = [json.loads(line) for line in (finished / "pruned.jsonl").read_text().splitlines()]
    assert len(kept) == 28
    assert all(Path(row["path"]).parent.name == row["label"] for row in kept)
    for row in kept:
        inside = Path(row["label"]) / Path(row["path"]).name
        link, copy = finished / "pruned_links" / inside, finished / "pruned_copies" / inside
        assert link.is_symlink()
        assert not copy.is_symlink()
        assert link.read_bytes() == copy.read_bytes() == Path(row["path"]).read_bytes()
    assert len(list((finished / "pruned_copies").rglob("*.*"))) == 28
    table = datasets.load_from_disk(str(finished / "pruned_dataset"))
    assert table.features["label"].names == ["circle", "square", "stripes", "triangle"]
    assert [table.features["label"].int2str(i) for i in table["label"]] == [row["label"] for row in kept]


def test_report_has_thumbnails(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    packed = b"".join(
        gzip.decompress(base64.b64decode(text)) for text in re.findall(r">\s*(H4sI[A-Za-z0-9+/=]+)", page)
    )
    assert packed.count(b"data:image/jpeg;base64,") == 57


def test_summary_and_report_name_no_guess_that_pictures_do_not_have(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_health(RunFolder(finished))
    told = capsys.readouterr().out
    assert "dense" in told
    assert "nan" not in told
    assert "guessing by frequency" not in (finished / "report.html").read_text(encoding="utf-8")


def test_select_again_and_prune_the_pruned(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, symlinks=True)
    assert main(["select", "--out", str(copy), "--keep", "9", "--method", "k_center"]) == 0
    assert main(["export", "--out", str(copy)]) == 0
    assert len((copy / "pruned.jsonl").read_text().splitlines()) == 9
    again = [
        "score",
        "--data",
        str(finished / "pruned.jsonl"),
        "--model",
        "tiny_cnn:make",
        "--out",
        str(tmp_path / "again"),
    ]
    assert main(again) == 0
    stages = json.loads((tmp_path / "again" / "manifest.json").read_text())["stages"]
    assert stages["score"]["facts"]["scored"] == 28


def test_knn_lc(tmp_path: Path) -> None:
    out = tmp_path / "knn"
    more = ["--subnets", "knn_lc", "--batch-tokens", "8"]
    assert (
        main(["run", "--data", str(IMAGES), "--model", "tiny_cnn:make", *more, "--keep", "10", "--out", str(out)]) == 0
    )
    scores = pq.read_table(out / "scores.parquet").to_pandas()
    assert [c for c in scores.columns if c.startswith("loss")] == ["loss_dense"]
    scored = scores[scores.status == "ok"]
    assert np.load(out / "states" / "rows.npy").tolist() == scored.row_id.tolist()
    names = sorted(path.name for path in (out / "states").glob("mean_*_dense.npy"))
    assert names == [
        f"mean_0{depth}_dense.npy" for depth in (1, 2, 3)
    ]  # two stages, the last also as the model's output
    labels = np.asarray([Path(line["path"]).parent.name for line in read_rows(out)])
    confidences = [knn_confidence(np.load(out / "states" / name), labels) for name in names]
    np.testing.assert_allclose(scored.score, 1 - np.mean(confidences, axis=0), atol=1e-5)
    assert scores.score[scores.status != "ok"].isna().all()


def read_rows(out: Path) -> list[dict[str, str]]:
    """The pictures that could be read, as `select --keep 1.0` lists them."""
    assert main(["select", "--out", str(out), "--keep", "1.0"]) == 0
    assert main(["export", "--out", str(out)]) == 0
    return [json.loads(line) for line in (out / "pruned.jsonl").read_text().splitlines()]


def knn_confidence(states: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of 1 / distance that neighbours of the own class have, at the k with the most right votes; written out."""
    apart = np.linalg.norm(states[:, None].astype(np.float64) - states[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    order = np.argsort(apart, axis=1, kind="stable")
    best, found = -1, np.zeros(len(states))
    for k in (1, 3, 5, 10, 20, 50):
        near = order[:, :k]
        weights = 1 / np.take_along_axis(apart, near, axis=1)
        votes = np.stack([(weights * (labels[near] == name)).sum(axis=1) for name in sorted(set(labels))], axis=1)
        right = int((np.asarray(sorted(set(labels)))[votes.argmax(axis=1)] == labels).sum())
        if right > best:
            best = right
            found = (weights * (labels[near] == labels[:, None])).sum(axis=1) / weights.sum(axis=1)
    return found


def test_second_run_is_skipped_and_another_model_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "scores.parquet").read_bytes()
    assert main(words(finished, command="score")) == 0
    assert "score: done before, skipped" in capsys.readouterr().err
    assert main([*words(finished, command="score"), "--subnets", "dense"]) == 2
    assert "subnets" in capsys.readouterr().err
    assert (finished / "scores.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--subnets", "ifd"], "is for text"),
        (["--subnets", "knn_lc", "dense"], "stands alone"),
        (["--device-map", "auto"], "fits on one device"),
        (["--keep", "58"], "57"),
        (["--model", "smollm2-135m-instruct"], "'smollm2-135m-instruct' (LlamaModel) takes no pictures"),
        (["--model", "all-minilm-l6-v2"], "'all-minilm-l6-v2' (BertModel) takes no pictures"),
        (["--model", "nosuch/thing"], "nosuch/thing: it is not in the cache"),
        (["--embedder", "nosuch/thing"], "--embedder nosuch/thing"),
        (["--template", "plain"], "--template is for texts"),
        (["--max-length", "64"], "--max-length is for texts"),
        (["--turns", "last"], "--turns is for texts"),
        (["--overlong", "drop"], "--overlong is for texts"),
        (["--subnets", "depth:1"], "depth"),
        (["--subnets", "dropout:0.1"], "dropout"),
        (["--probes", "weighted"], "no order of positions"),
        (["--strict"], "Mend it, or run without --strict"),
        (["--model", "tiny_cnn:with_argument"], "a function without parameters"),
        (["--model", "tiny_cnn:without_weights"], "Flatten has no weights"),
    ],
)
def test_what_images_do_not_have_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    options = ["--keep", "5"] if "--keep" not in more else []
    base = ["run", "--data", str(IMAGES), "--model", "tiny_cnn:make", "--out", str(tmp_path / "out")]
    assert main([*base, *options, *more]) == 2
    told_us = capsys.readouterr().err
    assert told in told_us.splitlines()[-1], told_us
    assert not (tmp_path / "out" / "selection.parquet").exists()


def test_one_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(IMAGES / "circle", tmp_path / "set" / "circle")
    assert (
        main(["score", "--data", str(tmp_path / "set"), "--model", "tiny_cnn:make", "--out", str(tmp_path / "o")]) == 2
    )
    assert "one class (circle)" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one_and_a_killed_run_is_completed(where: Path, tmp_path: Path) -> None:
    def launched(n: int, out: Path, **env: str) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
        return subprocess.run(
            [*launcher, str(ROOT / "recipes" / "score.py"), *words(out, command="score")[1:]],
            env=environment(where) | env, cwd=where, capture_output=True, text=True, check=False,
        )  # fmt: skip

    one = tmp_path / "one"
    alone = [sys.executable, "-m", "instruct_prune", *words(one, command="score")]
    subprocess.run(alone, env=environment(where), cwd=where, check=True, capture_output=True)
    two = launched(2, tmp_path / "two")
    assert two.returncode == 0, two.stderr
    assert "2 processes" in two.stderr
    for name in ("scores.parquet", "embeddings.npy"):
        assert (tmp_path / "two" / name).read_bytes() == (one / name).read_bytes()

    # Killed in the middle of the features, then in the middle of the subnets, then left alone.
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "instruct_prune", *words(out, command="score")]
    codes = []
    for forwards in ("6", "30", "-1"):
        env = environment(where) | {"FORWARDS": forwards}
        codes.append(subprocess.run(command, env=env, cwd=where, capture_output=True, check=False).returncode)
    assert codes == [-9, -9, 0]
    for name in ("scores.parquet", "embeddings.npy"):
        assert (out / name).read_bytes() == (one / name).read_bytes()


def test_a_table_of_pictures_is_pruned_in_its_own_format(tmp_path: Path) -> None:
    import pyarrow as pa

    files = [p for p in sorted(IMAGES.rglob("*.*")) if p.parent.name in ("circle", "square")][:16]
    rows = [{"image": {"bytes": p.read_bytes(), "path": p.name}, "label": p.parent.name} for p in files]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    out = tmp_path / "run"
    base = ["run", "--data", str(tmp_path / "set.parquet"), "--model", "tiny_cnn:make", *LADDER, "--keep", "6"]
    assert main([*base, "--out", str(out)]) == 0
    selection = pq.read_table(out / "selection.parquet").to_pandas()
    kept = selection.row_id[selection.selected].tolist()
    assert len(kept) == 6
    assert pq.read_table(out / "pruned.parquet").to_pylist() == [rows[i] for i in kept]


def test_vectors_of_the_users_own_stay_when_pictures_are_scored_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(57, 5)).astype(np.float32))
    assert main(words(out, "--keep", "5", "--embedder", str(tmp_path / "v.npy"))) == 0
    assert np.load(out / "embeddings.npy").shape == (57, 5)
    assert main([*words(out, command="score"), "--subnets", "dense", "--restart", "score"]) == 0
    assert np.load(out / "embeddings.npy").shape == (57, 5)
    assert main(["embed", "--out", str(out), "--embedder", "model", "--restart"]) == 0
    assert np.load(out / "embeddings.npy").shape == (57, 16)
    before = np.load(out / "embeddings.npy")
    assert main([*words(out, command="score"), "--restart", "score"]) == 0
    np.testing.assert_array_equal(np.load(out / "embeddings.npy"), before)
    assert RunFolder(out).find(EmbedFacts) is not None


def test_vectors_of_an_earlier_stage(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(words(out, "--keep", "5", "--embedder", "model:mean@1")) == 0
    assert np.load(out / "embeddings.npy").shape == (57, 8)


def test_what_is_of_texts_is_refused_or_left_unsaid(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dev.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    target = ["--target", str(tmp_path / "dev.jsonl")]
    for command in (words(tmp_path / "other", "--keep", "0.5", *target), ["target", str(finished), *target]):
        assert main(command) == 2
        assert "--target: the rows are labelled pictures, and a target is of texts" in capsys.readouterr().err
    assert main(["show", str(finished)]) == 0
    assert "response tokens" not in capsys.readouterr().out
    assert main(["export", str(finished), "--to", "disk", "-q"]) == 0
    assert capsys.readouterr().err == ""
