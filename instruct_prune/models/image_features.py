"""A module and its transform: pictures in, pooled features out, after every stage.

Batch normalisation keeps its statistics: the model stays in evaluation mode.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from instruct_prune.encode.item import LabelledImage
from instruct_prune.errors import InputError
from instruct_prune.models.image_folding import fold

PIECE = 16
"""Pictures in one forward pass on a CPU, so that bits do not depend on the number of cores. With fewer of them, and one thread, torch
takes a way through convolutions of one pixel that is half as fast; more of them leave the cache.

Each core runs passes of its own: the small operations of a convolutional network leave two cores on one pass waiting for
each other 150 times, and on a busy machine they then do a twentieth of their work.
"""

ROUNDING = 1e-4
"""Largest difference, beside the largest feature, between a module and its folded graph."""

Transform = Callable[[Any], Tensor]
"""PIL image in mode RGB -> float32 [3, h, w], the same every time (no random crops: docs/method.md, section 1)."""

Output = Callable[[Tensor], Tensor]
"""Pixels -> what the model gives before pooling."""

Result = TypeVar("Result")


class ImageModel:
    """A model and its transform: pictures in, pooled features out.

    Args:
        model: a transformers image model, or any module. Of a module with ``extract_features`` or ``forward_features``
            that is what is pooled, else its output; a map [b, c, h, w] or tokens [b, t, c] are averaged, vectors stay.
        transform: PIL image -> float32 [3, h, w].

    Raises:
        InputError: model and transform do not fit together, or the output is nothing that can be pooled.
    """

    def __init__(self, model: Any, transform: Transform) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.transform = transform
        self._pool = ThreadPoolExecutor(
            max_workers=min(8, os.cpu_count() or 1)
        )  # Pillow decodes without holding the GIL
        # set_num_threads(1) holds for the worker threads alone; the calling thread keeps its own number.
        self._cores = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))
        from PIL import Image

        if not any(True for _ in self.model.parameters()):
            raise InputError(f"{type(model).__name__} has no weights, so it has no subnets.")
        try:
            trial = transform(Image.new("RGB", (64, 64), "gray"))[None]
            # Before transformers 5, SigLIP's vision part returns no hidden states: `stages` then reads them by hooks on its blocks.
            self._tells = _is_transformers(model) and len(self._in_pieces(self._hidden_states, trial)[0]) > 1
            self.widths = [z.shape[1] for z in self.stages(trial)]
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(
                f"{type(model).__name__} cannot be used as an image backbone with its transform: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error

    @property
    def width(self) -> int:
        """Features of a picture: d."""
        return self.widths[-1]

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def pixels(self, items: Sequence[LabelledImage]) -> Tensor:
        """float32 [b, 3, h, w] on the model's device, decoded by several threads unless they are kept."""
        kept = [item.pixels for item in items]
        if any(pixels is None for pixels in kept):
            kept = list(self._pool.map(lambda item: self.transform(item.open()), items))
        # Channels last: convolutions are about 1.6 times as fast so, on CPUs and on GPUs with tensor cores.
        batch = torch.stack(kept).contiguous(memory_format=torch.channels_last)
        return batch.to(self.device, self._dtype(), non_blocking=True)

    def _dtype(self) -> torch.dtype:
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    def features(self, pixels: Tensor, output: Output | None = None) -> Tensor:
        """float32 [b, d]: pooled output, of the model or of what `folded` gave."""
        run = output or self.output
        return torch.cat(self._in_pieces(lambda piece: pooled(run(piece)), pixels))

    def folded(self, pixels: Tensor) -> Output | None:
        """A faster way to the output, while the weights stay as they are; None where there is none.

        Args:
            pixels: float32 [b, 3, h, w], a few pictures that both ways must agree about.
        """
        if self.device.type != "cpu" or self._dtype() != torch.float32:
            return None
        graph = fold(self.model, module_output)
        if graph is None:
            return None
        expected, found = self.features(pixels), self.features(pixels, graph)
        same = torch.allclose(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
        return graph if same else None

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Pooled output of each stage, float32 [b, d_l] each; the last is the model's own."""
        if self._tells:
            return _joined(self._in_pieces(self._hidden_states, pixels))
        found: dict[int, list[Tensor]] = {}  # by thread, because several pieces run at a time
        hooks = [
            m.register_forward_hook(lambda _, __, out: found[get_ident()].append(pooled(out)))
            for m in stage_modules(self.model)
        ]

        def run(piece: Tensor) -> list[Tensor]:
            found[get_ident()] = []
            last = pooled(self.output(piece))
            return [*found[get_ident()], last]

        try:
            return _joined(self._in_pieces(run, pixels))
        finally:
            for hook in hooks:
                hook.remove()

    def _hidden_states(self, pixels: Tensor) -> list[Tensor]:
        output = self.model(pixel_values=pixels, output_hidden_states=True)
        states: Any = getattr(output, "hidden_states", None) or getattr(output, "feature_maps", ())
        return [*(pooled(state) for state in states[1:-1]), pooled(_last(output))]

    def _in_pieces(self, run: Callable[[Tensor], Result], pixels: Tensor) -> list[Result]:
        """Results in order; on a CPU of PIECE pictures each, on a GPU of all."""
        pixels = pixels.to(self.device, self._dtype())

        def inferred(piece: Tensor) -> Result:
            with torch.inference_mode():  # inference mode is set for each thread separately
                return run(piece)

        if pixels.device.type != "cpu":
            return [inferred(pixels)]
        return list(self._cores.map(inferred, torch.split(pixels, PIECE)))

    def output(self, pixels: Tensor) -> Tensor:
        """What the model gives before pooling; gradients flow where the model allows them."""
        return module_output(self.model, pixels)


def module_output(model: Any, pixels: Tensor) -> Tensor:
    """What a model gives before pooling."""
    if _is_transformers(model):
        return _last(model(pixel_values=pixels))
    for name in ("extract_features", "forward_features"):
        if hasattr(model, name):
            return getattr(model, name)(pixels)  # type: ignore[no-any-return]
    return model(pixels)  # type: ignore[no-any-return]


def _joined(pieces: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The columns of all pieces, one below the other."""
    return [torch.cat(column) for column in zip(*pieces, strict=True)]


def _is_transformers(model: nn.Module) -> bool:
    return hasattr(model, "config") and hasattr(model, "main_input_name")


def _last(output: Any) -> Tensor:
    """The last map or states of a transformers output."""
    state = getattr(output, "last_hidden_state", None)
    if state is None:
        maps = getattr(output, "feature_maps", None)
        state = maps[-1] if maps else getattr(output, "image_embeds", None)
    if state is None:
        raise ValueError(f"its output has none of last_hidden_state, feature_maps, image_embeds: {list(output)}")
    return state  # type: ignore[no-any-return]


def pooled(states: Tensor) -> Tensor:
    """float32 [b, c]: mean over positions of [b, c, h, w] or [b, t, c]; [b, c] as it is."""
    if not isinstance(states, Tensor) or states.ndim not in (2, 3, 4):
        shape = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise ValueError(f"expected features [b, c], [b, t, c] or [b, c, h, w], the model gives {shape}")
    if states.ndim == 4:
        return states.float().mean(dim=(2, 3))
    return states.float().mean(dim=1) if states.ndim == 3 else states.float()


def stage_modules(model: nn.Module) -> list[nn.Module]:
    """The stages of a plain module: the members of its longest ModuleList, else its Sequential children."""
    lists: list[Any] = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if lists:
        return list(max(lists, key=lambda stack: len(list(stack))))
    return [child for child in model.children() if isinstance(child, nn.Sequential)]
