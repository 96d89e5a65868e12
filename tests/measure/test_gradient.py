"""Gradient sketches against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from instruct_prune.encode.batching import plan_batches
from instruct_prune.encode.item import Tokens
from instruct_prune.errors import InputError
from instruct_prune.measure.engine import run_batch
from instruct_prune.measure.measurement import Measurement, Pass
from instruct_prune.measure.probes import Gradient, parse_probe
from instruct_prune.measure.probes.gradient import linear_layers
from instruct_prune.measure.subnet import DENSE, FULL
from instruct_prune.models.causal_lm import CausalLM


def rows(n: int = 6, seed: int = 0) -> list[Tokens]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        length = int(rng.integers(8, 24))
        mask = np.arange(length) >= length // 2
        found.append(Tokens(rng.integers(3, 390, length).astype(np.int32), mask))
    return found


def sketches(model: CausalLM, items: list[Tokens], probe: Gradient, batch_tokens: int = 4096) -> Tensor:
    at = np.arange(len(items), dtype=np.int64)
    lengths = np.asarray([len(item.ids) for item in items], dtype=np.int32)
    plan = plan_batches(at, lengths, batch_tokens=batch_tokens)
    a_pass = Pass(DENSE, FULL, (Measurement(DENSE, probe),))
    model.start_pass(plan, (), pooled=False)
    found = torch.zeros(len(items), probe.width(model))
    for chunk in plan.chunks:
        for batch in chunk:
            found[torch.as_tensor(batch.rows)] = run_batch(model, a_pass, items, batch)
    return found


def true_gradients(module: Any, items: list[Tokens]) -> Tensor:
    """[n, all weights of the blocks' linear layers], one row at a time, by autograd."""
    layers = [layer for _, layer in linear_layers(module)]
    weights = [layer.weight for layer in layers]
    for weight in weights:
        weight.requires_grad_(True)
    found = []
    for item in items:
        ids = torch.as_tensor(item.ids.astype("int64"))[None]
        logits = module(input_ids=ids, use_cache=False).logits[0, :-1].float()
        targets = ids[0, 1:][torch.as_tensor(item.response_mask[1:])]
        loss = torch.nn.functional.cross_entropy(logits[torch.as_tensor(item.response_mask[1:])], targets)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    for weight in weights:
        weight.requires_grad_(False)
    return torch.stack(found)


class Whole(Gradient):
    """Without projections, for one layer."""

    def __init__(self, only: str) -> None:
        super().__init__()
        self.only = only

    def width(self, model: Any) -> int:
        layer = dict(linear_layers(model.module))[self.only]
        return int(layer.weight.numel())

    def projection(self, name: str, size: int) -> Tensor:
        return torch.eye(size) if name.startswith(self.only) else torch.zeros(size, 0)

    def _came_back(self, name: str, delta: Tensor) -> None:
        if name == self.only:
            super()._came_back(name, delta)


class Redrawn(Gradient):
    """With the projections of other names."""

    def __init__(self, draw: int) -> None:
        super().__init__()
        self.draw = draw

    def projection(self, name: str, size: int) -> Tensor:
        return super().projection(f"{self.draw}:{name}", size)


def test_without_projections_it_is_the_gradient(tiny_llama: Callable[..., Any]) -> None:
    model = CausalLM.holding(tiny_llama())
    items = rows()
    name, layer = linear_layers(model.module)[3]
    found = sketches(model, items, Whole(name))
    start = sum(each.weight.numel() for _, each in linear_layers(model.module)[:3])
    true = true_gradients(model.module, items)[:, start : start + layer.weight.numel()]
    torch.testing.assert_close(found, torch.nn.functional.normalize(true), atol=1e-5, rtol=1e-4)


def test_cosines_of_sketches_are_those_of_gradients(tiny_llama: Callable[..., Any]) -> None:
    model = CausalLM.holding(tiny_llama())
    items = rows(12)
    true = torch.nn.functional.normalize(true_gradients(model.module, items))
    errors = []
    for draw in range(4):
        found = sketches(model, items, Redrawn(draw))
        errors.append((found @ found.T - true @ true.T).flatten())
    # 64 x 64 numbers: the error of an inner product of unit vectors is about 1.5 / 64 for gradients of rank above one.
    assert torch.stack(errors).square().mean().sqrt() < 0.05
    assert abs(float(torch.stack(errors).mean())) < 0.02


@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_rows_do_not_mix(tiny_llama: Callable[..., Any], batch_tokens: int) -> None:
    model = CausalLM.holding(tiny_llama())
    items = rows()
    alone = torch.cat([sketches(model, [item], Gradient()) for item in items])
    torch.testing.assert_close(sketches(model, items, Gradient(), batch_tokens), alone, atol=1e-5, rtol=1e-4)


def test_weights_and_their_settings_stay(tiny_llama: Callable[..., Any]) -> None:
    model = CausalLM.holding(tiny_llama())
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    sketches(model, rows(2), Gradient(width=1024))
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None and not p.requires_grad for p in model.module.parameters())
    assert not any(module._forward_hooks for module in model.module.modules())


def test_projections_depend_on_names_only() -> None:
    torch.manual_seed(1)
    first = Gradient().projection("model.layers.3.mlp.up_proj:in", 48)
    torch.manual_seed(2)
    torch.testing.assert_close(Gradient().projection("model.layers.3.mlp.up_proj:in", 48), first, rtol=0, atol=0)
    assert not torch.equal(Gradient().projection("model.layers.2.mlp.up_proj:in", 48), first)


def test_widths_that_are_no_squares(tiny_llama: Callable[..., Any]) -> None:
    model = CausalLM.holding(tiny_llama())
    items = rows(12)
    probe = parse_probe("gradient@8192")
    assert isinstance(probe, Gradient)
    assert (probe.sides, probe.width(model), probe.name) == ({"out": 64, "in": 128}, 8192, "gradient_all_8192_s0")
    found = sketches(model, items, probe)
    true = torch.nn.functional.normalize(true_gradients(model.module, items))
    assert (found @ found.T - true @ true.T).square().mean().sqrt() < 0.05


def test_bad_parameters() -> None:
    with pytest.raises(InputError, match="not near a square"):
        Gradient(width=5003)
    with pytest.raises(InputError, match="not near a square"):
        Gradient(width=0)
    with pytest.raises(InputError, match="such as gradient@8192"):
        parse_probe("gradient@wide")
