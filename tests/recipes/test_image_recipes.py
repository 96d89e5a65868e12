"""The image recipes end to end on a tiny network, and the probe by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import image_finetune
import image_scores
import image_study
import numpy as np
import pytest

from instruct_prune import Run
from instruct_prune.train import (
    decoded_once,
    features_of,
    load_backbone,
    load_pictures,
    principal_components,
    probe_accuracy,
)

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
    words += ["--keep", "0.5", "--seeds", "2", "--random-arms", "3", "--subnets", "magnitude-global:1.0,0.8"]
    words += ["--rules", "flexrand", "hardest", "knn_lc + flexrand", "few=dlc flexrand split=0.1"]
    assert image_study.main(words) == 0
    found = json.loads((tmp_path / "study" / "study_probe.json").read_text())
    assert list(found["accuracy"]) == ["random", "flexrand", "hardest", "knn_lc + flexrand", "few"]
    assert [len(values["0.5"]) for values in found["accuracy"].values()] == [3, 2, 2, 2, 2]
    assert "| hardest | " in (tmp_path / "study" / "study_probe.md").read_text()
    # Every class keeps its share, random too.
    run = Run(tmp_path / "study" / "dlc")
    train = load_pictures(IMAGES)
    kept = train.labels[image_study.Rule.parse("random").rows({"dlc": run}, len(train) // 2, 0)]
    assert (np.abs(np.bincount(kept) - np.bincount(train.labels) / 2) <= 1).all()
    assert image_study.main([*words[:-1], "few=dlc"]) == 2


def test_study_of_whole_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, study = str(tmp_path / "trained"), tmp_path / "study"
    words = ["--data", IMAGES, "--model", "recipe_cnn:make", "--epochs", "1", "--scratch", "--out", trained]
    assert image_scores.main(words) == 0
    words = ["--train", IMAGES, "--test", IMAGES, "--model", "recipe_cnn:make", "--mode", "full", "--out", str(study)]
    words += ["--network", "recipe_cnn:make", "--scratch", "--epochs", "1", "--keep", "0.5", "--seeds", "1"]
    words += ["--random-arms", "2", "--subnets", "dense", "--rules", "flexrand", "el2n", "--rate", "0.01"]
    assert image_study.main(words) == 2
    assert "--runs trained=FOLDER" in capsys.readouterr().err
    words += ["--runs", f"trained={trained}"]
    assert image_study.main([*words, "--budget-minutes", "0"]) == 0
    assert "left out 6 arms" in capsys.readouterr().err
    assert image_study.main(words) == 0
    first = (study / "study_full.json").read_bytes()
    # All pictures, none, two of random and one of each rule.
    assert len(list((study / "arms").iterdir())) == 6
    assert "seed 1: accuracy" in capsys.readouterr().err
    assert image_study.main(words) == 0
    assert "seed 1: accuracy" not in capsys.readouterr().err  # nothing is trained again ...
    assert (study / "study_full.json").read_bytes() == first
    (study / "arms" / sorted(path.name for path in (study / "arms").iterdir())[0]).unlink()
    assert image_study.main(words) == 0
    assert (study / "study_full.json").read_bytes() == first  # ... and what is comes out the same


def test_pixels_are_decoded_once(tmp_path: Path) -> None:
    train = load_pictures(IMAGES)
    backbone, _ = load_backbone("recipe_cnn:make", train.short_side)
    kept = decoded_once(backbone, train, tmp_path / "pixels.npy")
    assert features_of(backbone, kept.items).tolist() == features_of(backbone, train.items).tolist()
    made = (tmp_path / "pixels.npy").stat().st_mtime_ns
    decoded_once(backbone, train, tmp_path / "pixels.npy")
    assert (tmp_path / "pixels.npy").stat().st_mtime_ns == made
    turned = replace(train, items=train.items[::-1])
    again = decoded_once(backbone, turned, tmp_path / "pixels.npy")  # of other pictures: made anew
    assert again.items[0].pixels.tolist() == backbone.pixels(train.items[-1:])[0].tolist()


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
