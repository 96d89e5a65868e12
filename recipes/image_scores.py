"""Scores that need training, all from one short training run, as columns of a scored run.

    python recipes/image_scores.py --data TREE --epochs 10 --out RUN
    instruct-prune correlate RUN OTHER_RUN
    instruct-prune select --out RUN --keep 0.3 --stratify label --method hardest --score image_scores:el2n

The training notes what it sees of each picture whenever it meets it, and once more at its end: RUN/training.safetensors. Then RUN is scored by
`Recorded`, a kind of model that looks up what was noted: scores.parquet has a column for each score, embeddings.npy the features of the
trained network. Later commands find the scores when they are run in the folder of this file. Written to be copied and changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from instruct_prune import Columns, DataConfig, InputError, Model, Probe, Row, RowError, Run, ScoreConfig, States
from instruct_prune.train import (
    Classifier,
    Pictures,
    decoded_once,
    fine_tune,
    load_backbone,
    load_pictures,
    run_script,
    say,
)

HERE = Path(__file__).stem
RECORD = "training.safetensors"
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Record:
    """What one training noted of n pictures of k classes.

    Attributes:
        errors: float32 [epochs, n], the length of softmax(logits) - onehot(label), as the picture was met in each epoch.
        gradients: float32 [epochs, n], the length of the gradient of its loss with respect to the classifier's weights.
        margins: float32 [epochs, n], its class's logit less the largest other one.
        losses: float32 [epochs, n], in nats.
        logits: float32 [n, k], after the training, the picture as it is.
        features: float32 [n, d], likewise.
        labels: int64 [n].
    """

    errors: Vectors
    gradients: Vectors
    margins: Vectors
    losses: Vectors
    logits: Vectors
    features: Vectors
    labels: NDArray[np.int64]

    def columns(self) -> dict[str, Vectors]:
        """{name: float32 [n]}: what the scores below are made of."""
        own = (np.arange(len(self.labels)), self.labels)
        logits = self.logits.astype(np.float64)
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        p = np.exp(log_p)
        highest = np.sort(p, axis=1)
        right = self.margins > 0  # [epochs, n]
        wrong = p - np.eye(p.shape[1])[self.labels]
        inputs = np.column_stack([self.features, np.ones(len(p))]).astype(np.float64)
        found = {
            "loss": -log_p[own],
            "el2n": self.errors.mean(axis=0),
            "grand": self.gradients.mean(axis=0),
            "forgetting": np.where(right.any(axis=0), (right[:-1] & ~right[1:]).sum(axis=0), len(right)),
            "aum": self.margins.mean(axis=0),
            "mean_loss": self.losses.mean(axis=0),
            "entropy": -(p * log_p).sum(axis=1),
            "margin": highest[:, -1] - highest[:, -2],
            "confidence": highest[:, -1],
            "gain": ((wrong @ (wrong.T @ inputs / len(p))) * inputs).sum(axis=1),
        }
        return {name: np.asarray(values, dtype=np.float32) for name, values in found.items()}


class Notes:
    """Notes errors, gradients and margins at each step (see `instruct_prune.train.fine_tune`, ``watch``)."""

    def __init__(self, epochs: int, labels: NDArray[np.int64]) -> None:
        self.labels = torch.from_numpy(labels)
        self.met = np.zeros((3, epochs, len(labels)), dtype=np.float32)

    def __call__(self, epoch: int, rows: NDArray[np.int64], features: Tensor, logits: Tensor) -> None:
        labels = self.labels[rows].to(logits.device)
        own = nn.functional.one_hot(labels, logits.shape[1])
        errors = (logits.softmax(dim=1) - own).norm(dim=1)
        # The gradient is the outer product of the error and (features, 1), so its length is the product of theirs.
        gradients = errors * (features.float().square().sum(dim=1) + 1).sqrt()
        margins = logits.gather(1, labels[:, None])[:, 0] - logits.masked_fill(own.bool(), -torch.inf).amax(dim=1)
        self.met[:, epoch, rows] = torch.stack([errors, gradients, margins]).cpu().numpy()


@torch.inference_mode()
def seen_at_the_end(model: Classifier, pictures: Pictures) -> tuple[Vectors, Vectors]:
    """Logits float32 [n, k] and features float32 [n, d]."""
    found = []
    for start in range(0, len(pictures), 64):
        features = model.features(model.image_model.pixels(pictures.items[start : start + 64]))
        found.append((model.head(features).float().cpu().numpy(), features.float().cpu().numpy()))
    return np.concatenate([logits for logits, _ in found]), np.concatenate([features for _, features in found])


def train(pictures: Pictures, given: argparse.Namespace) -> Record:
    """Train on all pictures and note what the scores need."""
    backbone, _ = load_backbone(given.model, pictures.short_side, given.image_size)
    pixels = Path(given.out) / "pixels.npy"
    pictures = decoded_once(backbone, pictures, pixels)
    model = Classifier(backbone, len(pictures.names))
    notes = Notes(given.epochs, pictures.labels)
    how = {"rate": given.rate, "seed": given.seed, "scratch": given.scratch}
    losses = fine_tune(model, pictures.items, given.epochs, watch=notes, **how)
    logits, features = seen_at_the_end(model, pictures)
    pixels.unlink()
    errors, gradients, margins = notes.met
    return Record(errors, gradients, margins, losses, logits, features, pictures.labels)


def record(given: argparse.Namespace) -> None:
    """RUN/training.safetensors; a training that is there already is not repeated."""
    run = Run(given.out)
    path: Path = run.folder / RECORD
    options = {name: value for name, value in vars(given).items() if name != "out"}
    if path.exists():
        with safe_open(path, "np") as file:
            there = json.loads(file.metadata()["options"])
        if there != options:
            raise InputError(f"{path} is of another training ({there}). Use another --out, or the same options.")
        return say("training: done before, skipped")
    run.folder.create()
    began = time.process_time()
    pictures = load_pictures(given.data, given.split)
    if len(set(pictures.paths)) < len(pictures):
        raise InputError(f"{given.data} has several pictures of one name. List each picture once.")
    noted = train(pictures, given)
    seconds = time.process_time() - began
    told = {"options": json.dumps(options), "paths": json.dumps(pictures.paths), "cpu_seconds": f"{seconds:.1f}"}
    save_file({name: np.ascontiguousarray(v) for name, v in asdict(noted).items()}, path.with_suffix(".tmp"), told)
    os.replace(path.with_suffix(".tmp"), path)
    say(f"training: {len(pictures)} pictures, {given.epochs} epochs, {seconds:.0f} CPU seconds")


class Recorded(Model):  # type: ignore[misc]
    """A model whose forward pass looks up what a training noted. Its loss is that after the training."""

    unit = "images"
    embeds = True
    batch = {"cpu": 1024, "other": 1024}  # noqa: RUF012

    def write_items(self, folder: Path, rows: Iterable[Row], advance: Callable[[int], None], strict: bool) -> None:
        with safe_open(folder.parent / RECORD, "np") as file:
            self._places = {name: i for i, name in enumerate(json.loads(file.metadata()["paths"]))}
        super().write_items(folder, rows, advance, strict)

    def item(self, row: Row) -> int:
        name = row.messages[0].images[0].path
        if name not in self._places:
            raise RowError("the network was not trained on it: it cannot be decoded, or was not there then")
        return self._places[name]

    def content(self, row: Row, item: int) -> bytes:
        """As of image encoders, so that `compare` takes runs of both."""
        return bytes(row.messages[0].images[0].read() + b"\0" + row.messages[-1].text.encode())

    def open_items(self, folder: Path) -> Any:
        self._path = folder.parent / RECORD
        return super().open_items(folder)

    @property
    def identity(self) -> dict[str, str]:
        return {"name": self.name, "training": hashlib.sha256(self._path.read_bytes()).hexdigest()}

    def load(self, dtype: str, device: torch.device, offload: Path | None = None) -> None:
        noted = Record(**load_file(self._path))
        self.columns = {name: torch.from_numpy(values).to(device) for name, values in noted.columns().items()}
        self.module = nn.Embedding.from_pretrained(torch.from_numpy(noted.features)).to(device)  # type: ignore[no-untyped-call]

    def collate(self, items: Sequence[int], prefix: int) -> Tensor:
        return torch.tensor(items, device=self.module.weight.device)

    def forward(self, batch: Tensor) -> States:
        return {None: self.module(batch)}

    def losses(self, batch: Tensor, states: States, depth: int | None) -> Tensor:
        return self.columns["loss"][batch]

    def width(self, depth: int | None) -> int:
        return int(self.module.embedding_dim)


class Column(Probe):  # type: ignore[misc]
    """One of `Record.columns`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, model: Any, batch: Tensor, states: States) -> Tensor:
        return model.columns[self.name][batch][:, None]  # type: ignore[no-any-return]


