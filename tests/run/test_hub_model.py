"""A model of the Hub, as its cache holds it: two commits, one of them with a tag."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from machines import environment
from sample_rows import alpaca_rows, write_jsonl

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    cache = tmp_path_factory.mktemp("hub")
    repo = cache / "models--owner--tiny"
    for commit, ref in ((OLD, "v1"), (NEW, "main")):
        shutil.copytree(tiny_model_folder, repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    return cache


@pytest.mark.parametrize(("options", "commit"), [(["--model-revision", "v1"], OLD), ([], NEW)])
def test_exports_name_the_commit_that_scored(options: list[str], commit: str, cache: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(12))
    words = ["--data", str(data), "--model", "owner/tiny", *options, "--subnets", "dense", "--clusters", "none"]
    words += ["--method", "random", "--keep", "6", "--to", "trl", "llamafactory", "axolotl", "swift"]
    program = [sys.executable, "-m", "instruct_prune", "run", *words, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        program, env=environment(HF_HUB_CACHE=str(cache)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]

    def stanza(path: str) -> dict[str, Any]:
        return dict(yaml.safe_load((tmp_path / "run" / path).read_text()))

    trl, swift = stanza("trl/trl.yaml"), stanza("swift/swift.yaml")
    factory, axolotl = stanza("llamafactory/llamafactory.yaml"), stanza("axolotl/axolotl.yaml")
    assert [trl["model_name_or_path"], factory["model_name_or_path"]] == ["owner/tiny"] * 2
    assert [axolotl["base_model"], swift["model"]] == ["owner/tiny"] * 2
    assert [each["model_revision"] for each in (trl, factory, swift)] == [commit] * 3
    assert axolotl["revision_of_model"] == commit
