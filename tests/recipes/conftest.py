"""A scored, embedded and pruned run of tiny models, and the recipes as modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sample_rows import alpaca_rows, write_jsonl

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))  # the recipes are scripts, not a package


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_embedder_folder: Path) -> Path:
    """RUN: 60 Alpaca rows scored under the dense model, a sparse one and for IFD; half of them kept."""
    from instruct_prune.api import Run
    from instruct_prune.config import DataConfig, EmbedConfig, ScoreConfig, SelectConfig

    folder = tmp_path_factory.mktemp("recipe-run")
    data = write_jsonl(folder / "rows.jsonl", alpaca_rows(60))
    run = Run(folder / "run")
    run.score(DataConfig((str(data),)), ScoreConfig(str(tiny_model_folder), subnets=("dlc", "alone"), dtype="float32"))
    run.embed(EmbedConfig(str(tiny_embedder_folder)))
    run.select(SelectConfig(keep=0.5, clusters="4"))
    run.export()
    return folder / "run"


TINY_CNN = """
import numpy as np, torch
from torch import nn

def transform(image):
    return torch.from_numpy(np.asarray(image.resize((16, 16)), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)

def make():
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((3, 8), (8, 16))]
    return nn.Sequential(*stages), transform
"""


@pytest.fixture
def in_factory_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder has recipe_cnn.py: --model recipe_cnn:make. (No other test has a module of this name.)"""
    (tmp_path / "recipe_cnn.py").write_text(TINY_CNN)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def picture_run(tmp_path: Path, in_factory_folder: None) -> Path:
    """A scored run over pictures, with a selection."""
    from instruct_prune import DataConfig, Run, ScoreConfig, SelectConfig

    run = Run(tmp_path / "pictures")
    ladder = ("magnitude-global:1.0,0.8",)
    run.score(
        DataConfig((str(RECIPES.parent / "data_samples" / "images"),)), ScoreConfig("recipe_cnn:make", subnets=ladder)
    )
    run.select(SelectConfig(keep=0.5))
    return tmp_path / "pictures"
