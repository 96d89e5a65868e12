"""Scores that need training: each by hand or by autograd, and as columns of a run beside those of DLC."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import image_scores
import numpy as np
import pytest
import torch
from image_scores import Notes, Record

from instruct_prune import Run, SelectConfig
from instruct_prune.cli import main

IMAGES = str(Path(__file__).parents[2] / "data_samples" / "images")
LOG2 = float(np.log(2))


def a_record() -> Record:
    """Three pictures of three classes, met three times."""
    margins = np.array([[1, -1, 1], [-1, -1, 1], [2, -1, 4]], dtype=np.float32)
    logits = np.array([[0, 0, 0], [LOG2, 0, 0], [0, 0, 2 * LOG2]], dtype=np.float32)
    features = np.array([[1, 0], [0, 2], [1, 1]], dtype=np.float32)
    others = [np.array([[3, 0, 1]] * 3, dtype=np.float32) * np.array([[1], [2], [6]], dtype=np.float32)] * 2
    return Record(*others, margins, others[0], logits, features, np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("score", "values"),
    [
        ("el2n", [9, 0, 3]),
        ("grand", [9, 0, 3]),
        ("mean_loss", [9, 0, 3]),
        ("forgetting", [1, 3, 0]),  # once; never right in three epochs; never forgotten
        ("aum", [-2 / 3, 1, -2]),
        ("entropy", [np.log(3), 1.5 * LOG2, 4 / 6 * np.log(6 / 4) + 2 / 6 * np.log(6)]),
        ("margin", [1, 0.75, 0.5]),
        ("least_confidence", [2 / 3, 1 / 2, 2 / 6]),
    ],
)
def test_scores_by_hand(score: str, values: list[float]) -> None:
    columns = {f"{name}_dense": column for name, column in a_record().columns().items()}
    assert getattr(image_scores, score)(columns) == pytest.approx(values, abs=1e-6)


def gradients(layer: torch.nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Of each picture's loss, with respect to all weights of the layer in a row."""
    found = []
    for row, label in zip(features, labels, strict=True):
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(row)[None], label[None]).backward()
        found.append(torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).clone())
    return found


def test_gain_is_the_inner_product_with_the_mean_gradient() -> None:
    torch.manual_seed(0)
    layer, features, labels = torch.nn.Linear(2, 3), torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0])
    each = torch.stack(gradients(layer, features, labels))
    logits = layer(features).detach().numpy()
    met = np.zeros((1, 5), dtype=np.float32)
    found = Record(met, met, met, met, logits, features.numpy(), labels.numpy()).columns()
    assert found["gain"] == pytest.approx((each @ each.mean(dim=0)).numpy(), abs=1e-6)
    assert found["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(torch.tensor(logits), labels, reduction="none").numpy()
    )


def test_what_is_noted_at_a_step() -> None:
    torch.manual_seed(0)
    layer, features, labels = torch.nn.Linear(2, 3), torch.randn(4, 2), np.array([0, 1, 2, 1])
    notes = Notes(2, labels)
    rows = np.array([3, 0])
    notes(1, rows, features[rows], layer(features[rows]).detach())
    errors, lengths, margins = notes.met
    assert not notes.met[:, 0].any()
    assert not notes.met[:, 1, [1, 2]].any()
    p = layer(features).softmax(dim=1).detach().numpy()
    assert errors[1, 3] == pytest.approx(np.linalg.norm(p[3] - [0, 1, 0]), rel=1e-5)
    assert margins[1, 0] == pytest.approx(np.log(p[0, 0] / max(p[0, 1], p[0, 2])), rel=1e-4)
    exact = [one.norm().item() for one in gradients(layer, features, torch.from_numpy(labels))]
    assert lengths[1, rows] == pytest.approx([exact[3], exact[0]], rel=1e-5)


@pytest.fixture
def words(in_factory_folder: None, tmp_path: Path) -> list[str]:
    return [
        "--data",
        IMAGES,
        "--model",
        "recipe_cnn:make",
        "--epochs",
        "2",
        "--scratch",
        "--out",
        str(tmp_path / "trained"),
    ]


def test_columns_of_a_run(
    words: list[str],
    picture_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert image_scores.main(words) == 0
    run = Run(tmp_path / "trained")
    assert list(run.scores.more) == [f"{name}_dense" for name in image_scores.NAMES]
    fine = run.scores.scored  # three of the pictures are damaged
    assert (len(fine), int(fine.sum())) == (60, 57)
    assert all((np.isfinite(column) == fine).all() for column in run.scores.more.values())
    assert not (tmp_path / "trained" / "pixels.npy").exists()
    assert np.load(tmp_path / "trained" / "embeddings.npy").shape == (57, 16)
    # The rows of the notes are those of the run, and the scores select.
    noted = image_scores.Record(**image_scores.load_file(tmp_path / "trained" / image_scores.RECORD)).columns()
    assert run.scores.more["el2n_dense"][fine].tolist() == noted["el2n"].tolist()
    assert run.scores.losses[fine, 0].tolist() == noted["loss"].tolist()
    kept = run.select(SelectConfig(keep=3, method="hardest", score="image_scores:el2n", clusters="none")).kept
    hardest = np.argsort(-noted["el2n"], kind="stable")[:3]
    assert sorted(kept.tolist()) == sorted(run.scores.row_id[fine][hardest].tolist())
    capsys.readouterr()
    assert main(["correlate", str(tmp_path / "trained"), str(picture_run)]) == 0
    assert "trained:forgetting_dense" in capsys.readouterr().out
    run.select(SelectConfig(keep=0.5, method="herding", stratify="label"))
    assert main(["compare", str(tmp_path / "trained"), str(picture_run)]) == 0
    assert main(["report", "--out", str(tmp_path / "trained")]) == 0
    assert image_scores.main(words) == 0
    assert "training: done before, skipped" in capsys.readouterr().err
    assert image_scores.main([*words, "--seed", "1"]) == 2
    assert "another training" in capsys.readouterr().err


def test_pictures_that_were_not_trained_on_are_listed(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    model = image_scores.Recorded(SimpleNamespace(model="x"), SimpleNamespace(), None)
    model._places = {"there.png": 4}

    def row(path: str) -> SimpleNamespace:
        return SimpleNamespace(messages=[SimpleNamespace(images=[SimpleNamespace(path=path)])])

    assert model.item(row("there.png")) == 4
    with pytest.raises(image_scores.RowError, match="was not trained on it"):
        model.item(row("new.png"))
