"""Image encoders: the loss of a labelled picture is an inverse-distance softmax over class centroids (docs/method.md, section 1).

z_s(x) is the globally pooled feature of subnet s and c_k the mean of z_dense over class k, so that
p_s(k | x) = softmax_k(1 / ||z_s(x) - c_k||) and the loss is -log p_s(y | x) (arXiv 2402.05356, section 4.1).

The dense features are measured first; centroids, dense losses and embeddings are read from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_prune.arrays import Float32, Int64
from instruct_prune.config import EncodeConfig, Preset, ScoreConfig
from instruct_prune.encode.batching import Plan
from instruct_prune.encode.item import LabelledImage
from instruct_prune.encode.pictures import PictureStore, write_pictures
from instruct_prune.errors import InputError
from instruct_prune.models import names
from instruct_prune.models.image_features import ImageModel, Output, Transform
from instruct_prune.models.image_folding import is_watched
from instruct_prune.models.image_names import DEFAULT, from_factory, load_image_model, size_for
from instruct_prune.models.model import Advance, Blocks, Items, Model, States
from instruct_prune.registry import is_reference
from instruct_prune.rows.row import Row

NEAREST = 1e-6  # a picture that is its class's only one lies on its centroid: 1 / 0 would be infinite


@dataclass(frozen=True)
class ImageBatch:
    """Pixels float32 [b, 3, h, w] and labels int64 [b]."""

    pixels: Tensor
    labels: Tensor


class ImageEncoder(Model):
    """An image model of transformers, the embedded default, or any module with its transform.

    Args:
        config: its name and how it is run.
        encode: options of texts, none of which an image model has.
        data_format: of the rows.
        loaded: a module and its transform made in Python, in place of what ``config.model`` names.

    Raises:
        InputError: no such model, or an option that pictures do not have.
    """

    default = DEFAULT
    unit = "images"
    batch = {"cpu": 64, "other": 256}  # noqa: RUF012  decoded together; on a CPU each core takes eight at a time
    compares = True
    embeds = True
    # One threshold over all weights, as released. Of EfficientNet-Lite0 on CIFAR-10 at 224 pixels, 0.9 still ranks
    # pictures as the dense model does (rho 0.99) and 0.6 hardly so any more (0.23).
    ladders = {  # noqa: RUF012
        "dlc": Preset(
            ("magnitude-global:1.0,0.8,0.7",), "dlc", "the paper's ladder for images: one threshold over all weights"
        ),
        "auto": Preset(
            ("magnitude-global:1.0,0.8,0.7",), "dlc", "dlc, without the passes that a pilot finds to say nothing new"
        ),
        "knn_lc": Preset(
            ("dense",), "knn_lc", "confidence of the nearest neighbours, stage by stage (first version)", ("every",)
        ),
    }

    def __init__(
        self,
        config: ScoreConfig,
        encode: EncodeConfig,
        data_format: str | None,
        loaded: tuple[torch.nn.Module, Transform] | None = None,
    ) -> None:
        given = [name for name, value in vars(encode).items() if value != getattr(EncodeConfig(), name)]
        if given:
            raise InputError(f"--{given[0].replace('_', '-')} is for texts; pictures have no such thing. Leave it out.")
        if config.device_map == "auto":
            raise InputError("--device-map auto is for language models; an image encoder fits on one device.")
        self.name = (config.model or self.default) if loaded is None else type(loaded[0]).__name__
        self._loaded = None if loaded is None else ImageModel(*loaded)
        if self._loaded is None and is_reference(self.name):
            self._loaded = from_factory(self.name)
        self.source = None if self._loaded is not None else names.find_model(self.name, config.model_revision)
        self._asked_size = config.image_size
        self.size: int | None = None
        self._centroids = torch.empty(0)
        self._depths: tuple[int, ...] = ()
        self._weights_moved = False
        self._folded: Output | None = None

    def write_items(self, folder: Path, rows: Iterable[Row], advance: Advance, strict: bool) -> None:
        write_pictures(folder, rows, advance, strict)

    def open_items(self, folder: Path) -> PictureStore:
        items = PictureStore.open(folder)
        if len(items.classes) < 2:
            only = f" ({items.classes[0]})" if items.classes else ""
            raise InputError(f"all pictures are of one class{only}; scoring needs two or more.")
        if self.source is not None:
            self.size = size_for(self.source, items.typical_short_side, self._asked_size)
        return items

    @property
    def identity(self) -> Mapping[str, Any]:
        if self.source is not None:
            return {**self.source.identity(), "image_size": self.size}
        assert self._loaded is not None
        return {"name": self.name, "content": names.weights_hash(self._loaded.model)}

    def load(self, dtype: str, device: torch.device, offload: Path | None = None) -> None:
        if self._loaded is not None:
            self.encoder = self._loaded
            self.encoder.model.to(device=device, dtype=getattr(torch, dtype))
        else:
            assert self.source is not None
            self.encoder = load_image_model(self.source, dtype, device, self.size)
        self.module = self.encoder.model

    def depths(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.encoder.widths) + 1))

    def width(self, depth: int | None) -> int:
        return self.encoder.widths[-1 if depth is None else depth - 1]

    def start_pass(self, plan: Plan, depths: Sequence[int], pooled: bool) -> None:
        super().start_pass(plan, depths, pooled)
        self._depths = tuple(depths)
        self._weights_moved, self._folded = True, None

    def collate(self, items: Sequence[LabelledImage], prefix: int) -> ImageBatch:
        labels = torch.as_tensor([item.label for item in items], device=self.encoder.device)
        return ImageBatch(self.encoder.pixels(items), labels)

    def forward(self, batch: ImageBatch) -> States:
        if not self._depths:
            if self._weights_moved:
                self._weights_moved, self._folded = False, self.encoder.folded(batch.pixels[:2])
            passed_over = self._folded is not None and is_watched(self.module)  # by what reads the model's insides
            return {None: self.encoder.features(batch.pixels, None if passed_over else self._folded)}
        stages = self.encoder.stages(batch.pixels)
        return {None: stages[-1], **{depth: stages[depth - 1] for depth in self._depths}}

    def losses(self, batch: ImageBatch, states: States, depth: int | None) -> Tensor:
        if depth is not None:
            raise InputError("a loss at a depth is for language models: class centroids are those of the whole model.")
        return centroid_losses(states[None], self._centroids, batch.labels)

    def fit(self, blocks: Blocks, items: Items) -> None:
        """Class centroids float32 [k, d]: means of the dense features, summed part by part in a fixed order, in float64."""
        assert isinstance(items, PictureStore)
        sums = np.zeros((len(items.classes), self.width(None)))
        counts = np.zeros(len(items.classes))
        for positions, values in blocks():
            ok = np.isfinite(values).all(axis=1)
            np.add.at(sums, items.labels[positions[ok]], values[ok].astype(np.float64))
            np.add.at(counts, items.labels[positions[ok]], 1)
        means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        self._centroids = torch.from_numpy(means).to(self.encoder.device)

    def losses_of(self, items: Items, positions: Int64, pooled: Float32) -> Float32:
        assert isinstance(items, PictureStore)
        labels = torch.from_numpy(items.labels[positions].astype(np.int64)).to(self._centroids.device)
        losses = centroid_losses(torch.tensor(pooled).to(self._centroids.device), self._centroids, labels)
        found: Float32 = losses.cpu().numpy()
        return found


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
