"""Masks on real modules: what is masked, what is left whole, and that everything comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_models import masked_weights
from torch import nn

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.measure.subnets import subnet
from instruct_prune.measure.weights import WeightMasker, find_weights, random_keys, removed_count


def bits(model: nn.Module) -> dict[str, bytes]:
    return {n: p.detach().contiguous().view(torch.uint8).numpy().tobytes() for n, p in model.named_parameters()}


def magnitude(density: float, scope: str = "layerwise") -> SubnetSpec:
    return SubnetSpec("magnitude", density, scope=scope)


def small_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3, bias=False)).requires_grad_(False)


def test_llama_masks_linear_layers_and_leaves_the_rest_whole(tiny_llama: Callable[..., Any]) -> None:
    table = find_weights(tiny_llama())
    assert len(table.masked) == 2 * 7
    assert table.left_whole == {"model.embed_tokens.weight": "output head"}  # tied: one parameter


def test_untied_head_is_left_whole_unless_asked_for(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    assert find_weights(model).left_whole == {"model.embed_tokens.weight": "embedding", "lm_head.weight": "output head"}
    assert "lm_head.weight" in find_weights(model, include_head=True).masked


def test_gpt2_conv1d_is_masked() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    table = find_weights(model)
    assert len(table.masked) == 2 * 4
    assert set(table.left_whole.values()) == {"output head", "embedding"}


def test_expert_stacks_lose_the_same_share_in_every_expert() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    model = MixtralForCausalLM(MixtralConfig(vocab_size=50, num_local_experts=3, **size)).requires_grad_(False)
    with torch.no_grad():  # an expert with tiny weights would lose everything if experts were ranked together
        for name, parameter in model.named_parameters():
            if "experts" in name and parameter.ndim == 3:
                parameter[0] *= 1e-3
    stacks = {n: p for n, p in find_weights(model).masked.items() if p.ndim == 3}
    assert stacks
    with subnet(model, magnitude(0.5)):
        for parameter in stacks.values():
            shares = (parameter == 0).float().mean(dim=(1, 2)).tolist()
            assert shares == pytest.approx([0.5, 0.5, 0.5], abs=0.01)


def test_a_shared_weight_is_masked_once() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(first, second).requires_grad_(False)
    assert list(find_weights(model).masked) == ["0.weight"]
    with subnet(model, magnitude(0.5)):
        assert int((second.weight == 0).sum()) == 18


def test_quantised_weights_are_refused_with_the_alternative() -> None:
    model = small_model()
    model[0].weight = nn.Parameter(torch.zeros(7, 5, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match="dropout"):
        find_weights(model)


def test_nothing_to_mask_is_an_error() -> None:
    with pytest.raises(InputError, match="no linear or convolution weights"):
        find_weights(nn.Sequential(nn.LayerNorm(3)))


@pytest.mark.parametrize("kind", ["magnitude", "random"])
@settings(max_examples=20, deadline=None)
@given(densities=st.lists(st.integers(1, 999), min_size=1, max_size=4, unique=True))
def test_densities_are_nested_and_exact(kind: str, densities: list[int]) -> None:
    model = small_model()
    ladder = [d / 1000 for d in sorted(densities, reverse=True)]
    before = bits(model)
    with masked_weights(model) as masker:
        previous: dict[str, torch.Tensor] = {}
        for density in ladder:
            masker.apply(SubnetSpec(kind, density, seed=3))
            for name, weight in masker.table.masked.items():
                zero = weight == 0
                assert int(zero.sum()) == removed_count(weight.numel(), density)
                if name in previous:
                    assert bool((zero | ~previous[name]).all()), "a removed weight came back"
                previous[name] = zero.clone()
    assert bits(model) == before


def test_in_place_on_top_equals_from_scratch(tiny_llama: Callable[..., Any]) -> None:
    ladder, direct = tiny_llama(), tiny_llama()
    with masked_weights(ladder) as a, masked_weights(direct) as b:
        for density in (0.9, 0.7, 0.4):
            a.apply(magnitude(density))
        b.apply(magnitude(0.4))
        assert bits(ladder) == bits(direct)


def test_global_masks_differ_from_layerwise_and_count_exactly(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 0.1
    with masked_weights(model) as masker:
        masker.apply(magnitude(0.6, "global"))
        zeros = sum(int((w == 0).sum()) for w in masker.table.masked.values())
        assert zeros == removed_count(masker.table.n_weights, 0.6)
        assert float((model.model.layers[0].mlp.up_proj.weight == 0).float().mean()) > 0.9


def test_weights_come_back_after_an_exception(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    before = bits(model)
    with pytest.raises(ZeroDivisionError), subnet(model, magnitude(0.3)):
        assert bits(model) != before
        raise ZeroDivisionError
    assert bits(model) == before


def test_going_up_again_restores_first(tiny_llama: Callable[..., Any]) -> None:
    model, fresh = tiny_llama(), tiny_llama()
    masker, other = WeightMasker(model), WeightMasker(fresh)
    masker.apply(magnitude(0.4))
    masker.apply(magnitude(0.8))
    other.apply(magnitude(0.8))
    assert bits(model) == bits(fresh)


def test_random_masks_depend_on_name_and_seed_only() -> None:
    like = torch.zeros(20, 30)
    assert torch.equal(random_keys("a", like, 1), random_keys("a", like.to(torch.bfloat16), 1))
    assert not torch.equal(random_keys("a", like, 1), random_keys("b", like, 1))
    assert not torch.equal(random_keys("a", like, 1), random_keys("a", like, 2))