NAMES = ("el2n", "grand", "forgetting", "aum", "mean_loss", "entropy", "margin", "confidence", "gain")
EL2N, GRAND, FORGETTING, AUM, MEAN_LOSS, ENTROPY, MARGIN, CONFIDENCE, GAIN = PROBES = tuple(map(Column, NAMES))


def el2n(columns: Columns) -> Vectors:
    """Length of softmax - label, averaged over the epochs as in the code of CCS. Source: Paul et al., NeurIPS 2021 (2107.07075), section 2."""
    return columns["el2n_dense"]  # type: ignore[no-any-return]


def grand(columns: Columns) -> Vectors:
    """Length of the loss's gradient, averaged over the epochs; of the last layer, as in DeepCore (2204.08499). Source: as `el2n`."""
    return columns["grand_dense"]  # type: ignore[no-any-return]


def forgetting(columns: Columns) -> Vectors:
    """How often it was right in an epoch and wrong in the next; never right: the epochs. Source: Toneva et al., ICLR 2019 (1812.05159)."""
    return columns["forgetting_dense"]  # type: ignore[no-any-return]


def aum(columns: Columns) -> Vectors:
    """Minus the area under the margin, the mean of margins over the epochs. Source: Pleiss et al., NeurIPS 2020 (2001.10528), section 3."""
    return -columns["aum_dense"]  # type: ignore[no-any-return]


