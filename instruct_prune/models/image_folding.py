"""A convolutional network as one graph for inference: batch normalisation and padding become part of the convolutions.

In evaluation mode a batch normalisation multiplies each channel by a number and adds another, so that the convolution before it can do
both (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.2). Features change by rounding alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

ACTIVATIONS = (nn.ReLU, nn.ReLU6)
"""That may write over what a convolution made for them alone: memory that is asked for anew in each call costs as much as they do."""
CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def fold(model: nn.Module, output: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module | None:
    """What ``output(model, pixels)`` computes with the weights as they are now, from weights of its own.

    Args:
        model: in evaluation mode; it is not changed.
        output: how it is called.

    Returns:
        A module pixels -> output, or None where nothing can be folded: a model without batch normalisation, one whose path
        depends on the pixels or their size, or one with hooks or replaced methods, which only the module itself obeys.
    """
    if not any(type(part) is nn.BatchNorm2d for part in model.modules()) or is_watched(model):
        return None
    try:
        graph = fx.symbolic_trace(_Call(copy.deepcopy(model), output).eval())
        return graph if _fold_into_convolutions(graph) else None
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError):
        return None  # its code asks the pixels for what a trace does not know


class _Call(nn.Module):
    def __init__(self, model: nn.Module, output: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, pixels: Tensor) -> Tensor:
        return self.output(self.model, pixels)


def is_watched(model: nn.Module) -> bool:
    """Whether a part has hooks, a method of its own or is in training mode, which a graph of the model would pass over."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) or part.training
        for part in model.modules()
    )


def _fold_into_convolutions(graph: fx.GraphModule) -> int:
    """Fold what can be; how many normalisations were."""
    found = 0
    nodes: list[Any] = list(graph.graph.nodes)
    for node in nodes:
        conv = _convolution(graph, node)
        if conv is None:
            continue
        pad = _called(graph, node.args[0], nn.ZeroPad2d)
        if pad is not None and _add_padding(conv, pad.padding):
            node.args = (node.args[0].args[0], *node.args[1:])
        norm = _called(graph, _only_user(node), nn.BatchNorm2d)
        if norm is not None and norm.running_mean is not None:
            _scale(conv, norm)
            after = _only_user(node)
            after.replace_all_uses_with(node)
            graph.graph.erase_node(after)
            found += 1
        activation = _called(graph, _only_user(node), *ACTIVATIONS)
        if activation is not None:  # one of its own: the module may be used elsewhere
            _only_user(node).target = f"activation_{node.name}"
            graph.add_submodule(f"activation_{node.name}", type(activation)(inplace=True))
        name = f"convolution_{node.name}"
        graph.add_submodule(name, conv)
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_module(name, (node.args[0],)))
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return found


def _only_user(node: Any) -> Any:
    """The node that takes this one's output, where it is the only one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _called(graph: fx.GraphModule, node: Any, *kinds: type[nn.Module]) -> Any:
    """The module that a node calls, where it is exactly of such a kind (what a subclass does is not known); else None."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if type(module) in kinds else None


def _convolution(graph: fx.GraphModule, node: Any) -> nn.Conv2d | None:
    """A copy of the convolution that a node calls, as a module or as a function of parameters; None where it calls none."""
    own = _called(graph, node, nn.Conv2d)
    if own is not None and own.padding_mode == "zeros":
        given = {name: getattr(own, name) for name in CONV_ARGUMENTS[1:]}
    elif node.op == "call_function" and node.target is F.conv2d:
        given = dict(zip(CONV_ARGUMENTS, node.args, strict=False)) | node.kwargs
        for name in ("weight", "bias"):
            if isinstance(given.get(name), fx.Node):
                if given[name].op != "get_attr":
                    return None  # computed anew in each call
                given[name] = graph.get_parameter(given[name].target)
    else:
        return None
    weight, bias = given.pop("weight").detach(), given.pop("bias", None)
    given.pop("input", None)
    conv = nn.Conv2d(given.get("groups", 1) * weight.shape[1], weight.shape[0], weight.shape[2:], **given)
    bias = torch.zeros(len(weight)) if bias is None else bias.detach().clone()
    return _with(conv.eval(), weight.clone(memory_format=torch.channels_last), bias)


def _with(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv


def _add_padding(conv: nn.Conv2d, sides: tuple[int, int, int, int]) -> bool:
    """Zeros around the picture as the convolution's own, where both sides have as many."""
    left, right, top, bottom = sides
    if left != right or top != bottom or min(left, top) < 0 or isinstance(conv.padding, str):
        return False
    conv.padding = (conv.padding[0] + top, conv.padding[1] + left)
    return True


def _scale(conv: Any, norm: Any) -> None:
    """Give the convolution the normalisation's scale and shift, computed in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = (conv.bias.double() - norm.running_mean.double()) * scale
    shift = shift if norm.bias is None else shift + norm.bias.double()
    _with(conv, (conv.weight.double() * scale[:, None, None, None]).float(), shift.float())
