"""Switching a model from one subnet to the next.

Weights (magnitude, random) are masked in place by WeightMasker; dropout and adapters act on activations through hooks;
depth is read off the hidden states by the backbone, so the model stays dense.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from instruct_prune.errors import InputError
from instruct_prune.measure.lora import switch_on
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.measure.weights import WeightMasker, seeded
from instruct_prune.registry import load_attribute

ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
MLP = re.compile(r"mlp|feedforward|ffn|moe|sparse", re.IGNORECASE)


class SubnetSwitch:
    """One model, one subnet at a time. Use as a context manager: weights and hooks are as before afterwards.

    Args:
        model: the whole of it, which adapters and the user's own subnets change.
        include_head: also mask the output head.
        backbone: the part that loses weights and units, where that is not all.
    """

    def __init__(self, model: nn.Module, include_head: bool = False, backbone: nn.Module | None = None) -> None:
        self.model = model
        self._backbone = model if backbone is None else backbone
        self._include_head = include_head
        self._masker: WeightMasker | None = None
        self._hooks: list[Any] = []
        self._own = ExitStack()  # subnets of the user's own: context managers (module, value, seed)

    def __enter__(self) -> SubnetSwitch:
        return self

    def __exit__(self, *_: object) -> None:
        self._unhook()
        if self._masker is not None:
            self._masker.restore()

    def to(self, spec: SubnetSpec) -> None:
        """Make the model this subnet.

        Raises:
            InputError: the model has no such subnet, or the user's own family is not a context manager.
        """
        self._unhook()
        if spec.kind in ("magnitude", "random") and self._masker is None:
            self._masker = WeightMasker(self._backbone, self._include_head)
        if self._masker is not None:
            self._masker.apply(spec)
        if spec.kind == "dropout":
            self._hooks = inject_dropout(self._backbone, spec)
        if spec.kind == "adapter":
            self._hooks = switch_on(self.model, spec.folder)
        if ":" in spec.kind:
            made = load_attribute(spec.kind, "--subnets")(self.model, spec.value, spec.seed)
            if not isinstance(made, AbstractContextManager):
                raise InputError(
                    f"--subnets {spec.kind}: expected a context manager (a function (module, value, seed) under "
                    f"@contextlib.contextmanager), it returned {type(made).__name__}."
                )
            self._own.enter_context(made)

    def left_whole(self) -> dict[str, str]:
        """Weights that no mask touches, with the reason; empty before the first masked subnet."""
        return {} if self._masker is None else self._masker.table.left_whole

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._own.close()


def inject_dropout(model: nn.Module, spec: SubnetSpec) -> list[Any]:
    """Drop a fixed, seeded set of hidden units at the output of every attention and MLP block.

    The set is the same for every sample and position, so it is one sub-network, and how rows are batched cannot change
    a score; survivors are scaled by 1 / (1 - rate). Families such as Llama have no dropout modules of their own:
    ``model.train()`` alone would change nothing (arXiv 2402.05356v1, section 3).

    Returns:
        Handles; ``remove()`` each.

    Raises:
        InputError: the model's blocks are not recognised.
    """
    return [
        module.register_forward_hook(_UnitDropout(spec.value, seeded(spec.seed, name)))
        for name, module in block_outputs(model)
    ]


class _UnitDropout:
    """A forward hook: multiplies the last dimension of a module's output by one fixed mask."""

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        self.rate = rate
        self.generator = generator
        self.mask: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if self.mask is None:
            self.mask = unit_mask(states.shape[-1], self.rate, self.generator)
        dropped = states * self.mask.to(states.device, states.dtype)
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped


def unit_mask(n: int, rate: float, generator: torch.Generator) -> Tensor:
    """float32 [n]: 0 for round(rate * n) units, 1 / (1 - rate) for the others; nested in the rate for one seed."""
    order = torch.randperm(n, generator=generator)
    mask = torch.full((n,), 1 / (1 - rate))
    mask[order[: round(rate * n)]] = 0
    return mask


def block_outputs(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The attention and MLP modules of every decoder block, found by the names of attributes and classes.

    Raises:
        InputError: a block has no recognisable attention or MLP.
    """
    found: list[tuple[str, nn.Module]] = []
    for block_name, block in decoder_blocks(model):
        for what, pattern in (("attention", ATTENTION), ("MLP", MLP)):
            children = [
                (child_name, child)
                for child_name, child in block.named_children()
                if (pattern.search(child_name) or pattern.search(type(child).__name__))
                and not re.search(r"norm|dropout", type(child).__name__, re.IGNORECASE)
            ]
            if not children:
                raise InputError(
                    f"dropout subnets: block {block_name!r} ({type(block).__name__}) has no {what} that is recognised by "
                    f"name; its parts are {', '.join(n for n, _ in block.named_children())}. Use --subnets dlc instead."
                )
            found += [(f"{block_name}.{child_name}", child) for child_name, child in children]
    return found


def decoder_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The longest ModuleList of equal block classes: the stack of transformer blocks.

    Raises:
        InputError: there is none.
    """
    stacks = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    n_layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    stacks = [(n, m) for n, m in stacks if n_layers is None or len(m) == n_layers] or stacks
    if not stacks:
        raise InputError(
            f"{type(model).__name__} has no stack of blocks, so dropout subnets do not apply. Use --subnets dlc."
        )
    # The outermost: experts of a mixture are ModuleLists too, deeper in the tree.
    name, stack = min(stacks, key=lambda pair: pair[0].count("."))
    return [(f"{name}.{i}", block) for i, block in enumerate(stack)]


@contextmanager
def subnet(model: nn.Module, spec: SubnetSpec, include_head: bool = False) -> Iterator[nn.Module]:
    """The model as one subnet, for people who experiment; bit-identical to before afterwards."""
    with SubnetSwitch(model, include_head) as switch:
        switch.to(spec)
        yield model
