"""Train on the kept pictures and measure the accuracy on a test folder.

    python recipes/image_finetune.py --train RUN/pruned.jsonl --test TEST_TREE                      linear probe, seconds
    python recipes/image_finetune.py --train RUN/pruned.jsonl --test TEST_TREE --mode full --epochs 5
    python recipes/image_finetune.py --train RUN/pruned.jsonl --test TEST_TREE --mode full --epochs 30 \
        --model image_finetune:small_resnet --scratch --rate 2e-3

The probe is closed-form ridge regression on the backbone's pooled features. ``full`` trains backbone and classifier with
AdamW under random flips; batch normalisation keeps its statistics, unless the network is trained from --scratch. Written to be copied
and changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from instruct_prune.train import (
    Classifier,
    accuracy_of,
    features_of,
    fine_tune,
    load_backbone,
    load_pictures,
    principal_components,
    probe_accuracy,
    run_script,
)

Transform = Callable[[Any], torch.Tensor]


def small_resnet() -> tuple[torch.nn.Module, Transform]:
    """A ResNet of 0.3 million random weights for pictures of 32 pixels, from transformers, with its transform."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1]}
    network = ResNetModel(ResNetConfig(layer_type="basic", **sizes))
    network.embedder.pooler = torch.nn.Identity()  # made for 224 pixels, it would leave 8 x 8 of 32
    return network, to_32_pixels


def to_32_pixels(image: Any) -> torch.Tensor:
    pixels = np.asarray(image.resize((32, 32)), dtype=np.float32)
    return torch.from_numpy((pixels - 127) / 64).permute(2, 0, 1)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--train", required=True, help="RUN/pruned.jsonl, a tree, a listing or a dataset")
    flags.add_argument("--test", required=True, help="a tree, a listing or a dataset with the same classes")
    flags.add_argument("--test-split", help="of a tree or dataset with splits")
    flags.add_argument("--model", default="efficientnet-lite0")
    flags.add_argument("--image-size", type=int, help="of the embedded backbone; fitted to the pictures when not given")
    flags.add_argument("--mode", choices=("probe", "full"), default="probe")
    flags.add_argument("--epochs", type=int, default=5)
    flags.add_argument(
        "--rate", type=float, default=1e-4, help="learning rate of the backbone; the classifier's is ten times it"
    )
    flags.add_argument("--scratch", action="store_true", help="the network's weights were not trained before")
    flags.add_argument("--seed", type=int, default=0)
    return flags


def accuracy(given: argparse.Namespace) -> float:
    """Train as asked; the share of the test pictures that are named rightly."""
    train = load_pictures(given.train)
    test = load_pictures(given.test, given.test_split, names=train.names)
    backbone, _ = load_backbone(given.model, train.short_side, given.image_size)
    began = time.monotonic()
    if given.mode == "probe":
        features, test_features = features_of(backbone, train.items), features_of(backbone, test.items)
        mean, components = principal_components(features, 512)
        x, test_x = (features - mean) @ components, (test_features - mean) @ components
        found = probe_accuracy(x, train.labels, test_x, test.labels, len(train.names))
    else:
        model = Classifier(backbone, len(train.names))
        fine_tune(model, train.items, given.epochs, given.rate, seed=given.seed, scratch=given.scratch)
        found = accuracy_of(model, test)
    took = time.monotonic() - began
    print(
        f"{given.mode}: {len(train)} training pictures, {len(test)} test pictures, accuracy {found:.2%} ({took:.1f} s)"
    )
    return found


def main(words: Sequence[str] | None = None) -> int:
    given = parser().parse_args(words)
    return run_script("image_finetune", lambda: accuracy(given))


if __name__ == "__main__":
    sys.exit(main())
