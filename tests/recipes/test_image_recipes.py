"""The image recipes end to end on a tiny network, and the probe by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import image_finetune
import image_study
import numpy as np
import pytest

from instruct_prune import Run, SelectConfig
from instruct_prune.train import load_pictures, principal_components, probe_accuracy

IMAGES = str(Path(__file__).parents[2] / "data_samples" / "images")
pytestmark = pytest.mark.usefixtures("in_factory_folder")


@pytest.mark.parametrize("mode", ["probe", "full"])
def test_train_on_what_a_run_keeps(picture_run: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    kept = Run(picture_run).export()
    words = ["--train", str(kept), "--test", IMAGES, "--model", "recipe_cnn:make", "--mode", mode, "--epochs", "2"]
    assert image_finetune.main([*words, "--rate", "0.01"]) == 0
    told = capsys.readouterr().out
    trained, tested, accuracy = re.findall(r"(\d+) training pictures, (\d+) test pictures, accuracy ([\d.]+)%", told)[0]
    assert int(trained) == len(kept.read_text().splitlines())
    assert int(tested) == len(load_pictures(IMAGES))
    assert 0 < float(accuracy) <= 100


def test_study(tmp_path: Path) -> None:
    words = ["--train", IMAGES, "--test", IMAGES, "--model", "recipe_cnn:make", "--out", str(tmp_path / "study")]
    words += ["--keep", "0.5", "--seeds", "2", "--subnets", "magnitude-global:1.0,0.8", "--train-rows", "8"]
    words += ["--methods", "flexrand", "hardest", "knn_lc + flexrand", "--train-epochs", "1", "--epochs", "1"]
    assert image_study.main(words) == 0
    found = json.loads((tmp_path / "study" / "study.json").read_text())
    assert list(found["accuracy"]) == ["random", "flexrand", "hardest", "knn_lc + flexrand"]
    assert all(len(values["0.5"]) == 2 for values in found["accuracy"].values())
    assert -1 <= found["rho(dlc, mean loss over probe training)"] <= 1
    assert found["training over scoring"] > 0
    assert "| hardest | " in (tmp_path / "study" / "study.md").read_text()
    # Every class keeps its share, random too.
    selection = Run(tmp_path / "study" / "dlc").select(SelectConfig(keep=0.5, method="random", stratify="label"))
    train = load_pictures(IMAGES)
    kept, all_rows = np.bincount(train.labels[selection.selected]), np.bincount(train.labels)
    assert (np.abs(kept - all_rows / 2) <= 1).all()


def test_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    assert image_finetune.main(["--train", str(tmp_path / "rows.jsonl"), "--test", IMAGES]) == 2
    assert "holds no images with labels" in capsys.readouterr().err


def test_class_that_was_not_trained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train = load_pictures(IMAGES)
    first = [path for path, label in zip(train.paths, train.labels, strict=True) if label == 0]
    (tmp_path / "one.csv").write_text("path,label\n" + "".join(f"{path},{train.names[0]}\n" for path in first))
    assert image_finetune.main(["--train", "one.csv", "--test", IMAGES, "--model", "recipe_cnn:make"]) == 2
    assert f"not in the training pictures: {train.names[1]}" in capsys.readouterr().err


def test_probe_on_classes_that_a_line_parts() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    features = rng.normal(size=(60, 5)).astype(np.float32)
    features[:, 0] += 8 * y
    mean, components = principal_components(features, 2)
    assert mean == pytest.approx(features.mean(axis=0), rel=1e-5)
    x = (features - mean) @ components
    assert x.shape == (60, 2)
    assert x[:, 0].std(ddof=1) == pytest.approx(1, rel=1e-5)  # the first component has size one
    assert probe_accuracy(x[:40], y[:40], x[40:], y[40:], 2) == 1.0
    assert probe_accuracy(x[:40], y[:40], x[40:], 1 - y[40:], 2) == 0.0
