"""One model spread over devices: weights that live on disk are masked when they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_models import masked_weights
from test_causal_lm import fast_losses, rows

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.measure.subnets import subnet
from instruct_prune.models.names import find_model, load_causal_lm

SPLIT = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"} | {
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
}


def models(folder: Path, tmp_path: Path) -> tuple[Any, Any]:
    source = find_model(str(folder))
    return load_causal_lm(source, "float32"), load_causal_lm(source, "float32", SPLIT, tmp_path / "offload")


@pytest.mark.parametrize(
    "spec", [SubnetSpec("dense"), SubnetSpec("magnitude", 0.6), SubnetSpec("random", 0.9)], ids=lambda s: s.name
)
def test_a_model_on_cpu_and_disk_gives_the_losses_of_one_in_memory(
    tiny_model_folder: Path, tmp_path: Path, spec: SubnetSpec
) -> None:
    whole, split = models(tiny_model_folder, tmp_path)
    assert split.model.layers[1].mlp.up_proj.weight.is_meta
    data = rows(12)
    dense = fast_losses(split, data, 200, True)
    with subnet(whole, spec), subnet(split, spec):
        expected = fast_losses(whole, data, 200, True, (spec,))
        np.testing.assert_allclose(fast_losses(split, data, 200, True, (spec,)), expected, atol=1e-5)
    np.testing.assert_array_equal(fast_losses(split, data, 200, True), dense)


def test_one_global_threshold_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    _, split = models(tiny_model_folder, tmp_path)
    with pytest.raises(InputError, match="--subnets dlc"), masked_weights(split) as masker:
        masker.apply(SubnetSpec("magnitude", 0.5, scope="global"))


def test_device_map_auto_from_the_command(tiny_model_folder: Path, tmp_path: Path) -> None:
    from sample_rows import alpaca_rows, write_jsonl

    from instruct_prune.cli import main

    data = write_jsonl(tmp_path / "d.jsonl", alpaca_rows(12))
    words = ["score", "--data", str(data), "--model", str(tiny_model_folder), "--dtype", "float32"]
    assert main([*words, "--device-map", "auto", "--out", str(tmp_path / "auto")]) == 0
    assert main([*words, "--out", str(tmp_path / "plain")]) == 0
    assert (tmp_path / "auto" / "scores.parquet").read_bytes() == (tmp_path / "plain" / "scores.parquet").read_bytes()
