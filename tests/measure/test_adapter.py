"""An adapter as a subnet: against PEFT itself, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_folders import save_adapter

from instruct_prune.encode.batching import plan_batches
from instruct_prune.encode.item import Tokens
from instruct_prune.errors import InputError
from instruct_prune.measure.adapter import AdapterFolder, adapter_name
from instruct_prune.measure.ladder import parse_subnets, score_name_of
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.measure.subnets import subnet
from instruct_prune.models.causal_lm import CausalLM


def rows(n: int = 5) -> list[Tokens]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 24, n)
    return [
        Tokens(rng.integers(3, 390, length).astype(np.int32), np.arange(length) >= length // 2) for length in lengths
    ]


def losses(model: CausalLM, items: list[Tokens], batch_tokens: int = 4096) -> torch.Tensor:
    at, lengths = np.arange(len(items)), np.asarray([len(item.ids) for item in items], dtype=np.int32)
    plan = plan_batches(at, lengths, batch_tokens=batch_tokens)
    model.start_pass(plan, (), pooled=False)
    found = torch.zeros(len(items))
    with torch.inference_mode():
        for chunk in plan.chunks:
            for batch in chunk:
                ready = model.collate([items[i] for i in batch.rows], -1)
                found[torch.as_tensor(batch.rows)] = model.losses(ready, model.forward(ready), None).float()
    return found


def plain_losses(module: Any, items: list[Tokens]) -> torch.Tensor:
    """Of transformers (or PEFT) alone, row by row."""
    found = []
    for item in items:
        ids = torch.as_tensor(item.ids.astype("int64"))[None]
        keep = torch.as_tensor(item.response_mask[1:])
        logits = module(input_ids=ids, use_cache=False).logits[0, :-1].float()
        found.append(torch.nn.functional.cross_entropy(logits[keep], ids[0, 1:][keep]))
    return torch.stack(found).detach()


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 400, "n_positions": 64, "initializer_range": 0.15}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=2)).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "r": 5},
        {"alpha_pattern": {"q_proj": 11, "model.layers.1.mlp.up_proj": 3}, "rank_pattern": {"layers.0.*.v_proj": 4}},
        {"target_modules": ["q_proj", "lm_head"]},  # the head is tied to the embedding, which stays as it is
    ],
    ids=["plain", "rslora", "patterns", "head"],
)
def test_it_is_what_peft_computes(tiny_llama: Callable[..., Any], tmp_path: Path, options: dict[str, Any]) -> None:
    true = plain_losses(save_adapter(tiny_llama(), tmp_path / "math", **options), rows())
    model = CausalLM.holding(tiny_llama())
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    dense = losses(model, rows())
    assert (true - dense).abs().min() > 1e-3  # the adapter changes every row
    with subnet(model.module, SubnetSpec("adapter", folder=str(tmp_path / "math"))):
        for batch_tokens in (1, 50, 4096):
            torch.testing.assert_close(losses(model, rows(), batch_tokens), true, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses(model, rows()), dense, atol=0, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert not any(module._forward_hooks for module in model.module.modules())


def test_conv1d(tmp_path: Path) -> None:
    true = plain_losses(save_adapter(gpt2(), tmp_path, fan_in_fan_out=True), rows())
    model = CausalLM.holding(gpt2())
    with subnet(model.module, SubnetSpec("adapter", folder=str(tmp_path))):
        torch.testing.assert_close(losses(model, rows()), true, atol=1e-5, rtol=0)


def test_in_16_bits_a_small_change_counts_still(tiny_llama: Callable[..., Any], tmp_path: Path) -> None:
    """Merged into bfloat16 weights, 8 binary digits, most of it would be rounded away."""
    true = plain_losses(save_adapter(tiny_llama().bfloat16(), tmp_path), rows())
    model = CausalLM.holding(tiny_llama().bfloat16())
    with subnet(model.module, SubnetSpec("adapter", folder=str(tmp_path))):
        torch.testing.assert_close(losses(model, rows()), true, atol=2e-2, rtol=0)


def test_names(tiny_llama: Callable[..., Any], tmp_path: Path) -> None:
    for place in ("math", "code-v1.2", "out/adapter"):
        save_adapter(tiny_llama(), tmp_path / place)

    def names(*texts: str) -> list[str]:
        return [spec.name for spec in parse_subnets([text.replace("AT", str(tmp_path)) for text in texts])]

    assert names("dense", "adapter:AT/math", "adapter:AT/code-v1.2", "adapter:AT/out/adapter") == [
        "dense",
        "adapter_math",
        "adapter_code_v1_2",
        "adapter_out",
    ]
    assert names("adapter:mine=AT/math", "adapter:AT/math@alone") == ["adapter_mine", "adapter_math_alone"]
    with pytest.raises(InputError, match="adapter:NAME=FOLDER"):
        names("adapter:AT/math", "adapter:math=AT/out/adapter")
    with pytest.raises(InputError, match="is no name for a column"):
        names("adapter:a b=AT/math")
    assert adapter_name("runs/x/adapter/") == "x"
    assert score_name_of(["dense", "adapter:x"]) == "drop"
    assert (score_name_of(["dense", "adapter:x", "adapter:y"]), score_name_of(["dlc", "adapter:x"])) == ("loss", "dlc")


def test_identity_is_that_of_weights_and_configuration(tiny_llama: Callable[..., Any], tmp_path: Path) -> None:
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_adapter(tiny_llama(), tmp_path / place, seed, target_modules=["q_proj"])
    a, b, c = (AdapterFolder.open(str(tmp_path / place)).identity for place in "abc")
    assert a == b != c
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 7}))
    assert AdapterFolder.open(str(tmp_path / "b")).identity != a


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hidden_size": 64}, "96 numbers in and 48 out"),
        ({"num_hidden_layers": 3}, "LlamaForCausalLM has no module 'model.layers.2"),
    ],
)
def test_adapters_of_other_models(
    tiny_llama: Callable[..., Any], tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    save_adapter(tiny_llama(**options), tmp_path / "other")
    with (
        pytest.raises(InputError, match="does not belong to this model") as told,
        subnet(tiny_llama(), SubnetSpec("adapter", folder=str(tmp_path / "other"))),
    ):
        pass
    assert says in str(told.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only", "target_modules": ["c_attn"]}, "bias"),
        ({"modules_to_save": ["ln_f"], "target_modules": ["c_attn"]}, "ln_f"),
        ({"target_modules": ["wte"]}, "lora_embedding"),
    ],
)
def test_more_than_lora(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    save_adapter(gpt2(), tmp_path / "more", **options)
    with (
        pytest.raises(InputError, match="merge_and_unload") as told,
        subnet(gpt2(), SubnetSpec("adapter", folder=str(tmp_path / "more"))),
    ):
        pass
    assert says in str(told.value)


def test_folders_that_hold_none(tmp_path: Path) -> None:
    def told(name: str) -> str:
        with pytest.raises(InputError) as error:
            parse_subnets(["dense", f"adapter:{tmp_path / name}"])
        return str(error.value)

    assert "there is no such folder" in told("nowhere")
    (tmp_path / "file").write_text("x")
    assert "it is a file" in told("file")
    assert "has no adapter_config.json" in told("")
    plain = {"peft_type": "LORA", "lora_alpha": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain))
    assert "adapter_model.safetensors is wanted (is not there)" in told("")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert "is a pickle" in told("")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    for config, says in (
        (plain | {"peft_type": "IA3"}, "its peft_type is IA3"),
        (plain | {"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        (plain | {"invented_tomorrow": 3}, "invented_tomorrow is 3"),
        ({"peft_type": "LORA"}, "cannot be read: 'lora_alpha'"),
        ([], "cannot be read"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert says in told("")
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain))
    with (
        pytest.raises(InputError, match="safetensors cannot be read"),
        subnet(torch.nn.Linear(2, 2), SubnetSpec("adapter", folder=str(tmp_path))),
    ):
        pass
