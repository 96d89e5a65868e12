"""Every file and every command of docs/extending.md, run as users would: in an empty folder, on a tiny model."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune import Run, Tokens
from instruct_prune.cli import main
from instruct_prune.encode.store import TokenStore

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = {
    title: [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    for title, _, text in (section.partition("\n") for section in PAGE.split("\n## ")[1:])
}
N = 24

Play = Callable[..., Run]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the data and the files of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(N))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def play(folder: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> Play:
    """Runs the commands of one section of the page."""

    def commands(section: str, *more: str) -> Run:
        for line in COMMANDS[section]:
            program, *words = shlex.split(line.replace("MODEL", str(tiny_model_folder)))
            scoring = [*more, "--dtype", "float32"] if words[0] in ("run", "score") else []
            assert program == "instruct-prune"
            assert main([*words, *scoring]) == 0, capfd.readouterr().err
        return Run(folder / "RUN")

    return commands


def columns(run: Run) -> dict[str, np.ndarray]:
    table = pq.read_table(run.folder / "scores.parquet")
    return {name: table.column(name).to_numpy() for name in table.column_names}


def test_the_page_has_an_example_and_commands_of_everything() -> None:
    assert len(FILES) == len(COMMANDS) == 8
    assert all(COMMANDS.values())
    imported = {name for text in FILES.values() for name in re.findall(r"from (instruct_prune\S*)", text)}
    assert imported == {"instruct_prune"}  # public names alone


def test_a_selection_method(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    run = play("A selection method")
    score = run.scores.score
    nearest = np.argsort(np.abs(score - np.quantile(score, 0.75)), kind="stable")[:7]  # 0.3 of 24 rows
    assert run.selection.kept.tolist() == sorted(nearest.tolist())
    assert dict(run.selection.params) == {"method": "my_method:near", "at": 0.75}
    assert "method my_method:near, at 0.75" in capfd.readouterr().out
    assert main(["report", "--out", "RUN"]) == 0
    facts = json.loads((run.folder / "report.json").read_text())["facts"]
    assert facts["params"]["at"] == 0.75


def test_a_score(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    run = play("A score")
    found = columns(run)
    drop = np.clip(found["loss_magnitude_0500"] - found["loss_dense"], 0, None) ** 2
    assert (drop > 0).any()
    np.testing.assert_allclose(run.selection.score, drop, rtol=1e-6)
    assert run.selection.params["score power"] == 2.0
    assert "score power 2;" in capfd.readouterr().out


def test_a_probe(play: Play, folder: Path) -> None:
    run = play("A probe")
    found = columns(run)
    assert (found["hardest_dense"] >= found["loss_dense"]).all()
    assert not np.allclose(found["hardest_dense"], found["loss_dense"])
    spread, rows = np.load("RUN/states/spread_dense.npy"), np.load("RUN/states/rows.npy")
    assert rows.tolist() == list(range(N))
    np.testing.assert_allclose(spread[:, 0], found["loss_dense"], rtol=1e-5)
    assert (spread[:, 1] > 0).all()
    np.testing.assert_allclose(run.selection.score, found["hardest_dense"] / found["loss_dense"], rtol=1e-6)


def test_a_view(play: Play) -> None:
    import my_view

    whole = Tokens(np.arange(9, dtype=np.int32), np.array([False] * 6 + [True] * 3))
    seen = my_view.short_prompt(whole, None)
    assert seen.ids.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert seen.response_mask.tolist() == [False] * 4 + [True] * 3
    found = columns(play("A view"))
    assert np.isfinite(found["loss_short_prompt"]).all()
    assert not np.allclose(found["loss_short_prompt"], found["loss_dense"])
    np.testing.assert_array_equal(found["score"], found["loss_dense"])  # a view is never part of the average


def test_a_family_of_subnets(play: Play) -> None:
    from my_subnet import noise

    layer = torch.nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    with noise(layer, 0.5, 0):
        assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, before)
    found = columns(play("A family of subnets"))
    far = [np.abs(found[name] - found["loss_dense"]).mean() for name in ("loss_noise_0010_s0", "loss_noise_0200_s0")]
    assert 0 < far[0] < far[1]


def test_a_kind_of_model(play: Play, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = alpaca_rows(N)
    rows[5]["output"] = ""
    write_jsonl(folder / "rows.jsonl", rows)
    run = play("A kind of model")
    scores = run.scores
    assert scores.scored.tolist() == [i != 5 for i in range(N)]
    rejected = [json.loads(line) for line in (folder / "RUN" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["row_id"], row["reason"]) for row in rejected] == [(5, "a question and an answer are needed")]
    assert scores.n_response[0] == len(rows[0]["output"].encode())
    assert scores.n_prompt[0] == len(rows[0]["instruction"].encode()) + 1
    assert len(run.selection.kept) == 7  # 0.3 of 23 rows
    assert np.load("RUN/embeddings.npy").shape == (23, 32)
    assert (folder / "RUN" / "report.html").exists()
    alone = loss_by_hand(rows[0]["instruction"], rows[0]["output"])
    np.testing.assert_allclose(columns(run)["loss_dense"][0], alone, rtol=1e-5)
    words = ["score", "--data", "rows.jsonl", "--model", "my_model:Bytes", "--out", "OTHER", "--template", "chat"]
    assert main(words) == 2
    assert "--template: Bytes has no such option" in capfd.readouterr().err


def loss_by_hand(question: str, answer: str) -> float:
    """Mean of -log p over the bytes of the answer, one after the other."""
    import my_model

    from instruct_prune import EncodeConfig, ScoreConfig

    model = my_model.Bytes(ScoreConfig(model="my_model:Bytes"), EncodeConfig(), None)
    model.load("float32", torch.device("cpu"))
    text = f"{question}\n{answer}".encode()
    lost = []
    for i in range(len(text) - len(answer.encode()), len(text)):
        logits = model.module["head"](model.module["body"](torch.tensor([text[i - 1]])))
        lost.append(-float(torch.log_softmax(logits[0], dim=0)[text[i]]))
    return float(np.mean(lost))


def test_a_kind_of_model_lacks_something(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "half_model.py").write_text("from instruct_prune import Model\nclass Half(Model):\n    embeds = True\n")
    assert main(["score", "--data", "rows.jsonl", "--model", "half_model:Half", "--out", "RUN"]) == 2
    assert "half_model:Half does not define forward, load, losses" in capfd.readouterr().err


def test_a_row_format(play: Play, folder: Path) -> None:
    pairs = [{"pair": f"What is {i} and {i}? => It is {i + i}."} for i in range(8)]
    write_jsonl(folder / "pairs.jsonl", [*pairs, {"pair": "no arrow here"}])
    run = play("A row format")
    assert run.facts.format == "my_format:FORMAT"
    assert [(m.role, m.text, m.trained) for m in next(run.rows(kept=None)).messages] == [
        ("user", "What is 0 and 0?", False),
        ("assistant", "It is 0.", True),
    ]
    assert len(list(run.rows(kept=None))) == 8
    assert "there is no => in it" in (folder / "RUN" / "rejected.jsonl").read_text()
    kept = [json.loads(line) for line in (folder / "RUN" / "pruned.jsonl").read_text().splitlines()]
    assert kept == [pairs[i] for i in run.selection.kept]


def test_an_export(play: Play, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = play("An export")
    with open(folder / "RUN" / "pairs.tsv", newline="", encoding="utf-8") as file:
        written = list(csv.reader(file, delimiter="\t"))
    rows = alpaca_rows(N)
    assert written == [[str(i), rows[i]["instruction"], rows[i]["output"]] for i in run.selection.kept]
    assert main(["export", "--out", "RUN", "--to", "my_export:write"]) == 0
    assert "pairs: 12 rows in" in capfd.readouterr().out


def test_a_process_of_its_own(folder: Path, tiny_model_folder: Path) -> None:
    """All at once, by the command itself."""
    words = ["run", "--data", "rows.jsonl", "--model", str(tiny_model_folder), "--keep", "0.5", "--clusters", "none"]
    words += ["--subnets", "dense", "my_subnet:noise:0.1", "dense@my_view:short_prompt", "--probes", "my_probe:Hardest"]
    words += ["--method", "my_method:near", "--score", "my_probe:uneven", "--to", "my_export:write", "--out", "RUN"]
    done = subprocess.run([sys.executable, "-m", "instruct_prune", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads((folder / "RUN" / "report.json").read_text(encoding="utf-8"))["facts"]
    assert (facts["score"], facts["params"]["at"]) == ("my_probe:uneven", 0.5)
    assert len(TokenStore.open(folder / "RUN" / "items")) == N


def test_a_name_that_is_wrong_is_told_before_the_work(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--data", "rows.jsonl", "--keep", "0.5", "--out", "RUN"]
    for option, name, says in (
        ("--to", "my_export:wirte", "has no 'wirte'. Did you mean 'write'"),
        ("--score", "my_score:dorp", "has no 'dorp'. Did you mean 'drop'"),
    ):
        assert main([*words, option, name]) == 2
        assert says in capfd.readouterr().err
    assert not (folder / "RUN").exists()


def test_code_that_changed_is_not_taken_for_done(play: Play, folder: Path) -> None:
    play("A view")
    (folder / "my_view.py").write_text(FILES["my_view.py"].replace("KEPT = 4", "KEPT = 2"))
    with pytest.raises(AssertionError, match="code of my_view"):
        play("A view")
    play("A view", "--restart", "score")


def test_two_columns_of_one_name_are_refused(
    folder: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "other_view.py").write_text(FILES["my_view.py"])
    words = ["score", "--data", "rows.jsonl", "--model", str(tiny_model_folder), "--out", "RUN"]
    assert main([*words, "--subnets", "dense@my_view:short_prompt", "dense@other_view:short_prompt"]) == 2
    assert "their losses could not be told apart" in capfd.readouterr().err
