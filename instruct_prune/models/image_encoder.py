"""Loss of a labelled picture under a subnet: inverse-distance softmax over class centroids (METHOD section 1).

z_s(x) is the globally pooled feature of subnet s and c_k the mean of z_dense over class k, so that
p_s(k | x) = softmax_k(1 / ||z_s(x) - c_k||) and the loss is -log p_s(y | x) (arXiv 2402.05356, section 4.1).

The dense features are computed once, in parts as every other pass; centroids, dense losses and embeddings are read
from them. Batch normalisation keeps its statistics: the model stays in evaluation mode.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_prune.arrays import Float32, Int32, Int64
from instruct_prune.encode.batching import Batch, Plan
from instruct_prune.encode.item import LabelledImage
from instruct_prune.errors import InputError
from instruct_prune.measure.engine import Advance, run_chunk
from instruct_prune.measure.passes import Pass
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models.backbone import Items
from instruct_prune.run.folder import PartStore

FEATURES = "features"
FEATURE_PASS = Pass((SubnetSpec(FEATURES),))
PIECE = 8
"""Pictures in one forward pass on a CPU: activations stay in cache, and bits do not depend on the number of cores.

Each core runs passes of its own: the small operations of a convolutional network leave two cores on one pass waiting for
each other 150 times, and on a busy machine they then do a twentieth of their work.
"""
NEAREST = 1e-6  # a picture that is its class's only one lies on its centroid: 1 / 0 would be infinite

Transform = Callable[[Any], Tensor]
"""PIL image in mode RGB -> float32 [3, h, w], the same every time (no random crops: METHOD section 1)."""


Result = TypeVar("Result")


class Labels(Protocol):
    """What centroids need of an index of pictures."""

    @property
    def labels(self) -> Int32: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """An item whose dense features are known: label, and float32 [d]."""

    label: int
    vector: Float32


@dataclass(frozen=True)
class ImageBatch:
    """Pixels float32 [b, 3, h, w], or features float32 [b, d] known already; labels int64 [b]."""

    pixels: Tensor | None
    features: Tensor | None
    labels: Tensor


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
        self._pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))  # decoding, beside the GIL
        # The setting is that of the worker's thread; the caller's stays.
        self._cores = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))
        from PIL import Image

        if not any(True for _ in self.model.parameters()):
            raise InputError(f"{type(model).__name__} has no weights, so it has no subnets.")
        try:
            self.widths = [z.shape[1] for z in self.stages(transform(Image.new("RGB", (64, 64), "gray"))[None])]
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
        """float32 [b, 3, h, w] on the model's device, decoded by several threads."""
        tensors = list(self._pool.map(lambda item: self.transform(item.open()), items))
        # Channels last: convolutions are about 1.6 times as fast so, on CPUs and on GPUs with tensor cores.
        batch = torch.stack(tensors).contiguous(memory_format=torch.channels_last)
        return batch.to(self.device, self._dtype(), non_blocking=True)

    def _dtype(self) -> torch.dtype:
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    def features(self, pixels: Tensor) -> Tensor:
        """float32 [b, d]: pooled output."""
        return torch.cat(self._in_pieces(lambda piece: pooled(self.output(piece)), pixels))

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Pooled output of each stage, float32 [b, d_l] each; the last is the model's own."""
        if _is_transformers(self.model):
            return _joined(self._in_pieces(self._hidden_states, pixels))
        found: dict[int, list[Tensor]] = {}  # of each thread: pieces run beside each other
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
            with torch.inference_mode():  # a thread's own setting
                return run(piece)

        if pixels.device.type != "cpu":
            return [inferred(pixels)]
        return list(self._cores.map(inferred, torch.split(pixels, PIECE)))

    def output(self, pixels: Tensor) -> Tensor:
        """What the model gives before pooling; gradients flow where the model allows them."""
        if _is_transformers(self.model):
            return _last(self.model(pixel_values=pixels))
        for name in ("extract_features", "forward_features"):
            if hasattr(self.model, name):
                return getattr(self.model, name)(pixels)  # type: ignore[no-any-return]
        return self.model(pixels)  # type: ignore[no-any-return]


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


class FeaturePass:
    """The dense model as a pass whose "losses" are its features; ``every_stage`` puts all stages side by side."""

    def __init__(self, image_model: ImageModel, every_stage: bool = False) -> None:
        self.image_model = image_model
        self.model: nn.Module = image_model.model
        self.every_stage = every_stage

    @property
    def width(self) -> int:
        return sum(self.image_model.widths) if self.every_stage else self.image_model.width

    def fit(self, items: Items) -> None:
        pass

    def start_pass(self, subnets: tuple[SubnetSpec, ...], plan: Plan) -> None:
        pass

    def collate(self, items: Sequence[LabelledImage], prefix: int) -> Tensor:
        return self.image_model.pixels(items)

    def losses(self, batch: Tensor) -> Tensor:
        if self.every_stage:
            return torch.cat(self.image_model.stages(batch), dim=1)
        return self.image_model.features(batch)

    def compute(
        self, backbone: Any, items: Items, batches: Sequence[Batch], subnets: Sequence[SubnetSpec], advance: Advance
    ) -> dict[str, Any]:
        """A chunk's columns: position, features (a list of ``width`` float32), error."""
        import pyarrow as pa

        positions, values, errors = run_chunk(self, items, batches, self.width, advance)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        return {"position": positions, FEATURES: lists, "error": errors}


