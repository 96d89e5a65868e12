"""Runs over conversations that show pictures, by the real commands: scored, selected, exported, killed, on two processes, proven."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sight_models import conversations, made, png, saved

from instruct_prune import DataConfig, InputError, Run, ScoreConfig
from instruct_prune.cli import main

HERE = Path(__file__).parent
FACTORY = """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
from sight_models import made

def make():
    model, processor = made("llava")
    left = [int(os.environ.get("FORWARDS", "-1"))]

    def count(*_):  # dies, as of kill -9, at its n-th forward pass
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), 9)

    model.model.language_model.register_forward_hook(count)
    return model, processor
"""
LADDER = ["--subnets", "dense", "magnitude:0.7", "blind", "--batch-tokens", "200", "--dtype", "float32"]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, rows, their pictures (one of them damaged), and a model that can die."""
    folder = tmp_path_factory.mktemp("pictured")
    (folder / "pics").mkdir()
    rows = conversations(folder / "pics", 14)
    (folder / "pics" / "5.png").write_bytes(png(50)[:200])
    rows.append({"id": "14", "image": "nowhere.png", "conversations": rows[0]["conversations"]})
    (folder / "llava.json").write_text(json.dumps(rows))
    (folder / "dying.py").write_text(FACTORY)
    saved("llava", folder / "model")
    return folder


def words(where: Path, out: Path, *more: str, command: str = "run", model: str | None = None) -> list[str]:
    data = ["--data", str(where / "llava.json"), "--image-folder", str(where / "pics")]
    return [command, *data, "--model", model or str(where / "model"), *LADDER, *more, "--out", str(out)]


def environment(where: Path, **more: str) -> dict[str, str]:
    there = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{where}:{os.environ.get('PYTHONPATH', '')}",
    }
    return {**os.environ, **there, "TESTS": str(HERE.parent), "HF_HUB_OFFLINE": "1", **more}


@pytest.fixture(scope="module")
def finished(where: Path) -> Path:
    more = ["--keep", "0.3", "--to", "llava", "llamafactory", "trl", "messages", "parquet", "disk", "--clusters", "2"]
    assert main(words(where, where / "run", *more)) == 0
    return where / "run"


def test_rows_add_up_and_pictures_that_cannot_be_used_have_reasons(finished: Path) -> None:
    stages = json.loads((finished / "manifest.json").read_text())["stages"]
    score, select = stages["score"]["facts"], stages["select"]["facts"]
    assert (score["read"], score["scored"], score["rejected"]) == (15, 13, 2)
    assert (select["scored"], select["kept"]) == (13, 4)
    rejected = [json.loads(line) for line in (finished / "rejected.jsonl").read_text().splitlines()]
    assert [(row["row_id"], row["status"], row["field"]) for row in rejected] == [
        (14, "rejected", "image"),
        (5, "failed", None),
    ]
    assert "no such picture" in rejected[0]["reason"]
    assert "5.png): the image is truncated" in rejected[1]["reason"]
    scores = pq.read_table(finished / "scores.parquet").to_pandas()
    assert [c for c in scores.columns if c.startswith("loss")] == ["loss_dense", "loss_magnitude_0700", "loss_blind"]
    scored = scores[scores.status == "ok"]
    text = scored.row_id % 4 == 3
    assert (scored[text].loss_blind == scored[text].loss_dense).all()
    assert (scored[~text].loss_blind != scored[~text].loss_dense).all()
    assert stages["embed"]["facts"]["embedder"] == "model"


def kept_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "pruned.jsonl").read_text().splitlines()]


def test_kept_rows_are_as_they_came(finished: Path, where: Path) -> None:
    rows = json.loads((where / "llava.json").read_text())
    kept = kept_rows(finished)
    assert len(kept) == 4
    assert all(row in rows for row in kept)
    assert json.loads((finished / "pruned.json").read_text()) == kept


