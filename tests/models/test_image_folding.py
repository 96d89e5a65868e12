"""Folded convolutional networks give the features of the network itself, whatever its weights are, or are not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.batching import Plan
from instruct_prune.measure.subnet import DENSE, SubnetSpec
from instruct_prune.measure.subnets import SubnetSwitch
from instruct_prune.models.image_encoder import ImageBatch, ImageEncoder
from instruct_prune.models.image_features import ImageModel, module_output
from instruct_prune.models.image_folding import fold


class PaddedConv(nn.Conv2d):
    """Pads by a module of its own, as EfficientNet's convolutions do."""

    def __init__(self, width: int, size: int, pad: tuple[int, int, int, int], **options: Any) -> None:
        super().__init__(width, 6, size, bias=False, **options)
        self.pad = nn.ZeroPad2d(pad)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Computes its weights anew in each call, so that nothing can be folded into them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Net(nn.Module):
    """Every kind of convolution; one activation for all; a sum that reads what an activation must not write over."""

    def __init__(self) -> None:
        super().__init__()
        self.same = PaddedConv(3, 3, pad=(1, 1, 1, 1))
        self.halved = PaddedConv(6, 3, pad=(0, 1, 0, 1), stride=2, groups=6)
        self.plain = nn.Conv2d(6, 6, 1)
        self.standard = Standardised(6, 6, 1)
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6)]
        )
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.same(x)))
        x = self.norms[1](self.halved(x))
        x = x + self.relu(x)
        x = x + self.norms[2](self.plain(x))
        return self.norms[3](self.standard(x))  # type: ignore[no-any-return]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net().eval()
    for norm in model.norms:
        norm.running_mean.uniform_(-1, 1)  # type: ignore[operator]
        norm.running_var.uniform_(0.2, 3)  # type: ignore[operator]
    return model


def picture(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_the_same_comes_out_of_fewer_parts(net: nn.Module) -> None:
    folded = fold(net, module_output)
    assert folded is not None
    torch.testing.assert_close(folded(picture()), net(picture()), rtol=0, atol=1e-5)
    called = [node.target for node in folded.graph.nodes if node.op == "call_module"]  # type: ignore[union-attr]
    assert sum("norms" in name for name in called) == 1, "that of the weights which are computed anew"
    assert sum("pad" in name for name in called) == 1, "that of unequal sides"


@torch.inference_mode()
def test_the_weights_are_those_of_now_and_the_model_is_as_before(net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    dense = net(picture())
    with SubnetSwitch(net) as switch:
        switch.to(SubnetSpec("magnitude", 0.5, scope="global"))
        folded = fold(net, module_output)
        assert folded is not None
        masked = folded(picture())
        torch.testing.assert_close(masked, net(picture()), rtol=0, atol=1e-5)
        switch.to(DENSE)
    assert float((masked - dense).abs().max()) > 0.01
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Choosing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


def no_norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


def hooked() -> nn.Module:
    model = Net().eval()
    model.plain.register_forward_hook(lambda module, inputs, output: output * 0)
    return model


def replaced() -> nn.Module:
    model = Net().eval()
    model.plain.forward = lambda x: x * 0  # type: ignore[method-assign, assignment]
    return model


@pytest.mark.parametrize("make", [no_norms, hooked, replaced, lambda: Choosing().eval(), lambda: Net().train()])
def test_what_a_graph_would_pass_over_is_not_folded(make: Any) -> None:
    assert fold(make(), module_output) is None


def test_another_result_is_not_used(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ImageModel(net, lambda image: picture(1)[0])
    assert model.folded(picture()) is not None
    monkeypatch.setattr("instruct_prune.models.image_features.fold", lambda model, output: lambda x: net(x) * 1.001)
    assert model.folded(picture()) is None


def test_a_hook_sees_the_pass_although_the_weights_were_folded_before(net: nn.Module) -> None:
    encoder = ImageEncoder(ScoreConfig(), EncodeConfig(), None, loaded=(net, lambda image: picture(1)[0]))
    encoder.load("float32", torch.device("cpu"))
    encoder.start_pass(Plan((), (), 2, 0, 0), (), True)
    batch = ImageBatch(picture(), torch.zeros(2, dtype=torch.int64))
    features = encoder.forward(batch)[None]
    seen: list[Tensor] = []
    hook = net.plain.register_forward_hook(lambda module, inputs, output: seen.append(output))  # type: ignore[union-attr]
    again = encoder.forward(batch)[None]
    hook.remove()
    assert len(seen) == 1
    torch.testing.assert_close(again, features, rtol=0, atol=1e-5)
