"""Switching an adapter on: what it adds to the outputs of layers. No weight of the model is touched."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_prune.errors import InputError
from instruct_prune.measure.adapter import BEGINNING, WEIGHTS, AdapterFolder

MATRICES = {"A": ".lora_A.weight", "B": ".lora_B.weight"}


def switch_on(model: nn.Module, name: str) -> list[Any]:
    """Add scale * B(A(x)) to what each layer of the adapter makes of x, as PEFT computes it (arXiv 2106.09685, section 4.1).

    The products are added to outputs and not merged into weights: in 16 bits a small change of a weight would be rounded
    away, packed weights could not take it, and nothing has to be given back afterwards.

    Args:
        model: the base model, as transformers made it.
        name: the adapter's folder.

    Returns:
        Handles; ``remove()`` each.

    Raises:
        InputError: the adapter is no plain LoRA adapter, or that of another model.
    """
    added = read_added(model, name)
    return [layer.register_forward_hook(hook) for layer, hook in added]


def read_added(model: nn.Module, name: str) -> list[tuple[nn.Module, Added]]:
    """The layers that an adapter is for, and what it adds to each.

    Raises:
        InputError: as `switch_on`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    adapter = AdapterFolder.open(name)
    try:
        tensors = load_file(adapter.folder / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"adapter:{name}: {WEIGHTS} cannot be read: {error}") from None
    layers = dict(model.named_modules())
    names = {key.removesuffix(ending) for key in tensors for ending in MATRICES.values() if key.endswith(ending)}
    other = next((key for key in tensors if not key.endswith(tuple(MATRICES.values()))), None)
    if other is not None or not names:
        raise InputError(
            f"adapter:{name} has {other or 'nothing'!r} in it, and only LoRA's matrices of linear layers can be switched on here. "
            "Merge it into its base model (PEFT's merge_and_unload), and give that as --model."
        )
    found = []
    for key in sorted(names):
        a, b = (tensors.get(key + ending) for ending in MATRICES.values())
        own = key.removeprefix(BEGINNING)
        layer = layers.get(own)
        if layer is None or a is None or b is None or not _fit(layer, a, b):
            raise InputError(
                f"adapter:{name} does not belong to this model: {_misfit(own, model, layer, a, b)}. Name the model that it was "
                "trained on with --model."
            )
        found.append((layer, Added(a.float(), b.float(), adapter.scale(own, len(a)))))
    return found


def _fit(layer: nn.Module, a: Tensor, b: Tensor) -> bool:
    """Whether matrices A and B are of the layer's size."""
    return a.ndim == b.ndim == 2 and (a.shape[1], b.shape[0]) == _sizes(layer) and len(a) == b.shape[1]


def _misfit(own: str, model: nn.Module, layer: nn.Module | None, a: Tensor | None, b: Tensor | None) -> str:
    """Why matrices do not fit the layer of their name, in words."""
    kind = type(model).__name__
    if layer is None:
        return f"{kind} has no module {own!r}"
    if a is None or b is None:
        return f"one of the two matrices for {own!r} is missing"
    sizes = _sizes(layer)
    if sizes is None:
        return f"{own!r} of {kind} is no linear layer but {type(layer).__name__}"
    return (
        f"its matrices for {own!r} are {tuple(a.shape)} and {tuple(b.shape)}, and that layer of {kind} has {sizes[0]} numbers in "
        f"and {sizes[1]} out"
    )


def _sizes(layer: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, whatever its weight is packed in; None for other modules."""
    for names in (("in_features", "out_features"), ("nx", "nf")):  # the latter: GPT-2's Conv1D
        found = tuple(getattr(layer, name, None) for name in names)
        if all(isinstance(size, int) for size in found):
            return found  # type: ignore[return-value]
    return None


class Added:
    """A forward hook: adds scale * B(A(x)) to a layer's output, in float32 as PEFT does.

    Args:
        a: float32 [r, in].
        b: float32 [out, r].
        scale: as `AdapterFolder.scale` gives it.
    """

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.a.device != output.device:
            self.a, self.b = self.a.to(output.device), self.b.to(output.device)
        x = inputs[0].to(output.device, torch.float32)  # offloaded layers take inputs from another device
        more = F.linear(F.linear(x, self.a), self.b) * self.scale
        return (output + more).to(output.dtype)
