"""recipes/tiny_vlm.py: it makes a model and rows that the command line scores, and judges a run over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_vlm
from PIL import Image

from instruct_prune.cli import main


def test_a_model_is_made_scored_and_judged(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, run = tmp_path / "TINY", str(tmp_path / "RUN")
    words = ["--model", str(tiny_model_folder), "--looks", "2", "--steps", "2", "--rows", "24"]
    assert tiny_vlm.main(["--out", str(made), *words]) == 0
    rows = json.loads((made / "rows.json").read_text())
    assert len(rows) == 24
    assert Image.open(made / rows[0]["image"]).width > 1
    scoring = ["--model", str(made / "model"), "--subnets", "visual", "--dtype", "float32"]
    assert main(["score", "--data", str(made / "rows.json"), *scoring, "--out", run]) == 0
    capsys.readouterr()
    assert tiny_vlm.main(["--run-folder", run]) == 0
    assert capsys.readouterr().out.count("AUC") == 3
