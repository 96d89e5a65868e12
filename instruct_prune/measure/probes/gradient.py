"""Sketches of per-row gradients: which way a row would pull the model's weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from instruct_prune.errors import InputError
from instruct_prune.measure.probes.probe import Probe
from instruct_prune.measure.subnets import decoder_blocks
from instruct_prune.models.model import Model, States

WIDTH = 4096


@dataclass
class Watched:
    """What the hooks of one batch gather.

    Attributes:
        inputs: projected inputs [b, t, a] of each module, by name.
        total: the sketch so far, float32 [b, p, a].
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    total: Tensor | None = None


class Gradient(Probe):
    """A random sketch of the gradient of each row's mean loss with respect to the weights of linear layers.

    For a linear layer with inputs x_t and gradients delta_t of its outputs, a row's gradient is sum_t delta_t x_t^T. It is
    seen through two frozen random matrices, sum_t (P delta_t)(A x_t)^T, and the sketches of all layers are added up: with
    projections that are independent between layers, inner products of these sums estimate the inner products of the whole
    gradients. Rows of the result have length one, so inner products are cosines.

    Sources: LESS (Xia et al., arXiv 2402.04333), TRAK (Park et al., 2023) for projections of this form, and docs/targets.md.
    Projections are drawn by the name of the layer, so that every process and machine has the same.

    Args:
        width: numbers of a sketch: a power of two (or a square), shared between the columns of P and of A.
    """

    needs_grad = True
    half = True

    def __init__(self, width: int = WIDTH) -> None:
        rows = next((side for side in range(math.isqrt(max(width, 0)), 0, -1) if width % side == 0), 0)
        if not rows or width // rows > 2 * rows:
            raise InputError(f"gradient: the width {width} is not near a square, such as 1024, 4096 or 8192.")
        self.sides = {"out": rows, "in": width // rows}
        self.name = "gradient" if width == WIDTH else f"gradient_all_{width}_s0"  # as stored columns are called
        self._projections: dict[tuple[str, int, torch.device], Tensor] = {}
        self._watched = Watched()

    def width(self, model: Model) -> int:
        return self.sides["out"] * self.sides["in"]

    @contextmanager
    def watch(self, model: Model, batch: Any) -> Iterator[None]:
        self._watched = Watched()
        embedding: nn.Module = model.backbone.get_input_embeddings()  # type: ignore[operator]
        hooks = [embedding.register_forward_hook(lambda module, args, output: output.requires_grad_(True))]
        hooks += [
            layer.register_forward_hook(lambda module, args, output, name=name: self._seen(name, args[0], output))
            for name, layer in linear_layers(model.backbone)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _seen(self, name: str, x: Tensor, output: Tensor) -> None:
        """Keep a layer's input, projected, until the gradient of its output comes back."""
        if not output.requires_grad:
            return
        self._watched.inputs[name] = self._project(f"{name}:in", x.detach())
        output.register_hook(lambda delta: self._came_back(name, delta))  # type: ignore[no-untyped-call]

    def _came_back(self, name: str, delta: Tensor) -> None:
        x = self._watched.inputs.pop(name)
        piece = torch.einsum("btp,bta->bpa", self._project(f"{name}:out", delta.detach()), x)
        self._watched.total = piece if self._watched.total is None else self._watched.total + piece

    def _project(self, name: str, values: Tensor) -> Tensor:
        """float32 [b, t, columns] of values [b, t, d]."""
        key = (name, values.shape[-1], values.device)
        if key not in self._projections:
            self._projections[key] = self.projection(name, values.shape[-1]).to(values.device, values.dtype)
        return (values @ self._projections[key]).float()

    def projection(self, name: str, size: int) -> Tensor:
        """float32 [size, columns]: normal numbers over the square root of ``columns``, the same for a name everywhere.

        Args:
            name: of the layer, with ":in" or ":out".
            size: of the layer's inputs or outputs.
        """
        columns = self.sides[name.rpartition(":")[2]]
        number = hashlib.blake2b(f"0:{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(number, "little") >> 1)
        return torch.randn(size, columns, generator=generator) / math.sqrt(columns)

    def __call__(self, model: Model, batch: Any, states: States) -> Tensor:
        torch.autograd.backward(model.losses(batch, states, None).sum())
        total = self._watched.total
        if total is None:
            raise InputError(
                f"{type(model.backbone).__name__}: no gradient came back to any linear layer of its blocks."
            )
        flat = total.flatten(1)
        return nn.functional.normalize(flat, dim=1, eps=1e-30)


def linear_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The linear layers of the blocks that see rows one by one ([b, t, d]); experts of mixtures do not.

    Raises:
        InputError: the model has no blocks, or no such layers in them.
    """
    found = [
        (f"{block_name}.{name}", layer)
        for block_name, block in decoder_blocks(module)
        for name, layer in block.named_modules()
        if (isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D")
        and "experts" not in name
        and not name.endswith(("gate", "router"))
    ]
    if not found:
        raise InputError(
            f"{type(module).__name__} has no linear layers in its blocks, so there are no gradients to sketch."
        )
    return found
