"""Train on the kept pictures and measure the accuracy on a test folder.

    python recipes/image_finetune.py --train RUN/pruned.jsonl --test TEST_TREE                      linear probe, seconds
    python recipes/image_finetune.py --train RUN/pruned.jsonl --test TEST_TREE --mode full --epochs 5

The probe is closed-form ridge regression on the backbone's pooled features. ``full`` trains backbone and classifier with
AdamW under random flips; batch normalisation keeps its statistics. Written to be copied and changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from instruct_prune.arrays import Float32, Int64
from instruct_prune.encode.item import LabelledImage
from instruct_prune.errors import InputError
from instruct_prune.models.image_encoder import ImageModel, pooled, unit_rows
from instruct_prune.models.image_names import find_image_model, load_image_model, size_for
from instruct_prune.rows import open_data
from instruct_prune.rows.pixels import decode
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import ImageRef, Row

RIDGE = (1e-3, 1e-2, 1e-1, 1.0)


def pictures_of(data: str, split: str | None = None) -> tuple[list[LabelledImage], list[str]]:
    """The pictures of a tree, listing or dataset that can be decoded, and their class names in sorted order."""
    source = open_data([data], format="image-classification", split=split)
    usable: list[tuple[ImageRef, str]] = []
    for row in source:
        if isinstance(row, Row):
            (picture,), label = row.messages[0].images, row.messages[1].text
            try:
                decode(picture.read())
            except (RowError, OSError) as error:
                print(f"left out: {picture.path}: {error}", file=sys.stderr)
                continue
            usable.append((picture, label))
    names = sorted({label for _, label in usable})
    number = {name: i for i, name in enumerate(names)}
    return [LabelledImage(number[label], lambda at=at: decode(at.read())) for at, label in usable], names  # type: ignore[misc]


def labels_of(pictures: Sequence[LabelledImage]) -> Int64:
    return np.asarray([picture.label for picture in pictures], dtype=np.int64)


def features_of(image_model: ImageModel, pictures: Sequence[LabelledImage], batch: int = 64) -> Float32:
    """float32 [n, d]: pooled features, L2-normalised."""
    found = [
        image_model.features(image_model.pixels(pictures[i : i + batch])).cpu().numpy()
        for i in range(0, len(pictures), batch)
    ]
    return unit_rows(np.concatenate(found))


def principal(features: Float32, dims: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [d] and the first components [d, dims] of the features, scaled so that a typical one has size one."""
    mean = features.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov(features - mean, rowvar=False))
    return mean, vectors[:, ::-1][:, : min(dims, features.shape[1])] / np.sqrt(max(values[-1], 1e-12))


def fit_probe(x: NDArray[np.float64], y: Int64, n_classes: int, seed: int = 0) -> NDArray[np.float64]:
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
    """Test accuracy of a probe that was fitted on x, y."""
    weights = fit_probe(x, y, n_classes)
    scores = np.column_stack([test_x, np.ones(len(test_x))]) @ weights
    return float((scores.argmax(axis=1) == test_y).mean())


class Classifier(nn.Module):
    """A backbone with a linear layer on its pooled features."""

    def __init__(self, image_model: ImageModel, n_classes: int) -> None:
        super().__init__()
        self.image_model = image_model
        self.backbone: Any = image_model.model.requires_grad_(True)
        self.head = nn.Linear(image_model.width, n_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(pooled(self.image_model.output(pixels)))  # type: ignore[no-any-return]


def train_full(
    model: Classifier,
    pictures: Sequence[LabelledImage],
    epochs: int,
    rate: float = 1e-4,
    batch: int = 32,
    seed: int = 0,
) -> Float32:
    """Fine-tune everything.

    Returns:
        float32 [epochs, n]: each picture's loss as it was met in each epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    nn.init.normal_(model.head.weight, std=0.01)
    model.eval()  # batch normalisation keeps ImageNet's statistics: small subsets have none of their own worth having
    optimizer = torch.optim.AdamW(
        [{"params": model.backbone.parameters(), "lr": rate}, {"params": model.head.parameters(), "lr": 10 * rate}]
    )
    steps = epochs * -(-len(pictures) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen = np.zeros((epochs, len(pictures)), dtype=np.float32)
    for epoch in range(epochs):
        order = torch.randperm(len(pictures), generator=generator).numpy()
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            pixels = model.image_model.pixels([pictures[i] for i in rows])
            flips = torch.rand(len(rows), generator=generator) < 0.5
            pixels[flips] = pixels[flips].flip(-1)
            labels = torch.as_tensor([pictures[i].label for i in rows], device=pixels.device)
            losses = F.cross_entropy(model(pixels).float(), labels, reduction="none")
            losses.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            seen[epoch, rows] = losses.detach().cpu().numpy()
        print(f"epoch {epoch + 1} of {epochs}: training loss {seen[epoch].mean():.3f}", file=sys.stderr, flush=True)
    return seen


@torch.inference_mode()
def full_accuracy(model: Classifier, pictures: Sequence[LabelledImage], batch: int = 8) -> float:
    right = 0
    for start in range(0, len(pictures), batch):
        piece = pictures[start : start + batch]
        right += int((model(model.image_model.pixels(piece)).argmax(dim=1).cpu().numpy() == labels_of(piece)).sum())
    return right / len(pictures)


def main(words: Sequence[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="RUN/pruned.jsonl, a tree, a listing or a dataset")
    parser.add_argument("--test", required=True, help="a tree, a listing or a dataset with the same classes")
    parser.add_argument("--test-split", help="of a tree or dataset with splits")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument(
        "--image-size", type=int, help="of the embedded backbone; fitted to the pictures when not given"
    )
    parser.add_argument("--mode", choices=("probe", "full"), default="probe")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    (train, names), (test, test_names) = pictures_of(given.train), pictures_of(given.test, given.test_split)
    if not set(test_names) <= set(names):
        raise InputError(
            f"{given.test} has classes that {given.train} lacks: {', '.join(sorted(set(test_names) - set(names)))}."
        )
    test = [LabelledImage(names.index(test_names[picture.label]), picture.open) for picture in test]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = find_image_model(given.model)
    short = float(np.median([min(picture.open().size) for picture in train]))
    image_model = load_image_model(source, "float32", device, size_for(source, short, given.image_size))
    began = time.monotonic()
    if given.mode == "probe":
        features, test_features = features_of(image_model, train), features_of(image_model, test)
        mean, components = principal(features, 512)
        x, test_x = (features - mean) @ components, (test_features - mean) @ components
        accuracy = probe_accuracy(x, labels_of(train), test_x, labels_of(test), len(names))
    else:
        model = Classifier(image_model, len(names)).to(device)
        train_full(model, train, given.epochs, given.rate, seed=given.seed)
        accuracy = full_accuracy(model, test)
    print(
        f"{given.mode}: {len(train)} training pictures, {len(test)} test pictures, accuracy {accuracy:.2%} ({time.monotonic() - began:.1f} s)"
    )
    return accuracy


if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        sys.exit(f"image_finetune.py: {problem}")
