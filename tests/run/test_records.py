"""What the stages know of each other: what is stale is refused, what changed is noticed, the input is read once."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune import InputError, Run
from instruct_prune.cli import main
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import (
    STAGES,
    EmbedFacts,
    EncodeFacts,
    ExportFacts,
    RowsFacts,
    ScoreFacts,
    SelectFacts,
)
from instruct_prune.run.target_facts import COMPARED, TargetFacts

N = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", alpaca_rows(N))


@pytest.fixture(scope="module")
def words(data: Path, tiny_model_folder: Path) -> list[str]:
    return ["--data", str(data), "--model", str(tiny_model_folder), "--dtype", "float32", "--batch-tokens", "512"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, words: list[str], tiny_embedder_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    more = ["--embedder", str(tiny_embedder_folder), "--keep", "0.5", "--clusters", "4"]
    assert main(["run", *words, *more, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def ok(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("instruct-prune: error: ")
    return told


def other_vectors(run: Path) -> Path:
    path = run.parent / "vectors.npy"
    np.save(path, np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32))
    return path


# ---- records ----


def test_every_stage_has_a_record_of_its_facts_and_of_what_it_was_made_from(finished: Path) -> None:
    folder = RunFolder(finished)
    of_a_target = (TargetFacts, *COMPARED.values())  # made only where one is given
    stages = [kind for kind in STAGES if kind not in of_a_target]
    inputs = {kind.stage: set(folder.require(kind).inputs) for kind in stages}
    assert inputs == {
        "rows": set(),
        "encode": {"rows"},
        "score": {"rows", "encode"},
        "embed": {"encode"},
        "select": {"score", "embed"},
        "export": {"select"},
    }
    assert folder.facts(RowsFacts).read == folder.facts(EncodeFacts).encoded == folder.facts(ScoreFacts).scored == N
    assert folder.facts(EmbedFacts).width == 32
    assert folder.facts(SelectFacts).kept == folder.facts(ExportFacts).rows == 30
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["layout"] == 1
    for kind in stages:
        assert manifest["stages"][kind.stage]["fingerprint"] == folder.require(kind).fingerprint


def test_a_record_with_unknown_or_wrong_fields_is_refused(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    for change in ({"kept": "many"}, {"keptt": 3}):
        broken = json.loads(json.dumps(manifest))
        broken["stages"]["select"]["facts"] |= change
        (run / "manifest.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"record of the select stage cannot be read .*kept"):
            RunFolder(run).require(SelectFacts)


def test_the_run_folder_of_version_0_1_0_is_refused_in_words(
    run: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    old = {"stages": {"encode": {"config": {}, "complete": True, "accounting": {"read": 60}}}, "versions": {}}
    (run / "manifest.json").write_text(json.dumps(old))
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    for command in (
        ["score", *words], ["run", *words, "--keep", "0.5"], ["embed"], ["select", "--keep", "0.5"], ["export"], ["report"],
    ):  # fmt: skip
        assert "made by another version of instruct-prune" in refused(capsys, *command, "--out", run)
    for command in ("show", "compare", "correlate"):
        assert "made by another version of instruct-prune" in refused(capsys, command, run)
    with pytest.raises(InputError, match="another version"):
        Run(run)
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


# ---- stale ----


def test_an_export_of_another_selection_is_not_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Run(run).kept().num_rows == 30
    ok("select", "--out", run, "--keep", "0.2", "--clusters", "4")
    with pytest.raises(InputError, match=r"export stage is stale: the select stage has changed.*instruct-prune export"):
        Run(run).kept()
    ok("report", "--out", run)
    assert json.loads((run / "report.json").read_text())["counts"]["kept"] == 12
    ok("compare", run)
    assert "12 rows" in capsys.readouterr().out
    ok("export", "--out", run)
    assert Run(run).kept().num_rows == 12


def test_the_same_selection_again_leaves_the_export_fresh(run: Path) -> None:
    ok("select", "--out", run, "--keep", "0.5", "--clusters", "4")
    assert Run(run).kept().num_rows == 30


def test_a_selection_by_other_vectors_is_stale(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, run.parent / "other")
    ok("embed", "--out", run, "--embedder", other_vectors(run), "--restart")
    commands = (
        ["export", "--out", run],
        ["report", "--out", run],
        ["show", run],
        ["compare", run, run.parent / "other"],
    )
    for command in commands:
        told = refused(capsys, *command)
        assert "the select stage is stale: the embed stage has changed" in told
        assert f"instruct-prune select --keep ... --out {run}" in told
    with pytest.raises(InputError, match="stale"):
        Run(run).kept()
    ok("select", "--out", run, "--keep", "0.5", "--clusters", "4")
    for command in (
        ["export", "--out", run],
        ["report", "--out", run],
        ["show", run],
        ["compare", run, run.parent / "other"],
    ):
        ok(*command)


def test_a_selection_without_vectors_does_not_depend_on_them(run: Path) -> None:
    ok("select", "--out", run, "--keep", "0.5", "--clusters", "none")
    ok("embed", "--out", run, "--embedder", other_vectors(run), "--restart")
    ok("export", "--out", run)
    assert Run(run).kept().num_rows == 30


def test_scoring_anew_makes_the_selection_stale_and_not_the_vectors(
    run: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "embeddings.npy").stat().st_mtime_ns
    ok("score", *words, "--subnets", "dlc", "--restart", "score", "--out", run)
    told = refused(capsys, "export", "--out", run)
    assert "the select stage is stale: the score stage has changed" in told
    ok("select", "--out", run, "--keep", "0.5", "--clusters", "4")
    ok("export", "--out", run)
    assert (run / "embeddings.npy").stat().st_mtime_ns == before


def test_another_encoding_makes_everything_after_it_stale(
    run: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ok("score", *words, "--template", "plain", "--restart", "encode", "--out", run)
    folder = RunFolder(run)
    gone = [kind.stage for kind in STAGES if kind not in COMPARED.values() and folder.find(kind) is None]
    assert gone == ["embed", "target", "select", "export"]
    assert "instruct-prune embed" in refused(capsys, "select", "--out", run, "--keep", "0.5", "--clusters", "4")


def test_rows_of_a_version_that_had_fewer_options_are_read_again(run: Path, words: list[str]) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["stages"]["rows"]["config"]["image_folder"]
    path.write_text(json.dumps(manifest))
    ok("score", *words, "--out", run)
    assert RunFolder(run).find(RowsFacts) is not None
    assert len(RunFolder(run).read_scores()) == N


def test_an_interrupted_stage_is_not_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["select"]["facts"] = None  # killed while it wrote
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "the select stage is not finished" in refused(capsys, "export", "--out", run)
    with pytest.raises(InputError, match="stale: the select stage"):
        Run(run).kept()


# ---- the input ----


class Opened:
    """How often one file was opened, by any means that Python has."""

    def __init__(self) -> None:
        self.path = ""
        self.count = 0
        sys.addaudithook(self)  # stays for the life of the process; counts nothing while no path is set

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.path and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            self.count += os.path.abspath(os.fsdecode(arguments[0])) == self.path


OPENED = Opened()


@pytest.fixture
def opened(data: Path) -> Iterator[Opened]:
    OPENED.path, OPENED.count = str(data.resolve()), 0
    with open(data, "rb"):
        assert OPENED.count == 1, "the count counts"
    OPENED.count = 0
    yield OPENED
    OPENED.path = ""


def test_a_run_opens_its_input_at_most_three_times_and_later_commands_not_at_all(
    words: list[str], tiny_embedder_folder: Path, tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    more = ["--embedder", tiny_embedder_folder, "--keep", "0.5", "--clusters", "4"]
    ok("run", *words, *more, "--out", out)
    assert 1 <= opened.count <= 2
    assert (out / "report.html").exists()
    opened.count = 0
    ok(
        "select",
        "--out",
        out,
        "--keep",
        "0.2",
        "--clusters",
        "4",
        "--must-keep",
        "instruction=Tell me about bread, case 3.",
    )
    ok("export", "--out", out, "--to", "alpaca", "parquet")
    ok("report", "--out", out)
    ok("show", out)
    ok("run", *words, *more, "--out", out)
    assert len(list(Run(out).samples())) == N
    assert opened.count == 0


def edited(data: Path, folder: Path) -> Path:
    return Path(shutil.copy(data, folder / "rows.jsonl"))


@pytest.mark.parametrize("how", ["longer", "same size", "gone"])
def test_data_that_changed_after_scoring_are_refused_in_words(
    data: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    file, out = edited(data, tmp_path), tmp_path / "run"
    ok("score", "--data", file, "--model", tiny_model_folder, "--subnets", "dense", "--out", out)
    ok("select", "--out", out, "--keep", "0.5", "--clusters", "none")
    if how == "longer":
        file.write_bytes(file.read_bytes() + b'{"instruction": "one", "output": "more"}\n')
    elif how == "same size":
        content = file.read_bytes()
        file.write_bytes(content.replace(b"bread", b"broad", 1))
        assert file.stat().st_size == len(content)
    else:
        file.unlink()
    for command in (["export", "--out", out], ["report", "--out", out], ["show", out]):
        told = refused(capsys, *command)
        assert (
            f"{file}: {'the data are not there any more' if how == 'gone' else 'the data changed since it was read'}"
            in told
        )
    with pytest.raises(InputError, match="the data"):
        list(Run(out).samples())
    assert not (out / "pruned.jsonl").exists()


def test_data_of_the_same_bytes_but_another_date_are_the_same(
    data: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = edited(data, tmp_path), tmp_path / "run"
    words = ["score", "--data", str(file), "--model", str(tiny_model_folder), "--subnets", "dense", "--out", str(out)]
    ok(*words)
    os.utime(file, ns=(1, 1))
    ok("select", "--out", out, "--keep", "0.5", "--clusters", "none")
    ok("export", "--out", out)
    capsys.readouterr()
    ok(*words)
    assert "score: done before, skipped" in capsys.readouterr().err


def test_scoring_other_data_into_the_folder_is_refused(
    run: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "scores.parquet").read_bytes()
    other = write_jsonl(tmp_path / "other.jsonl", alpaca_rows(61))
    capsys.readouterr()
    assert main(["score", *words, "--data", str(other), "--out", str(run)]) == 2
    told = capsys.readouterr().err
    assert "holds the rows stage of another run" in told
    assert "inputs" in told
    capsys.readouterr()
    assert main(["score", *words, "--limit", "10", "--out", str(run)]) == 2
    assert "limit: null -> 10" in capsys.readouterr().err
    assert (run / "scores.parquet").read_bytes() == before
    ok("export", "--out", run)
    ok("score", *words, "--limit", "10", "--restart", "read", "--out", run)
    assert pq.read_table(run / "scores.parquet").num_rows == 10


# ---- names that the user gave ----


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--embedder", "all-minilm-l6"], "Did you mean 'all-minilm-l6-v2'"),
        (["--embedder", "./nowhere"], "--embedder ./nowhere"),
        (["--embedder", "nowhere.npy"], "there is no such file"),
        (["--embedder", "model:meen"], "Did you mean 'mean'"),
        (["--probes", "meen"], "Did you mean 'mean'"),
        (["--probes", "mean@99"], "2 depths"),
        (["--probes", "nowhere_at_all:Probe"], "no module 'nowhere_at_all'"),
        (["--subnets", "depth:3"], "2 depths"),
        (["--subnets", "nowhere_at_all:family:0.1"], "no module 'nowhere_at_all'"),
        (["--subnets", "dense", "dense@nowhere_at_all:view"], "no module 'nowhere_at_all'"),
    ],
)
def test_names_that_stand_for_nothing_are_refused_before_anything_is_measured(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    out = tmp_path / "run"
    assert says in refused(capsys, "run", *words, "--keep", "0.5", *more, "--out", out)
    assert not (out / "scores.parquet").exists()
    assert not list(out.glob("parts/score/*/*.parquet"))
