"""Masking weights in place, on one copy of the model, and giving them back bit for bit.

arXiv 2402.05356 (ICLR 2025), section 3: a subnet is the base model with its smallest-magnitude weights removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.measure.thresholds import magnitude_keys, smallest, zero_smallest

QUANTIZED = (torch.uint8, torch.int8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class WeightTable:
    """The weights that subnets act on.

    Attributes:
        masked: name -> parameter: matrices of linear and convolution layers (2-D to 5-D, input and output
            dimensions first or last alike), and stacks of expert matrices (3-D, masked expert by expert).
        left_whole: names of other weights with two or more dimensions, with the reason: embeddings, the output
            head, routers and other modules of unknown kind.
    """

    masked: dict[str, nn.Parameter]
    left_whole: dict[str, str]

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight matrix by itself: an expert stack [experts, out, in] gives one matrix an expert."""
        for name, parameter in self.masked.items():
            if parameter.ndim == 3 and name in self.stacks:
                for expert, matrix in enumerate(parameter.data):
                    yield f"{name}[{expert}]", matrix
            else:
                yield name, parameter.data

    @property
    def stacks(self) -> set[str]:
        """Names of expert stacks."""
        return {name for name, p in self.masked.items() if p.ndim == 3 and "experts" in name}

    @property
    def n_weights(self) -> int:
        return sum(p.numel() for p in self.masked.values())


def find_weights(model: nn.Module, include_head: bool = False) -> WeightTable:
    """Sort the model's weights into those that subnets mask and those they leave whole.

    A parameter shared by several modules appears once. A tied output head is the embedding, so it is left whole
    unless ``include_head`` asks for the released code's behaviour, which masks both.

    Raises:
        InputError: the weights are packed by a quantiser, or there is nothing to mask.
    """
    refuse_quantized(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    head_weight = getattr(head, "weight", None)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    masked: dict[str, nn.Parameter] = {}
    left: dict[str, str] = {}
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        owner = owners[id(parameter)]
        if head_weight is not None and parameter is head_weight:
            if include_head:
                masked[name] = parameter
            else:
                left[name] = "output head"
        elif id(parameter) in embeddings:
            left[name] = "embedding"
        elif (_is_matrix_layer(owner) and name.endswith("weight")) or (
            parameter.ndim == 3 and "experts" in name and "bias" not in name
        ):
            masked[name] = parameter
        else:
            left[name] = f"{type(owner).__name__} is not a linear or convolution layer"
    if not masked:
        raise InputError(f"{type(model).__name__} has no linear or convolution weights to mask. Use --subnets dense.")
    return WeightTable(masked, left)


def _is_matrix_layer(module: nn.Module) -> bool:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    # transformers' Conv1D (GPT-2) is a linear layer with a transposed weight.
    return isinstance(module, kinds) or type(module).__name__ == "Conv1D"


def refuse_quantized(model: nn.Module) -> None:
    """Raise InputError where weights are packed (bitsandbytes, GPTQ, AWQ): zeroing a packed byte means nothing."""
    quantizer = getattr(getattr(model, "config", None), "quantization_config", None)
    packed = next((n for n, p in model.named_parameters() if p.ndim >= 2 and p.dtype in QUANTIZED), None)
    if quantizer is not None or packed is not None:
        what = f"weight {packed!r} is packed" if packed else "its configuration names a quantisation"
        raise InputError(
            f"{type(model).__name__} is quantised ({what}): magnitude and random subnets need plain weights. "
            "Use --subnets lc-dropout (dropout acts on activations), or the unquantised model."
        )


def removed_count(n: int, density: float) -> int:
    """How many of n weights a density removes: round((1 - density) * n), as torch's l1_unstructured counts."""
    return round((1 - density) * n)


class WeightMasker:
    """Applies magnitude and random subnets in place; at most one host copy of the masked weights is kept.

    Densities of one family must come from high to low: their masks are nested, so each is applied on top of the last.
    """

    def __init__(self, model: nn.Module, include_head: bool = False) -> None:
        self.table = find_weights(model, include_head)
        self._originals: dict[str, Tensor] | None = None
        self._current: SubnetSpec | None = None
        self._offloaded = OffloadedWeights(model, self.table)

    def apply(self, spec: SubnetSpec) -> None:
        """Make the weights those of ``spec`` ("dense" gives the originals back)."""
        if spec.kind not in ("magnitude", "random") or spec.value >= 1:
            self.restore()
            return
        if self._current == spec:
            return
        if self._originals is None:
            here = {n: p for n, p in self.table.masked.items() if not p.is_meta}
            self._originals = {n: p.detach().to("cpu", copy=True) for n, p in here.items()}
        if self._current is not None and not _nested(self._current, spec):
            self.restore()
        self._current = spec
        self._offloaded.mask(spec)
        with torch.no_grad():
            if spec.kind == "magnitude" and spec.scope == "global":
                self._mask_together(spec)
            else:
                self._mask_each(spec)

    def restore(self) -> None:
        """Give every masked weight its original bits back."""
        if self._current is None or self._originals is None:
            return
        self._offloaded.unmask()
        with torch.no_grad():
            for name, original in self._originals.items():
                self.table.masked[name].data.copy_(original)
        self._current = None

    def _mask_each(self, spec: SubnetSpec) -> None:
        for name, matrix in self.table.matrices():
            if not matrix.is_meta:
                mask_matrix(name, matrix, spec)

    def _mask_together(self, spec: SubnetSpec) -> None:
        matrices = [matrix for _, matrix in self.table.matrices()]
        keys = [magnitude_keys(matrix) for matrix in matrices]
        cut = smallest(keys, removed_count(self.table.n_weights, spec.value))
        for matrix, key in zip(matrices, keys, strict=True):
            used = zero_smallest(matrix, key, cut)
            cut = type(cut)(cut.threshold, cut.n_ties - used)


def mask_matrix(name: str, matrix: Tensor, spec: SubnetSpec) -> None:
    """Mask one matrix in place, by itself."""
    keys = magnitude_keys(matrix) if spec.kind == "magnitude" else random_keys(name, matrix, spec.seed)
    zero_smallest(matrix, keys, smallest([keys], removed_count(matrix.numel(), spec.value)))


class OffloadedWeights:
    """Weights that `device_map` keeps on disk or host: masked each time their module loads them, so nothing to restore."""

    def __init__(self, model: nn.Module, table: WeightTable) -> None:
        owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
        self._names = {
            name: (owners[id(p)], name.rpartition(".")[2], name in table.stacks)
            for name, p in table.masked.items()
            if p.is_meta
        }
        self._before: list[tuple[nn.Module, Any]] = []

    def mask(self, spec: SubnetSpec) -> None:
        """Append to each module's loading hook.

        Raises:
            InputError: one threshold over all weights cannot be counted while some of them are not in memory.
        """
        self.unmask()
        if self._names and spec.kind == "magnitude" and spec.scope == "global":
            raise InputError(
                "magnitude-global needs all weights in memory, but --device-map auto has put some on disk. Use layerwise "
                "magnitude subnets (--subnets dlc)."
            )
        if not self._names:
            return
        from accelerate.hooks import SequentialHook

        for name, (module, attribute, stacked) in self._names.items():
            loader = module._hf_hook
            self._before.append((module, loader))
            module._hf_hook = SequentialHook(loader, _mask_after_loading(name, attribute, stacked, spec))

    def unmask(self) -> None:
        for module, loader in reversed(self._before):
            module._hf_hook = loader
        self._before = []


def _mask_after_loading(name: str, attribute: str, stacked: bool, spec: SubnetSpec) -> Any:
    from accelerate.hooks import ModelHook

    class MaskAfterLoading(ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            # A copy: what was loaded may be a view of the file or of the host's own weights.
            weight = getattr(module, attribute).data.clone()
            for expert, matrix in enumerate(weight) if stacked else [(None, weight)]:
                mask_matrix(name if expert is None else f"{name}[{expert}]", matrix, spec)
            setattr(module, attribute, nn.Parameter(weight, requires_grad=False))
            return args, kwargs

    return MaskAfterLoading()


def _nested(current: SubnetSpec, wanted: SubnetSpec) -> bool:
    family = (current.kind, current.seed, current.scope) == (wanted.kind, wanted.seed, wanted.scope)
    return family and wanted.value <= current.value


def random_keys(name: str, like: Tensor, seed: int) -> Tensor:
    """int32 keys that depend on the weight's name, its size and the seed only: the same on every rank and device."""
    return torch.randint(0, 2**31 - 1, like.shape, generator=seeded(seed, name), dtype=torch.int32).to(like.device)


def seeded(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one named tensor."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