@dataclass(frozen=True)
class FeatureParts:
    """The finished parts of a FeaturePass.

    Attributes:
        parts: where they are.
        plan: rows of each part.
        width: columns to take, from the end: the model's own pooled features.
    """

    parts: PartStore
    plan: Plan
    width: int

    def chunk(self, number: int) -> tuple[Int64, Float32, list[str | None]]:
        """positions int64 [m], features float32 [m, width], errors."""
        positions, values, errors = self.all_stages(number)
        return positions, values[:, -self.width :], errors

    def all_stages(self, number: int) -> tuple[Int64, Float32, list[str | None]]:
        """The same with every column that was computed."""
        table = self.parts.read(FEATURE_PASS.name, number)
        if table is None:
            raise FileNotFoundError(self.parts.path(FEATURE_PASS.name, number))
        positions = table.column("position").to_numpy()
        values = table.column(FEATURES).combine_chunks().flatten().to_numpy().reshape(len(positions), -1)
        return positions, values, table.column("error").to_pylist()

    def centroids(self, index: Labels) -> Tensor:
        """float32 [k, d]: mean feature of each class, summed part by part in a fixed order, in float64."""
        sums = np.zeros((len(index.classes), self.width))
        counts = np.zeros(len(index.classes))
        for number in range(len(self.plan.chunks)):
            positions, values, _ = self.chunk(number)
            ok = np.isfinite(values).all(axis=1)
            np.add.at(sums, index.labels[positions[ok]], values[ok].astype(np.float64))
            np.add.at(counts, index.labels[positions[ok]], 1)
        return torch.from_numpy((sums / np.maximum(counts, 1)[:, None]).astype(np.float32))

    def matrix(self, rows: Int64, all_stages: bool = False) -> Float32:
        """float32 [len(rows), d]: features of these positions."""
        found: Float32 | None = None
        at = {int(row): i for i, row in enumerate(rows)}
        for number in range(len(self.plan.chunks)):
            positions, values, _ = self.all_stages(number) if all_stages else self.chunk(number)
            if found is None:
                found = np.zeros((len(rows), values.shape[1]), dtype=np.float32)
            found[[at[int(p)] for p in positions]] = values
        assert found is not None
        return found


class KnownFeatures:
    """The rows of the dense pass: their features are known, so nothing is computed twice.

    Parts of the dense pass cover the same rows as those of the feature pass: one part is held at a time.
    """

    def __init__(self, features: FeatureParts, labels: Int32) -> None:
        self._features, self._labels = features, labels
        chunks = range(len(features.plan.chunks))
        self._chunk_of = {int(row): c for c in chunks for row in features.plan.rows_of(c)}
        self._held: tuple[int, dict[int, Float32]] = (-1, {})

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> LabelledFeatures:
        chunk = self._chunk_of[i]
        if self._held[0] != chunk:
            positions, values, _ = self._features.chunk(chunk)
            self._held = (chunk, dict(zip(positions.tolist(), values, strict=True)))
        return LabelledFeatures(int(self._labels[i]), self._held[1][i])


class ImageBackbone:
    """The image backbone of the scorer.

    Args:
        image_model: model and transform.
        centroids: gives float32 [k, d], called by `fit`, when the dense features of all pictures are there.
    """

    def __init__(self, image_model: ImageModel, centroids: Callable[[], Tensor]) -> None:
        self.image_model = image_model
        self.model: nn.Module = image_model.model
        self._make_centroids = centroids
        self._centroids: Tensor = torch.empty(0)

    def fit(self, items: Items) -> None:
        self._centroids = self._make_centroids().to(self.image_model.device)

    def start_pass(self, subnets: tuple[SubnetSpec, ...], plan: Plan) -> None:
        pass

    def collate(self, items: Sequence[Any], prefix: int) -> ImageBatch:
        device = self.image_model.device
        labels = torch.as_tensor([item.label for item in items], device=device)
        if isinstance(items[0], LabelledFeatures):
            return ImageBatch(None, torch.from_numpy(np.stack([item.vector for item in items])).to(device), labels)
        return ImageBatch(self.image_model.pixels(items), None, labels)

    @torch.inference_mode()
    def losses(self, batch: ImageBatch) -> Tensor:
        features = batch.features
        if features is None:
            assert batch.pixels is not None
            features = self.image_model.features(batch.pixels)
        return centroid_losses(features, self._centroids, batch.labels)[:, None]


def centroid_losses(features: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """float32 [b]: -log softmax_k(1 / ||z - c_k||) at the picture's own class.

    Args:
        features: float32 [b, d].
        centroids: float32 [k, d].
        labels: int64 [b].
    """
    # Not by matrix products: |z|^2 + |c|^2 - 2 z.c loses the digits that tell near centroids apart.
    distances = torch.cdist(features, centroids, compute_mode="donot_use_mm_for_euclid_dist")
    return F.cross_entropy(1 / distances.clamp_min(NEAREST), labels, reduction="none")


def unit_rows(vectors: Float32) -> Float32:
    """Rows L2-normalised; zero rows stay zero."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: Float32 = np.nan_to_num(vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit
