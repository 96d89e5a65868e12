"""The real commands on real (tiny) models: the whole way, bad input, interruption, two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from machines import killed_at
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.cli import main

ROOT = Path(__file__).parents[2]
N = 60
SMALL = ["--batch-tokens", "256", "--dtype", "float32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", alpaca_rows(N))


@pytest.fixture(scope="module")
def score_words(data: Path, tiny_model_folder: Path) -> list[str]:
    return ["--data", str(data), "--model", str(tiny_model_folder), "--subnets", "dlc", *SMALL]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, score_words: list[str], tiny_embedder_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["run", *score_words, "--embedder", str(tiny_embedder_folder), "--keep", "0.25", "--clusters", "4"]
    assert main([*words, "--out", str(out)]) == 0
    return out


def environment() -> dict[str, str]:
    # One thread everywhere, as torchrun sets it: bits may differ between numbers of threads.
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "instruct_prune", *words]


def torchrun(n: int, *words: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
    return [*launcher, str(ROOT / "recipes" / "score.py"), *words]


# ---- the whole way ----


def test_kept_rows_are_exact_in_number_and_in_bytes(finished: Path, data: Path) -> None:
    lines = data.read_bytes().splitlines(keepends=True)
    kept = (finished / "pruned.jsonl").read_bytes().splitlines(keepends=True)
    assert len(kept) == 15
    selection = pq.read_table(finished / "selection.parquet").to_pandas()
    assert kept == [lines[i] for i in selection.row_id[selection.selected]]


def test_every_file_of_the_run_is_there_and_adds_up(finished: Path) -> None:
    scores = pq.read_table(finished / "scores.parquet").to_pandas()
    assert list(scores.columns) == [
        "row_id", "content_hash", "status", "n_prompt", "n_response", "n_cut",
        "loss_dense", "loss_magnitude_0800", "loss_magnitude_0640", "score",
    ]  # fmt: skip
    ladder = scores[["loss_dense", "loss_magnitude_0800", "loss_magnitude_0640"]]
    np.testing.assert_allclose(scores.score, ladder.astype(float).mean(axis=1), rtol=1e-5)
    vectors = np.load(finished / "embeddings.npy", allow_pickle=False)
    assert vectors.shape == (N, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    clusters = pq.read_table(finished / "clusters.parquet").to_pandas()
    assert clusters.row_id.tolist() == scores.row_id.tolist() == list(range(N))
    manifest = json.loads((finished / "manifest.json").read_text())
    score, select = manifest["stages"]["score"]["facts"], manifest["stages"]["select"]["facts"]
    assert (score["read"], score["scored"], score["rejected"]) == (N, N, 0)
    assert (select["scored"], select["kept"], select["dropped"]) == (N, 15, 45)
    assert list(manifest["stages"]) == ["rows", "encode", "score", "embed", "select", "export"]
    assert all(stage["facts"] is not None for stage in manifest["stages"].values())
    assert not list(finished.rglob("*.tmp"))


def test_running_again_skips_what_is_done_and_changes_no_byte(
    finished: Path, score_words: list[str], tiny_embedder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("scores.parquet", "embeddings.npy", "selection.parquet", "pruned.jsonl", "clusters.parquet")
    before = {name: (finished / name).read_bytes() for name in names}
    words = ["run", *score_words, "--embedder", str(tiny_embedder_folder), "--keep", "0.25", "--clusters", "4"]
    assert main([*words, "--out", str(finished)]) == 0
    told = capsys.readouterr()
    assert "score: done before, skipped" in told.err
    assert "60 read = 60 scored + 0 rejected; 60 scored = 15 kept + 45 dropped" in told.out
    assert before == {name: (finished / name).read_bytes() for name in names}


def test_rows_of_another_version_are_read_again_and_the_scores_stay(
    finished: Path, score_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    file, scores = out / "rows" / "rows.json", (out / "scores.parquet").read_bytes()
    times = file.stat()
    file.write_text(file.read_text().replace('"version": 2', '"version": 1'))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert main(["select", str(out), "--keep", "5"]) == 2
    assert "written by another version" in capsys.readouterr().err
    assert main(["score", *score_words, "--out", str(out)]) == 0
    assert '"version": 2' in file.read_text()
    assert (out / "scores.parquet").read_bytes() == scores
    assert main(["select", str(out), "--keep", "5"]) == 0


def test_select_again_with_another_budget_needs_no_model(finished: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert main(["select", "--out", str(copy), "--keep", "7", "--clusters", "none", "--score", "lc"]) == 0
    assert main(["export", "--out", str(copy)]) == 0
    assert len((copy / "pruned.jsonl").read_bytes().splitlines()) == 7


def test_scores_equal_a_plain_loop(finished: Path, data: Path, tiny_model_folder: Path) -> None:
    """Stanford prompt, whole text tokenized once, one row per forward, all logits, token loop."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    found = pq.read_table(finished / "scores.parquet").to_pandas()
    for i, row in enumerate(alpaca_rows(N)[:12]):
        if row["input"]:
            prompt = (
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.\n\n"
                f"### Instruction:\n{row['instruction']}\n\n### Input:\n{row['input']}\n\n### Response:\n"
            )
        else:
            prompt = (
                "Below is an instruction that describes a task. "
                "Write a response that appropriately completes the request.\n\n"
                f"### Instruction:\n{row['instruction']}\n\n### Response:\n"
            )
        encoded = tokenizer(prompt + row["output"], add_special_tokens=False, return_offsets_mapping=True)
        ids = [*encoded["input_ids"], tokenizer.eos_token_id]
        response = [end > len(prompt) for _, end in encoded["offset_mapping"]] + [True]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        losses = [
            -torch.log_softmax(logits[t - 1], -1)[ids[t]].item() for t in range(1, len(ids)) if response[t]
        ]  # fmt: skip
        assert found.loss_dense[i] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
        assert found.n_response[i] == len(losses)
        assert found.n_prompt[i] == len(ids) - len(losses)


