"""Kernels that are sooner on a CPU: oneDNN's products of float32, and attention over short rows in bfloat16 by plain products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MOST = 512 * 512  # queries times keys of a row; PyTorch's own attention is sooner beyond


class OneDnnLinear(TorchFunctionMode):
    """Within it, ``F.linear`` of float32 on a CPU runs oneDNN's kernel: the same sums, 10% to 35% sooner.

    PyTorch's eager mode hands these products to MKL; its compiler hands them to oneDNN, through the operator used
    here. Everything else (other dtypes, devices, quantised or offloaded weights) goes its usual way, and all does where
    PyTorch was built without oneDNN. No module is changed, so hooks, adapters and masks of weights work as ever. A mode
    sees every function that is called, so enter it only where it can help.
    """

    def __init__(self) -> None:
        super().__init__()
        available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
        self._linear: Callable[..., Tensor] | None = torch.ops.mkldnn._linear_pointwise if available else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and self._linear is not None and not kwargs and is_plain_product(*args):
            x, weight, *bias = args
            return self._linear(x, weight, bias[0] if bias else None, "none", [], "")
        return func(*args, **(kwargs or {}))


def is_plain_product(x: Any, weight: Any, bias: Any = None) -> bool:
    """Whether this is a plain product of float32 on a CPU, of which no gradient is asked (the operator has none)."""
    return (
        type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)  # a quantised weight is a subclass that calls itself float32
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


class ShortAttention(TorchFunctionMode):
    """Within it, ``F.scaled_dot_product_attention`` of short rows in bfloat16 on a CPU is a product, a softmax and a product.

    PyTorch's fused kernel saves memory, but its backward pass is slow for short rows in bfloat16: forward and backward, products
    take a sixth of the time at 40 tokens, two thirds at 200 and four fifths at 500. Forward alone they take about as long, so this
    mode is entered only where gradients are asked for. Everything else (other types and devices, long rows, dropout) goes its
    usual way. No module is changed, so this holds for every architecture of transformers.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and are_short_rows(*args, **(kwargs or {})):
            return attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def are_short_rows(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **more: Any,
) -> bool:  # fmt: skip
    """Whether these are short rows in bfloat16, [b, heads, t, d], on a CPU, as `attend` takes them."""
    t, s = query.shape[-2], key.shape[-2]
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.dim() == key.dim() == value.dim() == 4
        and len(query) == len(key)
        and key.shape[1] == value.shape[1]
        and query.shape[1] % key.shape[1] == 0
        and t * s <= MOST
        and dropout_p == 0.0
        and (t == s or not is_causal)
        and more.keys() <= {"scale", "enable_gqa"}
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """[b, h, t, v] of queries [b, h, t, d], keys [b, n, s, d] and values [b, n, s, v]; each of the n heads serves h / n queries."""
    b, h, t, d = query.shape
    n, s = key.shape[1:3]
    # In bfloat16 a score of 40 is rounded by up to 0.125: a trained model's losses were wrong by 0.7 nats a token.
    query = query.float() * (d**-0.5 if scale is None else scale)
    with torch.autocast(query.device.type, enabled=False):  # training turns it on, and it would round this product
        scores = (query.reshape(b, n, -1, d) @ key.float().transpose(2, 3)).view(b, h, t, s)
    if is_causal:
        attn_mask = torch.ones(t, s, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = scores.new_zeros(attn_mask.shape).masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    if attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights.view(b, n, -1, s) @ value).view(b, h, t, value.shape[-1])
