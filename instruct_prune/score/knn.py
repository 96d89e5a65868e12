"""k-NN learning complexity of the paper's first version (arXiv 2402.05356v1): confidence of neighbours, layer by layer.

p(y | z_l) = sum over the k nearest others of [y' = y] / distance, divided by the sum of 1 / distance; the score is
1 - mean over layers. Kept as -log p in one column a layer, it is the aggregate "lc" of those columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
    """The k with the best leave-one-out accuracy of weighted voting, on at most QUERIES pictures; the smallest of equals.

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


def knn_losses(layers: Sequence[Tensor], labels: Tensor, rows: Tensor) -> tuple[Tensor, list[int]]:
    """-log p(y | z_l) of each row and layer.

    Args:
        layers: float32 [n, d_l] each.
        labels: int64 [n].
        rows: int64 [q], positions whose losses are wanted.

    Returns:
        float32 [q, l], and the k of each layer.
    """
    columns, chosen = [], []
    for features in layers:
        k = choose_k(features, labels)
        distances, positions = neighbours(features[rows], rows, features, k)
        p = confidence(distances, labels[positions] == labels[rows, None])
        columns.append(-p.clamp_min(LEAST).log())
        chosen.append(k)
    return torch.stack(columns, dim=1), chosen
