from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.batching import Plan
from instruct_prune.models import kernels
from instruct_prune.models.causal_lm import CausalLM, TextBatch
from instruct_prune.models.kernels import OneDnnLinear

pytestmark = pytest.mark.skipif(
    OneDnnLinear()._linear is None, reason="this PyTorch has no oneDNN, so every product goes its usual way"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the weights that oneDNN was given."""
    seen: list[tuple[int, ...]] = []
    own = OneDnnLinear.__init__

    def init(self: OneDnnLinear) -> None:
        own(self)
        inner = self._linear
        assert inner is not None

        def noted(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
            seen.append(tuple(weight.shape))
            return inner(x, weight, *rest)

        self._linear = noted

    monkeypatch.setattr(OneDnnLinear, "__init__", init)
    return seen


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_pytorch(calls: list[tuple[int, ...]], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 96, bias=bias), torch.randn(3, 32, 48)
    with torch.inference_mode():
        expected = layer(x)
        with OneDnnLinear():
            found = layer(x)
    assert calls == [(96, 48)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_rows_of_a_weight_are_taken_as_they_lie(calls: list[tuple[int, ...]]) -> None:
    """The head multiplies blocks of its vocabulary: views that do not start at the weight's first byte."""
    torch.manual_seed(0)
    weight, x = torch.randn(100, 16), torch.randn(32, 16)
    with torch.inference_mode(), OneDnnLinear():
        torch.testing.assert_close(F.linear(x, weight[37:80]), x @ weight[37:80].T, atol=1e-5, rtol=1e-5)
    assert calls == [(43, 16)]


def test_a_weight_that_was_masked_in_place_is_read_anew(calls: list[tuple[int, ...]]) -> None:
    """oneDNN may keep a prepared weight; the next subnet's must not be the last one's."""
    layer, x = nn.Linear(64, 64), torch.randn(32, 64)
    with torch.inference_mode(), OneDnnLinear():
        layer(x)
        layer.weight.zero_()
        torch.testing.assert_close(layer(x), layer.bias.expand(32, 64))
    assert len(calls) == 2


class Quantised(torch.Tensor):
    """Stands for a weight class of a quantiser: it says float32 and is not."""


def test_everything_else_goes_its_usual_way(calls: list[tuple[int, ...]]) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(32, 8)
    with OneDnnLinear():
        layer(x).sum().backward()  # gradients
        assert layer.weight.grad is not None
        with torch.inference_mode():
            F.linear(x.double(), layer.weight.double())
            F.linear(x.bfloat16(), layer.weight.bfloat16())
            F.linear(x, layer.weight.detach().as_subclass(Quantised))
            F.linear(input=x, weight=layer.weight)
    assert calls == []


def test_losses_of_a_model_run_through_it_and_agree(
    calls: list[tuple[int, ...]], tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = CausalLM(ScoreConfig(), EncodeConfig(), None, loaded=(tiny_llama(), None))
    backbone.load("float32", torch.device("cpu"))
    torch.manual_seed(0)
    ids = torch.randint(0, 64, (4, 12))
    rows, positions = torch.ones(4, 11).nonzero(as_tuple=True)
    batch = TextBatch(
        ids, torch.full((4,), 12), rows, positions, ids[:, 1:].reshape(-1), torch.full((4,), 11), prefix=-1
    )
    backbone.start_pass(Plan((), (), n_rows=4, n_tokens=48, n_padding=0), (), pooled=False)

    def losses() -> torch.Tensor:
        with torch.inference_mode():
            return backbone.losses(batch, backbone.forward(batch), None)

    fast = losses()
    n_linear = sum(isinstance(m, nn.Linear) for m in backbone.module.modules())
    assert len(calls) >= n_linear  # the head's blocks included
    monkeypatch.setattr(kernels, "is_plain_product", lambda *_: False)
    calls.clear()
    np.testing.assert_allclose(fast, losses(), atol=1e-5)
    assert calls == []