# ---- configuration ----


def test_yaml_flags_and_print_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("keep: 0.3\nclusters: 8\nsubnets: [dense, 'magnitude:0.9']\nmethod: hardest\n")
    assert main(["run", "--config", str(file), "--keep", "500", "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["keep"], shown["clusters"], shown["method"]) == (500, "8", "hardest")
    assert shown["subnets"] == ["dense", "magnitude:0.9"]
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(shown))
    assert main(["run", "--config", str(again), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kep: 0.3", "Did you mean 'keep'"),
        ("keep: many", "keep is 'many', expected int or float"),
        ("- keep", "mapping"),
        ("keep: [", "not valid YAML"),
        ("dtype: int4", "must be one of auto, float32"),
    ],
)
def test_wrong_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert main(["run", "--config", str(file)]) == 2
    assert says in capsys.readouterr().err


# ---- bad input: one paragraph, exit code 2, nothing written ----


def bad(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("instruct-prune: error: ")
    return told


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--keep", "0"], "--keep 0"),
        (["--keep", "1.5"], "--keep 1.5"),
        (["--keep", "-3"], "--keep -3"),
        (["--keep", "5000"], "60"),
        (["--keep", "0.3", "--data", "missing.json"], "missing.json"),
        (["--keep", "0.3", "--model", "smolm2-135m-instruct"], "Did you mean 'smollm2-135m-instruct'"),
        (["--keep", "0.3", "--model", "./nowhere"], "no such model folder"),
        (["--keep", "0.3", "--model", "nobody/no-such-model"], "nobody/no-such-model"),
        (["--keep", "0.3", "--method", "flexran"], "Did you mean 'flexrand'"),
        (["--keep", "0.3", "--subnets", "dlx"], "Did you mean 'dlc'"),
        (["--keep", "0.3", "--max-length", "1"], "--max-length 1"),
        (["--keep", "0.3", "--batch-tokens", "0"], "--batch-tokens 0"),
        ([], "--keep 0.3"),
    ],
)
def test_wrong_options_are_told_before_the_work(
    score_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], says: str
) -> None:
    told = bad(["run", *score_words, "--out", str(tmp_path / "r"), *change], capsys)
    assert says in told
    assert not (tmp_path / "r" / "scores.parquet").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--decontaminate", "none.jsonl"], "--decontaminate: none.jsonl does not exist"),
        (["--must-keep", "{ids}"], "line 2: 'two' is not a row id"),
        (["--must-keep", "{far}"], "there is no row 999 that can be used"),
        (["--must-keep", "category=zzz"], "no row has 'category' equal to 'zzz'"),
        (["--stratify", "nope"], "--stratify nope: the data has no column"),
        (["--method", "ifd"], "needs the loss under 'alone', which --subnets dense does not measure"),
        (["--score", "knn_lc"], "goes by the classes of labelled pictures"),
        (["--clusters", "500"], "--clusters 500 is more than the 60 rows"),
        (["--clusters", "5", "--stratify", "category"], "Give one of the two"),
        (["--keep-tokens", "999999"], "--keep-tokens 999999 is more than the"),
        (["--subnets", "dlc", "--score-weights", "1", "2"], "2 weights for 3 subnets"),
        (["--score-subnets", "dense"], "the score 'loss' is no average over subnets"),
        (["--subnets", "dlc", "--score-subnets", "magnitude:0.5"], "'magnitude_0500' is not measured"),
        (["--subnets", "dlc", "alone", "--score-subnets", "dense", "alone"], "under 'alone' are not averaged"),
        (["--include-collapsed"], "--include-collapsed: the score 'loss' is no average"),
        (["--dedup-keep", "longest"], "--dedup-keep longest is for near-duplicates"),
        (["--subnet-seeds", "2"], "--subnet-seeds 2 is for random and dropout subnets"),
        (["--include-head"], "--include-head is for subnets with masked weights"),
        (["--image-size", "64"], "--image-size 64: the rows are texts"),
        (["--model-revision", "main"], "--model-revision main names a commit, tag or branch on the Hub"),
        (["--data-split", "train"], "--data-split train"),
        (["--license", "mit"], "--license mit is for the dataset card"),
    ],
)
def test_options_that_cannot_hold_or_change_nothing_are_refused_before_scoring(
    data: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    says: str,
) -> None:
    (tmp_path / "ids.txt").write_text("1\ntwo\n")
    (tmp_path / "far.txt").write_text("1\n999\n")
    change = [word.format(ids=tmp_path / "ids.txt", far=tmp_path / "far.txt") for word in change]
    keep = [] if "--keep-tokens" in change else ["--keep", "0.3"]
    words = ["run", "--data", str(data), "--model", str(tiny_model_folder), "--subnets", "dense", *SMALL, *keep]
    told = bad([*words, *change, "--out", str(tmp_path / "r")], capsys)
    assert says in told
    assert not (tmp_path / "r" / "measured.parquet").exists()
    assert not (tmp_path / "r" / "scores.parquet").exists()


