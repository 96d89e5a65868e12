"""Training on pictures: a linear probe on a backbone's features, and fine-tuning of the whole backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from instruct_prune.arrays import Float32, Int64
from instruct_prune.encode.item import LabelledImage
from instruct_prune.errors import InputError
from instruct_prune.models.image_features import ImageModel, pooled
from instruct_prune.models.image_names import from_factory, load_image_model, size_for
from instruct_prune.models.names import find_model
from instruct_prune.registry import is_reference
from instruct_prune.rows import open_data
from instruct_prune.rows.pixels import decode
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import ImageRef, Reject, Row
from instruct_prune.storage import array_file
from instruct_prune.train.processes import say

RIDGE = (1e-3, 1e-2, 1e-1, 1.0)
DECODED = 64
"""Pictures that are decoded together."""

Watch = Callable[[int, Int64, torch.Tensor, torch.Tensor], None]
"""Called at each step of a training, before the weights move: the epoch (from 0), which pictures [b], their pooled features
float32 [b, d] and logits float32 [b, k], both detached."""


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures.

    Attributes:
        items: n pictures, each decoded when it is asked for.
        names: class names; an item's label is a position among them.
        paths: str [n].
        short_side: median of their shorter sides in pixels.
    """

    items: tuple[LabelledImage, ...]
    names: tuple[str, ...]
    paths: tuple[str, ...]
    short_side: float

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labels(self) -> Int64:
        """int64 [n]: the class of each."""
        return np.asarray([item.label for item in self.items], dtype=np.int64)


def load_pictures(
    data: str, split: str | None = None, names: Sequence[str] | None = None, per_class: int | None = None
) -> Pictures:
    """The pictures of a tree of class folders, a listing or a dataset; those that cannot be decoded are told and left out.

    Args:
        data: where they are.
        split: of a tree or dataset with splits.
        names: the classes, in the order of their labels; those found, sorted, when None.
        per_class: at most so many of each class, the first.

    Raises:
        InputError: no images there, or a class that is not among ``names``.
    """
    source = open_data([data], split=split)
    if source.strata is None or source.model_kind != "image_encoder":
        raise InputError(f"{data} holds no images with labels: name a tree of class folders, a listing, or a dataset.")
    counts: dict[str, int] = {}
    found: list[tuple[ImageRef, str, int]] = []
    for picture, label, short in _decodable(source):
        counts[label] = counts.get(label, 0) + 1
        if per_class is None or counts[label] <= per_class:
            found.append((picture, label, short))
    if not found:
        raise InputError(f"{data}: none of its pictures can be used.")
    missing = sorted(set(counts) - set(names if names is not None else counts))
    if missing:
        raise InputError(f"{data} has classes that are not in the training pictures: {', '.join(missing)}.")
    classes = tuple(names) if names is not None else tuple(sorted(counts))
    number = {name: i for i, name in enumerate(classes)}
    items = tuple(LabelledImage(number[label], lambda p=p: decode(p.read())) for p, label, _ in found)  # type: ignore[misc]
    short_side = float(np.median([short for _, _, short in found]))
    return Pictures(items, classes, tuple(p.path for p, _, _ in found), short_side)


def _decodable(rows: Iterable[Row | Reject]) -> Iterator[tuple[ImageRef, str, int]]:
    """Pictures that can be decoded, with their class and their shorter side."""
    for row in rows:
        if isinstance(row, Reject):
            say(f"left out: {row.source}, line {row.line}: {row.reason}")
            continue
        picture = row.messages[0].images[0]
        try:
            yield picture, row.messages[-1].text, min(decode(picture.read()).size)
        except RowError as error:
            say(f"left out: {picture.path}: {error.reason}")
        except OSError as error:
            say(f"left out: {picture.path}: {error.strerror}")


def load_backbone(name: str, short_side: float, image_size: int | None = None) -> tuple[ImageModel, int | None]:
    """An image model on this process's device, and the size in pixels that it sees (None: its own transform's).

    Args:
        name: Hub id, folder, module:factory or embedded default.
        short_side: typical shorter side of the pictures, which the embedded default's size is fitted to.
        image_size: that size, when it shall be another.

    Raises:
        InputError: there is no such model, it cannot be loaded, or it cannot see that size.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if is_reference(name):
        made = from_factory(name)
        made.model.to(device)
        return made, None
    source = find_model(name)
    size = size_for(source, short_side, image_size)
    return load_image_model(source, "float32", device, size), size


def decoded_once(backbone: ImageModel, pictures: Pictures, path: Path) -> Pictures:
    """The same pictures, whose pixels are read from a memory-mapped file from now on: trainings share it and decode nothing.

    Args:
        backbone: whose transform makes the pixels.
        pictures: n of them.
        path: a .npy file, float32 [n, 3, h, w]; one that is there is used where it holds the same pixels, else made anew.
    """
    if not (path.exists() and _same_pixels(backbone, pictures, np.load(path, mmap_mode="r", allow_pickle=False))):
        shape = backbone.pixels(pictures.items[:1]).shape[1:]
        with array_file(path, np.float32, (len(pictures), *shape)) as whole:
            for start in range(0, len(pictures), DECODED):
                piece = pictures.items[start : start + DECODED]
                whole[start : start + len(piece)] = backbone.pixels(piece).float().cpu().numpy()
    pixels = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    return replace(pictures, items=tuple(replace(item, pixels=pixels[i]) for i, item in enumerate(pictures.items)))


def _same_pixels(backbone: ImageModel, pictures: Pictures, pixels: Float32) -> bool:
    """Whether the pixels are those of the pictures, as far as eight of them, evenly spread, can say."""
    some = np.linspace(0, len(pictures) - 1, min(8, len(pictures))).round().astype(int).tolist()
    made = backbone.pixels([pictures.items[i] for i in some]).float().cpu().numpy()
    return pixels.shape == (len(pictures), *made.shape[1:]) and bool(np.array_equal(pixels[some], made))


def features_of(backbone: ImageModel, pictures: Sequence[LabelledImage], batch: int = DECODED) -> Float32:
    """float32 [n, d]: pooled features, L2-normalised."""
    pieces = [pictures[i : i + batch] for i in range(0, len(pictures), batch)]
    found = np.concatenate([backbone.features(backbone.pixels(piece)).cpu().numpy() for piece in pieces])
    unit: Float32 = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return unit


# ---- linear probe ----


def principal_components(features: Float32, dims: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [d] and the first components [d, dims] of the features, scaled so that a typical one has size one."""
    mean = features.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov(features - mean, rowvar=False))
    return mean, vectors[:, ::-1][:, : min(dims, features.shape[1])] / np.sqrt(max(values[-1], 1e-12))