def test_exports_name_the_same_pictures(finished: Path, where: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kept = kept_rows(finished)
    names = [[row["image"]] if isinstance(row.get("image"), str) else row.get("image", []) for row in kept]
    paths = [[str(where / "pics" / name) for name in each] for each in names]
    (llava,) = [json.loads(path.read_text()) for path in (finished / "llava").glob("*.json")]
    assert [row["conversations"] for row in llava] == [row["conversations"] for row in kept]
    assert [row.get("image") or [] for row in llava] == [each[0] if len(each) == 1 else each for each in paths]
    info = json.loads((finished / "llamafactory" / "dataset_info.json").read_text())
    (entry,) = info.values()
    assert entry["columns"] == {"messages": "conversations", "system": "system", "images": "images"}
    rows = [json.loads(line) for line in (finished / "llamafactory" / entry["file_name"]).read_text().splitlines()]
    assert [row["images"] for row in rows] == paths
    assert all(sum(t["value"].count("<image>") for t in r["conversations"]) == len(r["images"]) for r in rows)
    table = datasets.load_dataset("parquet", data_files=str(next((finished / "trl").glob("*.parquet"))), split="train")
    assert [[image.size for image in row["images"]] for row in table] == [
        [(32 + 4 * (int(row["id"]) % 3), 36)] * len(each) for row, each in zip(kept, names, strict=True)
    ]
    said = [json.loads(line) for line in (finished / "messages.jsonl").read_text().splitlines()]
    for row, each in zip(said, paths, strict=True):
        content = row["messages"][0]["content"]
        assert (
            [part["image"] for part in content if part["type"] == "image"] == each if each else isinstance(content, str)
        )
    (finished / "messages-again").mkdir()
    again = Run(finished / "messages-again").score(
        DataConfig(str(finished / "messages.jsonl")), ScoreConfig(subnets=("dense",)), model=made("llava")
    )
    assert again is not None
    scores = (
        pq.read_table(finished / "scores.parquet").to_pandas().set_index("row_id").loc[[int(row["id"]) for row in kept]]
    )
    np.testing.assert_allclose(again.losses[:, 0], scores.loss_dense, atol=1e-5)


def test_trl_s_own_collator_makes_the_scored_tokens(finished: Path, where: Path) -> None:
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    _, processor = made("llava")
    table = datasets.load_dataset("parquet", data_files=str(next((finished / "trl").glob("*.parquet"))), split="train")
    found = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(list(table))
    store = Run(finished).folder / "items"
    from instruct_prune.encode.store import TokenStore

    items, kept = TokenStore.open(store), [int(row["id"]) for row in kept_rows(finished)]
    for labels, row in zip(found["labels"], kept, strict=True):
        item = items[int(np.flatnonzero(items.row_id == row)[0])]
        said = processor.tokenizer.decode([t for t in labels.tolist() if t >= 0]).rstrip("\n")
        assert said == processor.tokenizer.decode(item.ids[item.response_mask].tolist())


def test_formats_of_text_alone_leave_out_rows_with_pictures(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [int(row["id"]) for row in kept_rows(finished) if "image" in row]
    assert main(["export", str(finished), "--to", "tokens"]) == 2
    assert "tokens cannot hold those" in capsys.readouterr().err
    for to, file in (("alpaca", "alpaca"), ("swift", "swift/llava-pruned"), ("axolotl", "axolotl/llava-pruned")):
        code = main(["export", str(finished), "--to", to])
        listed = finished / f"{file}.left_out.jsonl"
        if code == 0:
            left_out = [json.loads(line)["row_id"] for line in listed.read_text().splitlines()]
            assert left_out == shown, to
        else:
            assert "pictures" in capsys.readouterr().err
    assert main(["export", str(finished), "--to", "llava"]) == 0


def test_visual_is_a_score_and_the_report_lists_what_misleads(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert (
        main(["select", str(copy), "--keep", "5", "--score", "visual", "--method", "hardest", "--clusters", "none"])
        == 0
    )
    assert main(["report", str(copy)]) == 0
    scores = pq.read_table(copy / "scores.parquet").to_pandas()
    visual = (scores.loss_blind - scores.loss_dense).dropna()
    selection = pq.read_table(copy / "selection.parquet").to_pandas()
    assert set(selection[selection.selected].row_id) == set(scores.row_id[visual.nlargest(5).index])
    numbers = json.loads((copy / "report.json").read_text())["visual"]
    lowest = visual[visual < 0].sort_values()
    assert [row for row, _ in numbers["lowest"]] == scores.row_id[lowest.index].tolist()
    assert (numbers["misleads"], numbers["rows"]) == (len(lowest), int((visual != 0).sum()))
    page = (copy / "report.html").read_text()
    assert "the picture misleads" in page
    packed = b"".join(
        gzip.decompress(base64.b64decode(text)) for text in re.findall(r">\s*(H4sI[A-Za-z0-9+/=]+)", page)
    )
    assert packed.count(b"data:image/jpeg;base64,") == int((visual != 0).sum())


def contents(out: Path) -> dict[str, bytes]:
    """The bytes of a run's files, without the name of the model in the footer of the scores."""
    names = ["embeddings.npy", "selection.parquet", "pruned.jsonl", "rejected.jsonl"]
    bare = pa.BufferOutputStream()
    pq.write_table(pq.read_table(out / "scores.parquet").replace_schema_metadata(None), bare)
    return {"scores": bare.getvalue().to_pybytes(), **{name: (out / name).read_bytes() for name in names}}


def test_a_run_that_was_killed_ends_with_the_same_bytes(where: Path, finished: Path, tmp_path: Path) -> None:
    def started(**more: str) -> int:
        line = words(where, tmp_path / "run", "--keep", "0.3", "--clusters", "2", model="dying:make")
        done = subprocess.run(
            [sys.executable, "-m", "instruct_prune", *line],
            cwd=where,
            env=environment(where, **more),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, -9), done.stderr
        return done.returncode

    assert started(FORWARDS="18") == -9
    assert list((tmp_path / "run" / "parts").rglob("*.parquet"))
    assert started() == 0
    assert contents(tmp_path / "run") == contents(finished)


def test_two_processes_give_the_same_losses(where: Path, finished: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(port),
        "-m",
        "instruct_prune",
    ]
    line = words(where, tmp_path / "two", command="score")
    done = subprocess.run(
        [sys.executable, *launch, *line], cwd=where, env=environment(where), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = (pq.read_table(run / "scores.parquet").to_pandas() for run in (finished, tmp_path / "two"))
    for name in ("loss_dense", "loss_magnitude_0700", "loss_blind"):
        np.testing.assert_allclose(two[name], one[name], atol=1e-4)


def test_targets_are_compared_as_for_text(finished: Path, where: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    rows = json.loads((where / "llava.json").read_text())[:4]
    (where / "pics" / "target.json").write_text(json.dumps(rows))
    for by in ("rds", "gradient", "drop"):
        assert main(["target", str(copy), "--target", str(where / "pics" / "target.json"), "--by", by]) == 0
        assert main(["select", str(copy), "--keep", "3", "--method", "targeted", "--by", by]) == 0
    assert main(["target", str(copy), "--target", str(where / "pics" / "target.json"), "--by", "shown"]) == 2


def test_what_is_wrong_is_told_at_once(
    where: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model_folder: Path
) -> None:
    line = words(where, tmp_path / "r", "--keep", "3")
    without = [word for word in line if word not in ("--model", str(where / "model"))]
    assert main(without) == 2
    assert "name a vision-language model with --model" in capsys.readouterr().err
    assert main(words(where, tmp_path / "r", "--keep", "3", model=str(tiny_model_folder))) == 2
    assert "takes no pictures beside text" in capsys.readouterr().err
    assert not (tmp_path / "r" / "scores.parquet").exists()
    text = tmp_path / "text.jsonl"
    text.write_text('{"instruction": "q", "output": "a"}\n' * 12)
    assert (
        main(
            [
                "score",
                "--data",
                str(text),
                "--model",
                str(tiny_model_folder),
                "--subnets",
                "dense",
                "blind",
                "--out",
                str(tmp_path / "t"),
            ]
        )
        == 2
    )
    assert "the view blind" in capsys.readouterr().err


def test_a_loaded_model_in_python(where: Path, finished: Path, tmp_path: Path) -> None:
    data = DataConfig(str(where / "llava.json"), image_folder=str(where / "pics"))
    table = Run(tmp_path / "run").score(data, ScoreConfig(subnets=("visual",), batch_tokens=200), model=made("llava"))
    assert table is not None
    assert table.score_name == "visual"
    scores = pq.read_table(finished / "scores.parquet").to_pandas()
    np.testing.assert_allclose(table.score, scores.loss_blind - scores.loss_dense, atol=1e-5)
    with pytest.raises(InputError, match="no such folder"):
        Run(tmp_path / "other").score(
            DataConfig(str(where / "llava.json"), image_folder="nowhere"), model=made("llava")
        )


def test_what_cannot_hold_the_rows_is_told_before_they_are_scored(
    where: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(where, tmp_path / "r", "--keep", "0.3", "--to", "tokens", "copies")) == 2
    told = capsys.readouterr().err
    assert "--to tokens copies: the rows are conversations that show pictures" in told
    assert not (tmp_path / "r").exists()


def test_inspect_tells_rows_apart_by_their_pictures(where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "image": name,
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Two."}],
        }
        for name in ("0.png", "1.png", "1.png")
    ]
    (where / "same.json").write_text(json.dumps(rows))
    more = ["--image-folder", str(where / "pics"), "--model", str(where / "model")]
    assert main(["inspect", str(where / "same.json"), *more]) == 0
    assert "1 rows repeat an earlier one" in capsys.readouterr().out


def test_pairs_with_pictures_keep_their_rejected_answers(
    where: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says = [{"role": "user", "content": "<image>What is it?"}]
    pairs = [
        {"images": [{"bytes": png(i), "path": None}], "prompt": says} | {
            name: [{"role": "assistant", "content": f"{name} {i}"}] for name in ("chosen", "rejected")
        }
        for i in range(6)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
    data = ["--data", str(tmp_path / "pairs.parquet"), "--model", str(where / "model"), "--method", "random"]
    out = str(tmp_path / "run")
    assert main(["run", *data, "--keep", "3", "--to", "llava", "trl", "--out", out]) == 2
    assert "--to llava trl: the rows are pairs" in (told := capsys.readouterr().err)
    assert "--to parquet or disk" in told
    assert not Path(out).exists()
    assert main(["run", *data, "--keep", "3", "--to", "parquet", "--out", out]) == 0
    (made,) = (tmp_path / "run").glob("pruned*.parquet")
    kept = [pairs[row] for row in Run(out).selection.kept.tolist()]
    assert pq.read_table(made).to_pylist() == kept
    assert main(["export", out, "--to", "llava"]) == 2
    assert "Use --to parquet or disk" in capsys.readouterr().err
