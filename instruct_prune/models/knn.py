"""k-NN learning complexity of the paper's first version (arXiv 2402.05356v1): confidence of neighbours, layer by layer.

p(y | z_l) = sum over the k nearest others of [y' = y] / distance, divided by the sum of 1 / distance; the score is
1 - mean over layers. Kept as -log p in one column a layer, it is the aggregate "lc" of those columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from instruct_prune.arrays import Int32, Int64
from instruct_prune.encode.batching import Plan
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models.backbone import Items
from instruct_prune.models.image_encoder import FeatureParts, ImageModel

CANDIDATES = (1, 3, 5, 10, 20, 50)
QUERIES = 2048  # pictures that k is chosen on
BLOCK = 1 << 24  # distances held at a time
LEAST = 1e-12  # confidence of none is 0; its logarithm must stay finite


def neighbours(queries: Tensor, own: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest others of each query, nearest first.

    Args:
        queries: float32 [q, d].
        own: int64 [q], each query's own position in the reference, which is no neighbour.
        reference: float32 [n, d].
        k: at most n - 1.

    Returns:
        distances float32 [q, k] and positions int64 [q, k]; memory is that of BLOCK distances, whatever n is.
    """
    step = max(1, BLOCK // max(1, len(reference)))
    distances, positions = [], []
    for start in range(0, len(queries), step):
        piece = slice(start, start + step)
        block = torch.cdist(queries[piece], reference)
        block.scatter_(1, own[piece, None], torch.inf)
        found = block.topk(k, dim=1, largest=False)
        distances.append(found.values)
        positions.append(found.indices)
    return torch.cat(distances), torch.cat(positions)


def confidence(distances: Tensor, same: Tensor) -> Tensor:
    """float32 [q]: share of 1 / distance that neighbours of the query's own class have.

    Args:
        distances: float32 [q, k].
        same: bool [q, k], whether the neighbour is of the query's class.
    """
    weights = 1 / distances.clamp_min(1e-6)
    return (weights * same).sum(dim=1) / weights.sum(dim=1)


def choose_k(features: Tensor, labels: Tensor, candidates: Sequence[int] = CANDIDATES, seed: int = 0) -> int:
    """The k with the best leave-one-out accuracy of weighted voting, asked of at most QUERIES pictures; the smallest of equals.

    Args:
        features: float32 [n, d].
        labels: int64 [n].
        candidates: values of k; those above n - 1 are left out.
        seed: of the pictures that are asked.
    """
    usable = [k for k in candidates if k < len(features)] or [max(1, len(features) - 1)]
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:QUERIES].to(features.device)
    distances, positions = neighbours(features[order], order, features, max(usable))
    n_classes = int(labels.max()) + 1
    votes = torch.zeros(len(order), n_classes, device=features.device)
    best, chosen = -1.0, usable[0]
    done = 0
    for k in sorted(usable):
        piece = slice(done, k)
        votes.scatter_add_(1, labels[positions[:, piece]], 1 / distances[:, piece].clamp_min(1e-6))
        done = k
        accuracy = float((votes.argmax(dim=1) == labels[order]).float().mean())
        if accuracy > best:
            best, chosen = accuracy, k
    return chosen


class KnnBackbone:
    """The scorer's view of k-NN confidence: no forward pass, the features of all stages are there already.

    Args:
        image_model: whose stages they are.
        features: finished parts of a FeaturePass over every stage.
        labels: int32 [n], class of each position.
        rows: int64 [m], ascending, the positions that have features.
    """

    def __init__(self, image_model: ImageModel, features: FeatureParts, labels: Int32, rows: Int64) -> None:
        self.image_model = image_model
        self.model: nn.Module = image_model.model
        self._features, self._labels, self._rows = features, labels, rows
        self.chosen: list[int] = []

    def fit(self, items: Items) -> None:
        matrix = self._features.matrix(self._rows, all_stages=True)
        device = self.image_model.device
        edges = np.cumsum(self.image_model.widths)[:-1].tolist()
        self._layers = [
            torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in np.split(matrix, edges, axis=1)
        ]
        self._classes = torch.from_numpy(self._labels[self._rows].astype(np.int64)).to(device)
        self.chosen = [choose_k(layer, self._classes) for layer in self._layers]

    def start_pass(self, subnets: tuple[SubnetSpec, ...], plan: Plan) -> None:
        pass

    def collate(self, items: Sequence[int], prefix: int) -> Tensor:
        return torch.from_numpy(np.searchsorted(self._rows, np.asarray(items))).to(self.image_model.device)

    @torch.inference_mode()
    def losses(self, batch: Tensor) -> Tensor:
        columns = [
            layer_losses(layer, self._classes, batch, k) for layer, k in zip(self._layers, self.chosen, strict=True)
        ]
        return torch.stack(columns, dim=1)


def layer_losses(features: Tensor, labels: Tensor, rows: Tensor, k: int) -> Tensor:
    """float32 [q]: -log p(y | z) of ``rows`` (int64 [q]) among features float32 [n, d] of classes labels int64 [n]."""
    distances, positions = neighbours(features[rows], rows, features, k)
    p = confidence(distances, labels[positions] == labels[rows, None])
    return -p.clamp_min(LEAST).log()