def _fit_probe(x: NDArray[np.float64], y: Int64, n_classes: int, seed: int = 0) -> NDArray[np.float64]:
    """Ridge regression onto class indicators: weights [d + 1, k]; the penalty is chosen on a fifth that is held out."""
    ones = np.column_stack([x, np.ones(len(x))])
    targets = np.eye(n_classes)[y]
    order = np.random.default_rng(seed).permutation(len(x))
    held, rest = order[: len(x) // 5], order[len(x) // 5 :]

    def solve(rows: Int64, penalty: float) -> NDArray[np.float64]:
        gram = ones[rows].T @ ones[rows]
        gram[np.diag_indices_from(gram)] += penalty * len(rows) * 1e-1
        return np.linalg.solve(gram, ones[rows].T @ targets[rows])

    best = max(RIDGE, key=lambda p: float(((ones[held] @ solve(rest, p)).argmax(axis=1) == y[held]).mean()))
    return solve(order, best)


def probe_accuracy(
    x: NDArray[np.float64], y: Int64, test_x: NDArray[np.float64], test_y: Int64, n_classes: int
) -> float:
    """Test accuracy of a ridge regression that was fitted on x [n, d] and y [n], in closed form."""
    weights = _fit_probe(x, y, n_classes)
    scores = np.column_stack([test_x, np.ones(len(test_x))]) @ weights
    return float((scores.argmax(axis=1) == test_y).mean())


# ---- fine-tuning ----


class Classifier(nn.Module):
    """A backbone with a linear layer on its pooled features."""

    def __init__(self, backbone: ImageModel, n_classes: int) -> None:
        super().__init__()
        self.image_model = backbone
        self.backbone: Any = backbone.model.requires_grad_(True)
        self.head = nn.Linear(backbone.width, n_classes, device=backbone.device)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 [b, d], through which gradients flow."""
        return pooled(self.image_model.output(pixels))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixels))  # type: ignore[no-any-return]


def fine_tune(
    model: Classifier,
    pictures: Sequence[LabelledImage],
    epochs: int,
    rate: float = 1e-4,
    batch: int = 32,
    seed: int = 0,
    *,
    scratch: bool = False,
    watch: Watch = lambda epoch, rows, features, logits: None,
    tell: Callable[[str], None] = say,
) -> Float32:
    """Train backbone and classifier with AdamW under random flips, the learning rate falling to zero along a cosine.

    Args:
        model: is changed.
        pictures: n of them.
        epochs: passes over them.
        rate: learning rate of the backbone; the classifier's is ten times it.
        batch: pictures of a step.
        seed: of the classifier, the order and the flips.
        scratch: the backbone was not trained before. Its batch normalisation then learns its statistics, and the
            classifier has the backbone's rate. Otherwise they stay: small subsets have none of their own worth having.
        watch: sees features and logits of every step.
        tell: told the loss after every epoch.

    Returns:
        float32 [epochs, n]: each picture's loss as it was met in each epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    nn.init.normal_(model.head.weight, std=0.01)
    nn.init.zeros_(model.head.bias)
    model.train(scratch)
    groups: list[tuple[nn.Module, float]] = [(model.backbone, rate), (model.head, rate if scratch else 10 * rate)]
    optimizer = torch.optim.AdamW([{"params": part.parameters(), "lr": lr} for part, lr in groups])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(pictures) // batch))
    seen = np.zeros((epochs, len(pictures)), dtype=np.float32)
    for epoch in range(epochs):
        order = torch.randperm(len(pictures), generator=generator).numpy()
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            pixels = model.image_model.pixels([pictures[i] for i in rows])
            flips = torch.rand(len(rows), generator=generator) < 0.5
            pixels[flips] = pixels[flips].flip(-1)
            labels = torch.as_tensor([pictures[i].label for i in rows], device=pixels.device)
            features = model.features(pixels)
            logits = model.head(features).float()
            losses = F.cross_entropy(logits, labels, reduction="none")
            watch(epoch, rows, features.detach(), logits.detach())
            losses.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            seen[epoch, rows] = losses.detach().cpu().numpy()
        tell(f"epoch {epoch + 1} of {epochs}: training loss {seen[epoch].mean():.3f}")
    model.eval()
    return seen


@torch.inference_mode()
def accuracy_of(model: Classifier, pictures: Pictures, batch: int = 8) -> float:
    """Share of the pictures whose class the model names."""
    right = 0
    for start in range(0, len(pictures), batch):
        piece = pictures.items[start : start + batch]
        found = model(model.image_model.pixels(piece)).argmax(dim=1).cpu().numpy()
        right += int((found == pictures.labels[start : start + batch]).sum())
    return right / len(pictures)