def test_formats_without_a_place_for_the_rejected_answer_are_refused_before_scoring(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"prompt": f"q {i}", "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(8)]
    words = ["--data", str(write_jsonl(tmp_path / "pairs.jsonl", pairs)), "--model", str(tiny_model_folder)]
    told = bad(["run", *words, "--keep", "4", "--to", "trl", "tokens", "alpaca", "--out", str(tmp_path / "r")], capsys)
    assert "--to tokens alpaca: the rows are pairs of a chosen and a rejected answer" in told
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.jsonl", b"", "empty"),
        ("words.json", b"these are words", "JSON"),
        ("none.jsonl", b'{"instruction": "a", "input": ""}\n', "output"),
        ("utf16.jsonl", '{"instruction": "a", "output": "b"}\n'.encode("utf-16"), "UTF-16"),
    ],
)
def test_wrong_files(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, says: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    words = [
        "run",
        "--data",
        str(file),
        "--model",
        str(tiny_model_folder),
        "--keep",
        "0.5",
        "--out",
        str(tmp_path / "r"),
    ]
    told = bad(words, capsys)
    assert name in told
    assert says in told


def test_another_run_in_the_folder_is_refused_with_what_differs(
    finished: Path, score_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "scores.parquet").read_bytes()
    capsys.readouterr()
    assert main(["score", *score_words, "--subnets", "perplexity", "--out", str(finished)]) == 2
    told = capsys.readouterr().err
    assert "subnets" in told
    assert "magnitude_0800" in told
    assert "--restart" in told
    capsys.readouterr()
    assert main(["score", *score_words, "--template", "plain", "--out", str(finished)]) == 2
    assert "template" in capsys.readouterr().err
    assert (finished / "scores.parquet").read_bytes() == before


def test_a_folder_of_other_files_is_refused(
    score_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert "not a run" in bad(["score", *score_words, "--out", str(tmp_path)], capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_data_that_changed_after_scoring_is_refused(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_jsonl(tmp_path / "d.jsonl", alpaca_rows(20))
    out = str(tmp_path / "r")
    assert (
        main(
            [
                "score",
                "--data",
                str(file),
                "--model",
                str(tiny_model_folder),
                "--subnets",
                "dense",
                *SMALL,
                "--out",
                out,
            ]
        )
        == 0
    )
    assert main(["select", "--out", out, "--keep", "5", "--clusters", "none"]) == 0
    write_jsonl(file, alpaca_rows(21))
    assert "changed" in bad(["export", "--out", out], capsys)


def test_commands_out_of_order_name_the_one_to_run_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "instruct-prune score" in bad(["select", "--out", str(tmp_path / "r"), "--keep", "0.5"], capsys)
    assert "--out is missing" in bad(["embed"], capsys)


def test_unknown_command_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'score'" in bad(["scor"], capsys)
    with pytest.raises(SystemExit) as stop:
        main(["score", "--modle", "x"])
    assert stop.value.code == 2


def test_rejected_and_empty_rows_are_counted(tiny_model_folder: Path, tmp_path: Path) -> None:
    rows = alpaca_rows(20)
    rows[4]["output"] = "  "
    lines = [json.dumps(row).encode() for row in rows]
    lines[7] = b'{"instruction": "cut off'
    lines[9] = json.dumps({"instruction": "no answer"}).encode()
    file = tmp_path / "d.jsonl"
    file.write_bytes(b"\n".join(lines))
    out = tmp_path / "r"
    words = ["score", "--data", str(file), "--model", str(tiny_model_folder), "--subnets", "dense", *SMALL]
    assert main([*words, "--out", str(out)]) == 0
    assert main(["select", "--out", str(out), "--keep", "1.0", "--clusters", "none"]) == 0
    assert main(["export", "--out", str(out)]) == 0
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert sorted((r["line"], r["status"]) for r in rejected) == [
        (5, "empty_response"),
        (8, "rejected"),
        (10, "rejected"),
    ]
    assert all(r["reason"] and r["file"] == str(file) for r in rejected)
    assert (out / "pruned.jsonl").read_bytes().splitlines() == [b for i, b in enumerate(lines) if i not in (4, 7, 9)]
    manifest = json.loads((out / "manifest.json").read_text())
    score = manifest["stages"]["score"]["facts"]
    assert (score["read"], score["scored"], score["rejected"]) == (20, 17, 3)


def test_dry_run_scores_nothing(score_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r"
    assert main(["score", *score_words, "--dry-run", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "60 rows" in told
    assert "tokens/s" in told
    assert not (out / "scores.parquet").exists()


def test_row_order_and_padding_side_change_no_score(
    score_words: list[str], finished: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Shuffled rows under a tokenizer that pads on the left: the same losses, row by row."""
    import shutil

    order = np.random.default_rng(1).permutation(N)
    rows = alpaca_rows(N)
    data = write_jsonl(tmp_path / "shuffled.jsonl", [rows[i] for i in order])
    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder, model)
    settings = json.loads((model / "tokenizer_config.json").read_text()) | {"padding_side": "left"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    words = ["score", *score_words, "--data", str(data), "--model", str(model), "--batch-tokens", "777"]
    assert main([*words, "--out", str(tmp_path / "r")]) == 0
    one = pq.read_table(finished / "scores.parquet").to_pandas().iloc[order]
    two = pq.read_table(tmp_path / "r" / "scores.parquet").to_pandas()
    assert one.content_hash.tolist() == two.content_hash.tolist()
    for column in ("loss_dense", "loss_magnitude_0800", "loss_magnitude_0640", "score"):
        np.testing.assert_allclose(two[column], one[column], atol=1e-4)


def test_rows_that_fail_in_scoring_get_a_status_and_are_not_ranked(
    score_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from instruct_prune.models.causal_lm import CausalLM

    plain = CausalLM.losses

    def losses(self: CausalLM, batch: Any, states: Any, depth: int | None) -> Any:
        values = plain(self, batch, states, depth).clone()
        longest = int(batch.counts.max())
        if longest >= 88:
            raise torch.OutOfMemoryError("CUDA out of memory")
        values[batch.counts == 50] = float("nan")
        return values

    monkeypatch.setattr(CausalLM, "losses", losses)
    out = tmp_path / "r"
    assert main(["score", *score_words, "--out", str(out)]) == 0
    table = pq.read_table(out / "scores.parquet").to_pandas()
    long, odd = table.n_response >= 88, table.n_response == 50
    assert long.any()
    assert odd.any()
    assert set(table.status[long]) == {"failed"}
    assert set(table.status[odd]) == {"nonfinite"}
    assert set(table.status[~long & ~odd]) == {"ok"}
    assert table.score[long | odd].isna().all()
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {r["status"] for r in rejected} == {"failed", "nonfinite"}
    assert all("out of memory" in r["reason"] or "loss under dense is nan" in r["reason"] for r in rejected)
    assert main(["select", "--out", str(out), "--keep", "1.0", "--clusters", "none"]) == 0
    assert pq.read_table(out / "selection.parquet").num_rows == int((~long & ~odd).sum())


def test_ifd_and_depth_presets(score_words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "r"
    words = ["score", *score_words, "--subnets", "ifd", "depth:1,2", "--out", str(out)]
    assert main(words) == 0
    table = pq.read_table(out / "scores.parquet").to_pandas()
    np.testing.assert_allclose(table.score, np.exp(table.loss_dense - table.loss_alone), rtol=1e-5)
    np.testing.assert_allclose(table.loss_depth_02, table.loss_dense, atol=1e-5)


# ---- interruption and several processes ----


@pytest.fixture(scope="module")
def answers_of_one_token(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> list[str]:
    """Options of rows of which one has an answer that nothing stands before, where it stands alone."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "bare.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    said = ["a longer answer", "another answer", "a", "the last of them"]
    turns = [
        [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": text}]
        for i, text in enumerate(said)
    ]
    data = write_jsonl(folder / "rows.jsonl", [{"messages": each} for each in turns])
    return ["--data", str(data), "--model", str(tiny_model_folder), "--template", str(folder / "bare.jinja"), *SMALL]


@pytest.mark.parametrize(
    ("subnets", "choice", "unranked"),
    [
        (["ifd"], [], True),
        (["ifd"], ["--score", "loss", "--method", "random"], False),
        (["dlc", "alone"], ["--score", "ifd"], True),
        (["dlc", "alone"], ["--method", "ifd"], True),
        (["dlc", "alone"], [], False),
    ],
)
def test_a_row_that_the_selection_cannot_rank_is_dropped_with_its_reason(
    answers_of_one_token: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    subnets: list[str], choice: list[str], unranked: bool,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    words = [*answers_of_one_token, "--subnets", *subnets, "--keep", "2", "--clusters", "none", *choice]
    assert main(["run", *words, "--out", str(out)]) == 0
    table = pq.read_table(out / "scores.parquet").to_pandas()
    assert table.status.tolist() == ["ok"] * 4
    assert not table.loss_dense.isna().any()
    assert table.loss_alone.isna().tolist() == [False, False, True, False]
    rows = pq.read_table(out / "selection.parquet").to_pandas()
    assert rows.row_id.tolist() == [0, 1, 2, 3]
    assert (rows.reason == "no score").tolist() == [False, False, unranked, False]
    told = capsys.readouterr()
    assert "4 scored = 2 kept + 2 dropped" in told.out
    assert ("1 scored rows have no" in told.err) == unranked
    assert " nan" not in told.out + told.err
    counts = json.loads((out / "report.json").read_text())["counts"]
    assert counts["scored"] == counts["kept"] + counts["dropped"] == 4


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bytes(score_words: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["score", *score_words, "--batch-tokens", "64"]
    subprocess.run(command(*words, "--out", str(whole)), env=environment(), check=True, capture_output=True)
    killed_at(broken / "parts" / "score" / "dense" / "0*.parquet", 3, *words, "--out", str(broken))
    assert not (broken / "scores.parquet").exists()
    done = subprocess.run(
        command(*words, "--out", str(broken)), env=environment(), check=True, capture_output=True, text=True
    )
    assert "resuming" in done.stderr
    assert (broken / "scores.parquet").read_bytes() == (whole / "scores.parquet").read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(score_words: list[str], finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    done = subprocess.run(
        torchrun(2, *score_words, "--out", str(out)), env=environment(), check=True, capture_output=True, text=True
    )
    assert "2 processes on cpu" in done.stderr
    one = pq.read_table(finished / "scores.parquet").to_pandas()
    two = pq.read_table(out / "scores.parquet").to_pandas()
    assert two.row_id.tolist() == one.row_id.tolist()
    for column in one.columns:
        if column.startswith("loss") or column == "score":
            np.testing.assert_allclose(two[column], one[column], atol=1e-4)
    assert json.loads((out / "manifest.json").read_text())["stages"]["score"]["facts"]["processes"] == 2


@pytest.mark.slow
def test_device_map_with_two_processes_is_refused_in_our_words(score_words: list[str], tmp_path: Path) -> None:
    words = torchrun(2, *score_words, "--device-map", "auto", "--out", str(tmp_path / "r"))
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "--device-map auto spreads one model over all devices, but 2 processes were started" in done.stderr


def test_python_api_does_the_same(
    finished: Path, data: Path, tiny_model_folder: Path, tiny_embedder_folder: Path, tmp_path: Path
) -> None:
    from instruct_prune import DataConfig, EmbedConfig, Run, ScoreConfig, SelectConfig

    run = Run(tmp_path / "r")
    scores = run.score(
        DataConfig(str(data)),
        ScoreConfig(model=str(tiny_model_folder), subnets=("dlc",), batch_tokens=256, dtype="float32"),
    )
    assert scores is not None
    run.embed(EmbedConfig(embedder=str(tiny_embedder_folder)))
    selection = run.select(SelectConfig(keep=0.25, clusters="4"))
    pruned = run.export()
    assert pruned.read_bytes() == (finished / "pruned.jsonl").read_bytes()
    assert (tmp_path / "r" / "scores.parquet").read_bytes() == (finished / "scores.parquet").read_bytes()
    assert scores.to_pandas().shape == (N, 10)
    assert len(scores.to_dataset()) == N
    assert selection.to_pandas().selected.sum() == 15
    assert run.kept().num_rows == 15
    assert [s.row_id for s in run.rows(None)] == list(range(N))
