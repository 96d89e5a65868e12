"""Trees of pictures with pipes and links in them; names out of data that point elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from spoken import kept, tell

from instruct_prune.export.images import _plain_name

CNN = """
import numpy as np, torch
from torch import nn

def transform(image):
    return torch.from_numpy(np.asarray(image.resize((16, 16)), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)), transform
"""


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten pictures of two classes."""
    (tmp_path / "small_cnn.py").write_text(CNN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(10):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


def prune(data: Path, out: Path, *more: str) -> list[object]:
    ladder = ["--subnets", "magnitude-global:1.0,0.8", "--batch-tokens", "4"]
    return ["run", "--data", data, "--model", "small_cnn:make", *ladder, "--keep", "1.0", *more, "--out", out]


def test_odd_files_in_a_tree_of_pictures(pictures: Path) -> None:
    a, out = pictures / "a", pictures / "RUN"  # inside the data, as people do
    os.mkfifo(a / "pipe.png")
    for name, target in {"zero.png": "/dev/zero", "gone.png": "/nowhere", "self.png": str(a / "self.png")}.items():
        (a / name).symlink_to(target)
    (a / "passwd.png").symlink_to("/etc/passwd")
    (a / "loop").symlink_to(pictures)
    (a / "folder.png").mkdir()
    words = prune(pictures, out, "--to", "copies", "links")
    assert tell(*words).is_clean(0)
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [Path(row["file"]).name for row in rejected] == [
        "gone.png",
        "passwd.png",
        "pipe.png",
        "self.png",
        "zero.png",
    ]
    before = kept(out)
    again = tell(*words)
    assert again.is_clean(0)
    assert "read before" in again.text
    assert kept(out) == before


def test_names_out_of_data_stay_in_their_folder(pictures: Path, tmp_path: Path) -> None:
    labels = ["..", "../../evil", "a\nb", "n" * 300, ".", "/etc", "x", "x", "x", "x"]
    names = [f"pictures/../pictures/{'ab'[i % 2]}/{i}.png" for i in range(10)]
    listing = tmp_path / "listing.jsonl"
    listing.write_text("".join(json.dumps({"image": n, "label": y}) + "\n" for n, y in zip(names, labels, strict=True)))
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "deep" / "RUN"
    words = prune(listing, out, "--to", "copies", "links", "disk")
    assert tell(*words).is_clean(0)
    made = set(tmp_path.rglob("*")) - before
    assert all(path == out.parent or out in (path, *path.parents) for path in made)
    assert sum(path.is_file() for path in (out / "pruned_copies").rglob("*")) == 10
    assert tell(*words).is_clean(0)


def test_plain_names() -> None:
    assert [_plain_name(text) for text in ("..", "/", "", "a/b.png", "\0", "e\x1b[1m.png", "n" * 300 + ".png")] == [
        "_", "_", "_", "a_b.png", "_", "e_[1m.png", "n" * 196 + ".png",
    ]  # fmt: skip