def mean_loss(columns: Columns) -> Vectors:
    """Loss averaged over the training: what learning complexity stands for. Source: arXiv 2402.05356, section 3."""
    return columns["mean_loss_dense"]  # type: ignore[no-any-return]


def entropy(columns: Columns) -> Vectors:
    """Entropy of the classes after the training. Source of this and the next two: Coleman et al., ICLR 2020 (1906.11829), section 3."""
    return columns["entropy_dense"]  # type: ignore[no-any-return]


def margin(columns: Columns) -> Vectors:
    """One minus the distance between the two highest probabilities after the training."""
    return 1 - columns["margin_dense"]  # type: ignore[no-any-return]


def least_confidence(columns: Columns) -> Vectors:
    """One minus the highest probability after the training."""
    return 1 - columns["confidence_dense"]  # type: ignore[no-any-return]


def gain(columns: Columns) -> Vectors:
    """Inner product of its gradient with the mean gradient (last layer, after the training): what a small step on it alone takes off
    the loss of all. The first greedy step of GLISTER, Killamsetty et al., AAAI 2021 (2012.10630), section 4, without the later ones."""
    return columns["gain_dense"]  # type: ignore[no-any-return]


def scored(given: argparse.Namespace) -> None:
    """Everything, in order."""
    if given.epochs < 1:
        raise InputError(f"--epochs {given.epochs}: at least 1 is needed.")
    record(given)
    data = DataConfig((given.data,), data_split=given.split)
    probes = tuple(f"{HERE}:{name.upper()}" for name in NAMES)
    table = Run(given.out).score(data, ScoreConfig(f"{HERE}:Recorded", subnets=("dense",), probes=probes))
    say(f"{given.out}: {int(table.scored.sum())} of {len(table)} pictures have the scores {', '.join(NAMES)}.")
    say(
        f"Next: instruct-prune select --out {given.out} --keep 0.3 --stratify label --method hardest --score {HERE}:el2n"
    )


def main(words: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data", required=True, help="pictures: a tree of class folders, a listing or a dataset")
    flags.add_argument("--split", help="of a tree or dataset with splits")
    flags.add_argument("--model", default="efficientnet-lite0", help="the network that is trained")
    flags.add_argument("--scratch", action="store_true", help="its weights were not trained before")
    flags.add_argument("--image-size", type=int, help="of the embedded backbone; fitted to the pictures when not given")
    flags.add_argument("--epochs", type=int, default=10)
    flags.add_argument("--rate", type=float, default=1e-4, help="learning rate of the backbone")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--out", required=True, help="the run folder")
    given = flags.parse_args(words)
    return run_script("image_scores", lambda: scored(given))


if __name__ == "__main__":
    sys.exit(main())
