"""Models, templates, option files and pictures made to run code, to read what is not theirs, or to fail in odd ways."""

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
from PIL import Image
from safetensors.torch import load_file, save_file
from spoken import kept, refused, tell

from instruct_prune.export.images import _plain_name


class Evil:
    """A pickle of it makes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Any:
    """A file that is there where foreign code was run."""
    yield tmp_path / "MARK"
    assert not (tmp_path / "MARK").exists()


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
    assert refused(tell("select", finished, "--keep", "3", "--clusters", "2"))  # there are no vectors now
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
    np.save(path, GOOD)
    assert tell("embed", finished, "--embedder", path, "--restart", "embed").is_clean(0)


# ---- templates ----

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "is unsafe"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('touch MARK') }}", "is unsafe"),
    "globals of a function": ("{{ raise_exception.__globals__['os'].system('touch MARK') }}", "is unsafe"),
    "format": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "is unsafe"),
    "messages changed": ("{{ messages.append(1) }}", "is unsafe"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "a module": ("{% import 'os' as os %}", "no loader"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "a long range": ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
    "without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "more than memory": ("{{ 'x' * 10 ** 15 }}", "MemoryError"),
    "an unknown name": ("{{ nothing.here }}", "undefined"),
    "no template": ("{% for %}", "Expected an expression"),
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a b c"}]
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text((json.dumps({"messages": turns}) + "\n") * 4)
    return path


@pytest.mark.parametrize("whose", ["the user's", "the tokenizer's"])
def test_templates_stay_in_their_sandbox(
    whose: str, mark: Path, chats: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model, own = tmp_path / "model", tmp_path / "own.jinja"
    shutil.copytree(tiny_model_folder, model)
    (model / "chat_template.jinja").write_text(CHATML)
    words = ["inspect", "--data", chats, "--model", model, *(["--template", own] if whose == "the user's" else [])]
    for text, says in TEMPLATES.values():
        (own if whose == "the user's" else model / "chat_template.jinja").write_text(
            text.replace("MARK", str(mark)) + CHATML
        )
        assert refused(tell(*words), says)
    (own if whose == "the user's" else model / "chat_template.jinja").write_text(CHATML)
    assert tell(*words).is_clean(0)


# ---- option files ----

NINE = ", ".join(["*{}"] * 9)
BOMB = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{NINE.format(*[old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=False)
)
OPTIONS = {
    "code": ("!!python/object/apply:os.system ['touch MARK']", "could not determine a constructor"),
    "code in a value": ("data: !!python/object/apply:os.system ['touch MARK']", "could not determine a constructor"),
    "many times nine": (BOMB, "no aliases"),
    "inside itself": ("data: &a [*a]", "no aliases"),
    "deep": ("data: " + "[" * 100_000, "nothing deeper"),
    "twice": ("data: a\ndata: b", "data is said twice"),
    "escapes": ('"\\e[2Jdata": 1', "\\x1b[2Jdata"),
    "a long number": ("seed: " + "9" * 5000, "is not valid YAML"),
    "two documents": ("data: a\n---\ndata: b", "is not valid YAML"),
    "a list": ("- a", "expected a mapping"),
}


def test_option_files(mark: Path, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    for text, says in OPTIONS.values():
        path.write_text(text.replace("MARK", str(mark)))
        told = tell("run", "--config", path, "--out", tmp_path / "RUN")
        assert refused(told, says)
        assert "\x1b" not in told.text
    path.write_text("limit: 5\nkeep: 30%\n")
    assert tell("run", "--config", path, "--out", tmp_path / "RUN", "--print-config").is_clean(0)


# ---- pictures, links, names ----

CNN = """
import numpy as np, torch
from torch import nn

def transform(image):
    return torch.from_numpy(np.asarray(image.resize((16, 16)), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)), transform
"""


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten pictures of two classes."""
    (tmp_path / "small_cnn.py").write_text(CNN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(10):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


def prune(data: Path, out: Path, *more: str) -> list[object]:
    ladder = ["--subnets", "magnitude-global:1.0,0.8", "--batch-tokens", "4"]
    return ["run", "--data", data, "--model", "small_cnn:make", *ladder, "--keep", "1.0", *more, "--out", out]


def test_odd_files_in_a_tree_of_pictures(pictures: Path) -> None:
    a, out = pictures / "a", pictures / "RUN"  # inside the data, as people do
    os.mkfifo(a / "pipe.png")
    for name, target in {"zero.png": "/dev/zero", "gone.png": "/nowhere", "self.png": str(a / "self.png")}.items():
        (a / name).symlink_to(target)
    (a / "passwd.png").symlink_to("/etc/passwd")
    (a / "loop").symlink_to(pictures)
    (a / "folder.png").mkdir()
    words = prune(pictures, out, "--to", "copies", "links")
    assert tell(*words).is_clean(0)
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [Path(row["file"]).name for row in rejected] == [
        "gone.png",
        "passwd.png",
        "pipe.png",
        "self.png",
        "zero.png",
    ]
    before = kept(out)
    again = tell(*words)
    assert again.is_clean(0)
    assert "read before" in again.text
    assert kept(out) == before


def test_names_out_of_data_stay_in_their_folder(pictures: Path, tmp_path: Path) -> None:
    labels = ["..", "../../evil", "a\nb", "n" * 300, ".", "/etc", "x", "x", "x", "x"]
    names = [f"pictures/../pictures/{'ab'[i % 2]}/{i}.png" for i in range(10)]
    listing = tmp_path / "listing.jsonl"
    listing.write_text("".join(json.dumps({"image": n, "label": y}) + "\n" for n, y in zip(names, labels, strict=True)))
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "deep" / "RUN"
    words = prune(listing, out, "--to", "copies", "links", "disk")
    assert tell(*words).is_clean(0)
    made = set(tmp_path.rglob("*")) - before
    assert all(path == out.parent or out in (path, *path.parents) for path in made)
    assert sum(path.is_file() for path in (out / "pruned_copies").rglob("*")) == 10
    assert tell(*words).is_clean(0)


def test_plain_names() -> None:
    assert [_plain_name(text) for text in ("..", "/", "", "a/b.png", "\0", "e\x1b[1m.png", "n" * 300 + ".png")] == [
        "_", "_", "_", "a_b.png", "_", "e_[1m.png", "n" * 196 + ".png",
    ]  # fmt: skip
