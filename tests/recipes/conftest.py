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
