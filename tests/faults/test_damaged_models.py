"""Models, embedders and vectors that were made to run code, or that are damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from spoken import refused, tell


class Evil:
    """A pickle of it makes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def changed_json(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def weights_with(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def as_pickle(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil(mark)}, folder / "pytorch_model.bin")


def with_code(folder: Path, mark: Path) -> None:
    changed_json(
        folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    )
    (folder / "evil.py").write_text(f"import os; os.system('touch {mark}')\n")


def with_tokenizer_code(folder: Path, mark: Path) -> None:
    changed_json(
        folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}
    )
    (folder / "evil.py").write_text(f"import os; os.system('touch {mark}')\n")


def cut_weights(folder: Path, mark: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)


MLP = "model.layers.0.mlp.up_proj.weight"
MODELS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a pickle": (as_pickle, "a pickle with more in it than tensors"),
    "code of its own": (with_code, "which this tool never runs"),
    "a tokenizer's code": (with_tokenizer_code, "which this tool never runs"),
    "cut off": (cut_weights, "could not be loaded (SafetensorError)"),
    "empty weights": (lambda f, _: (f / "model.safetensors").write_bytes(b""), "could not be loaded (SafetensorError)"),
    "no weights": (lambda f, _: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    "a weight missing": (lambda f, _: weights_with(f, lambda w: w.pop(MLP)), f"not in its files ({MLP})"),
    "another shape": (lambda f, _: weights_with(f, lambda w: w.update({MLP: torch.ones(3, 3)})), "could not be loaded"),
    "not a number": (lambda f, _: weights_with(f, lambda w: w[MLP].fill_(torch.nan)), "not a finite number in float32"),
    "infinite": (lambda f, _: weights_with(f, lambda w: w[MLP].fill_(torch.inf)), "not a finite number in float32"),
    "a configuration of text": (lambda f, _: changed_json(f / "config.json", hidden_size="x"), "could not be loaded"),
    "no configuration": (lambda f, _: (f / "config.json").write_text("{"), "not a valid JSON file"),
    "one position": (lambda f, _: changed_json(f / "config.json", max_position_embeddings=1), "has 1 positions"),
    "a tokenizer cut off": (lambda f, _: (f / "tokenizer.json").write_text("{"), "could not be loaded"),
    "no tokenizer": (lambda f, _: (f / "tokenizer.json").unlink(), "could not be loaded (ValueError)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(
    name: str, mark: Path, tiny_model_folder: Path, score_words: list[str], tmp_path: Path
) -> None:
    spoil, says = MODELS[name]
    model, out = tmp_path / "model", tmp_path / "RUN"
    shutil.copytree(tiny_model_folder, model)
    spoil(model, mark)
    words = [*score_words[:3], "--model", model, "--dtype", "float32", "--subnets", "dense", "--out", out]
    assert refused(tell(*words), says)
    assert not (out / "scores.parquet").exists()
    if name == "a weight missing":  # mended, the same command ends
        shutil.copytree(tiny_model_folder, model, dirs_exist_ok=True)
        told = tell(*words)
        assert told.is_clean(0)
        assert "24 read = 24 scored" in told.text


@pytest.mark.parametrize("stage", ["score", "encode"])
def test_scores_are_not_discarded_for_a_model_that_cannot_be_loaded(
    stage: str, tiny_model_folder: Path, score_words: list[str], tmp_path: Path
) -> None:
    model, out = tmp_path / "model", tmp_path / "RUN"
    shutil.copytree(tiny_model_folder, model)
    words = [*score_words[:3], "--model", model, "--dtype", "float32", "--subnets", "dense", "--out", out]
    assert tell(*words).is_clean(0)
    cut_weights(model, tmp_path)
    assert refused(tell(*words, "--restart", stage), "could not be loaded")
    assert tell("select", out, "--keep", "3", "--clusters", "none").is_clean(0)
    shutil.copytree(tiny_model_folder, model, dirs_exist_ok=True)
    told = tell(*words, "--restart", stage)
    assert told.is_clean(0)
    assert "scoring with" in told.text


def test_a_pickle_of_tensors_alone_is_read(tiny_model_folder: Path, score_words: list[str], tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "RUN"
    shutil.copytree(tiny_model_folder, model)
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert tell(*score_words[:3], "--model", model, "--dtype", "float32", "--subnets", "dense", "--out", out).is_clean(
        0
    )


def test_rows_whose_losses_are_no_numbers_have_a_status(
    tiny_model_folder: Path, fault_data: Path, score_words: list[str], tmp_path: Path
) -> None:
    """One token has a damaged embedding, which the trial before scoring does not meet."""
    model, out = tmp_path / "model", tmp_path / "RUN"
    shutil.copytree(tiny_model_folder, model)
    token = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]["\u0120rivers"]
    changed_json(model / "config.json", tie_word_embeddings=False)

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.embed_tokens.weight"][token] = torch.nan

    weights_with(model, spoil)
    told = tell(*score_words[:3], "--model", model, "--dtype", "float32", "--subnets", "dense", "--out", out)
    assert told.is_clean(0)
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    with_it = [i for i, line in enumerate(fault_data.read_text().splitlines(), 1) if " rivers" in line]
    assert [row["line"] for row in rejected] == with_it
    assert {(row["status"], row["reason"]) for row in rejected} == {("nonfinite", "loss under dense is nan")}


def test_float16_on_a_cpu(score_words: list[str], tmp_path: Path) -> None:
    words = ["float16" if word == "float32" else word for word in score_words]
    assert refused(tell(*words, "--out", tmp_path / "RUN"), "float16 on a CPU", "--dtype float32")
    assert tell(*score_words, "--subnets", "dense", "--out", tmp_path / "RUN").is_clean(0)


def test_a_vocabulary_smaller_than_the_tokenizer(
    tiny_model_folder: Path, score_words: list[str], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder, model)
    changed_json(model / "config.json", vocab_size=200)
    weights_with(model, lambda w: w.update({"model.embed_tokens.weight": w["model.embed_tokens.weight"][:200].clone()}))
    told = tell(*score_words[:3], "--model", model, "--dtype", "float32", "--out", tmp_path / "RUN")
    assert refused(told, "line 1: token", "the model embeddings for 200 only")


def test_fewer_positions_than_a_row_has(tiny_model_folder: Path, score_words: list[str], tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "RUN"
    shutil.copytree(tiny_model_folder, model)
    changed_json(model / "config.json", max_position_embeddings=32)
    words = [*score_words[:3], "--model", model, "--dtype", "float32", "--subnets", "dense", "--max-length", "64"]
    told = tell(*words, "--out", out)
    assert told.is_clean(0)
    assert "the model has 32 positions, so that is the limit" in told.text
    import pyarrow.parquet as pq

    scores = pq.read_table(out / "scores.parquet").to_pydict()
    assert set(scores["status"]) == {"truncated"}
    assert max(p + r for p, r in zip(scores["n_prompt"], scores["n_response"], strict=True)) == 32


# ---- embedders and vectors ----


def test_embedders_that_are_refused(finished: Path, mark: Path, tiny_embedder_folder: Path, tmp_path: Path) -> None:
    pickled, foreign, cut = (tmp_path / name for name in ("pickled", "foreign", "cut"))
    for folder in (pickled, foreign, cut):
        shutil.copytree(tiny_embedder_folder, folder)
    as_pickle(pickled, mark)
    modules = json.loads((foreign / "modules.json").read_text())
    (foreign / "modules.json").write_text(
        json.dumps([*modules, {"idx": 2, "name": "2", "path": "", "type": "evil.Thing"}])
    )
    (foreign / "evil.py").write_text(f"import os; os.system('touch {mark}')\n")
    cut_weights(cut, mark)
    for folder, says in ((pickled, "a pickle with more in it"), (foreign, "evil.Thing"), (cut, "could not be loaded")):
        assert refused(tell("embed", finished, "--embedder", folder, "--restart", "embed"), says)
    assert tell("select", finished, "--keep", "3", "--clusters", "2").is_clean(0)  # by the vectors that were there
    assert tell("embed", finished, "--embedder", tiny_embedder_folder, "--restart", "embed").is_clean(0)
    assert tell("select", finished, "--keep", "3", "--clusters", "2").is_clean(0)


GOOD = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
VECTORS: dict[str, tuple[Any, str]] = {
    "pickled": (np.array([None] * 24, dtype=object), "nothing else is opened"),
    "NaN": (
        np.where(np.arange(24)[:, None] == 3, np.nan, GOOD),
        "1 of 24 vectors are zero or not finite, vector 3 first",
    ),
    "infinite": (GOOD.astype(np.float64) * 1e300, "24 of 24 vectors"),
    "zero": (GOOD * 0, "24 of 24 vectors"),
    "too few": (GOOD[:23], "23 vectors, but 24 rows"),
    "flat": (GOOD[:, 0], "expected a 2-D array"),
    "numbers of another kind": (GOOD.astype(np.int32), "expected a 2-D array of floats"),
    "empty": (b"", "is no .npy file of numbers"),
    "text": (b"hello", "is no .npy file of numbers"),
}


def test_vectors_that_are_refused(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    for made, says in VECTORS.values():
        if isinstance(made, bytes):
            path.write_bytes(made)
        else:
            np.save(path, made, allow_pickle=True)
        assert refused(tell("embed", finished, "--embedder", path, "--restart", "embed"), says)
    np.save(path, GOOD)
    os.truncate(path, path.stat().st_size - 40)
    assert refused(tell("embed", finished, "--embedder", path, "--restart", "embed"), "cut off")
    assert tell("select", finished, "--keep", "3", "--clusters", "2").is_clean(0)  # by the vectors that were there
    np.save(path, GOOD)
    assert tell("embed", finished, "--embedder", path, "--restart", "embed").is_clean(0)
