"""A probe, a view and a subnet family of the user's own, named by module:function on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.cli import main
from instruct_prune.run.folder import RunFolder

MINE = '''
from contextlib import contextmanager

import numpy as np
import torch

from instruct_prune import Probe
from instruct_prune.encode.item import Tokens


class Norm(Probe):
    """Largest state after one block, of all tokens that the pass runs."""

    name, depth, pooled = "norm", 1, True

    def __call__(self, model, batch, states):
        return model.pool(batch, states, 1, "mean").norm(dim=1, keepdim=True)


class Two(Norm):
    name = "two"

    def width(self, model):
        return 2

    def __call__(self, model, batch, states):
        one = super().__call__(model, batch, states)
        return torch.cat([one, -one], dim=1)


def tail(item, model):
    """Without the first five tokens."""
    return Tokens(item.ids[5:], item.response_mask[5:])


def nothing(item, model):
    return Tokens(item.ids[:9], item.response_mask[:9])


def some(item, model):
    """Only of rows of an even number of tokens."""
    return item if len(item.ids) % 2 == 0 else nothing(item, model)


@contextmanager
def scaled(module, value, seed):
    weight = module.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(value + seed)
    yield
    with torch.no_grad():
        weight.copy_(before)


class NoProbe:
    pass


def no_manager(module, value, seed):
    return None
'''


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path) -> Iterator[list[str]]:
    (tmp_path / "my_pieces.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))
    yield [
        "score",
        "--data",
        str(data),
        "--model",
        str(tiny_model_folder),
        "--dtype",
        "float32",
        "--batch-tokens",
        "300",
    ]
    sys.modules.pop("my_pieces", None)


def plain(out: Path, model: Any, change: Any = lambda ids, mask: (ids, mask)) -> tuple[list[float], list[np.ndarray]]:
    """Losses by a loop over tokens, and the mean state after one block, one row a forward pass."""
    import torch

    from instruct_prune.encode.store import TokenStore

    items = TokenStore.open(out / "items")
    losses, means = [], []
    for i in range(len(items)):
        ids, mask = change(items[i].ids, items[i].response_mask)
        with torch.no_grad():
            output = model(torch.as_tensor(ids.astype(np.int64))[None], output_hidden_states=True)
        logp = torch.log_softmax(output.logits[0].double(), -1)
        losses.append(float(np.mean([-logp[t - 1, ids[t]].item() for t in range(1, len(ids)) if mask[t]])))
        means.append(output.hidden_states[1][0, 1:].double().mean(dim=0).numpy())
    return losses, means


def test_probe_view_and_family_from_the_command_line(words: list[str], tmp_path: Path, tiny_model_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    out, simple = tmp_path / "run", tmp_path / "simple"
    own = ["--subnets", "dense", "dense@my_pieces:tail", "my_pieces:scaled:0.5", "--subnet-seeds", "2"]
    assert main([*words, *own, "--probes", "my_pieces:Norm", "my_pieces:Two", "weighted@1", "--out", str(out)]) == 0
    assert main([*words, "--subnets", "dense", "--out", str(simple)]) == 0
    table = pq.read_table(out / "scores.parquet").to_pandas()
    assert [c for c in table.columns if c.startswith(("loss", "norm", "two"))] == [
        "loss_dense", "loss_tail", "loss_scaled_0500_s0", "loss_scaled_0500_s1", "norm_dense",
    ]  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    dense, means = plain(out, model)
    np.testing.assert_allclose(table.loss_dense, dense, atol=1e-4)
    np.testing.assert_allclose(table.norm_dense, np.linalg.norm(means, axis=1), atol=1e-4)
    two = np.load(out / "states" / "two_dense.npy")
    np.testing.assert_allclose(two, np.stack([table.norm_dense, -table.norm_dense], axis=1))
    assert np.load(out / "states" / "weighted_01_dense.npy").shape == (20, 48)
    np.testing.assert_allclose(table.loss_tail, plain(out, model, lambda ids, mask: (ids[5:], mask[5:]))[0], atol=1e-4)
    for seed in (0, 1):
        weight = model.model.layers[0].mlp.up_proj.weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(0.5 + seed)
            expected = plain(out, model)[0]
            weight.copy_(before)
        np.testing.assert_allclose(table[f"loss_scaled_0500_s{seed}"], expected, atol=1e-4)
        assert not np.allclose(expected, dense, atol=1e-3)
    # Only losses that see the whole row are averaged, and what else is read in the pass changes none of them.
    ladder = table[["loss_dense", "loss_scaled_0500_s0", "loss_scaled_0500_s1"]]
    np.testing.assert_allclose(table.score, ladder.astype(float).mean(axis=1), rtol=1e-5)
    alone = pq.read_table(simple / "scores.parquet").to_pandas()
    np.testing.assert_allclose(alone.loss_dense, table.loss_dense, atol=1e-5)
    passes = RunFolder(out).manifest["stages"]["score"]["facts"]["passes"]
    assert passes == ["dense", "scaled_0500_s0", "scaled_0500_s1", "tail"]


def test_rows_of_which_a_view_leaves_no_response_have_no_loss_under_it(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main([*words, "--subnets", "dense", "dense@my_pieces:some", "--out", str(out)]) == 0
    table = pq.read_table(out / "scores.parquet").to_pandas()
    even = (table.n_prompt + table.n_response) % 2 == 0
    assert 0 < even.sum() < 20
    np.testing.assert_allclose(table.loss_some[even], table.loss_dense[even], atol=1e-5)
    assert table.loss_some[~even].isna().all()
    assert (table.status == "ok").all()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--probes", "my_pieces:NoProbe"], "expected a subclass of instruct_prune.Probe"),
        (["--probes", "my_pieces:Nrom"], "Did you mean 'Norm'"),
        (["--subnets", "my_pieces:scale:0.5"], "Did you mean 'scaled'"),
        (["--subnets", "dense", "dense@my_pieces:tial"], "Did you mean 'tail'"),
        (["--subnets", "my_pieces:no_manager:0.5"], "context manager"),
        (["--subnets", "dense", "dense@my_pieces:nothing"], "'my_pieces:nothing' leaves nothing to predict"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert main([*words, *more, "--out", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


AVERAGES = """
import numpy as np

from instruct_prune import score_rule


def plain(columns):
    return columns.average(lambda loss: loss)


def needed(how="dense"):
    return ("ladder",) if how == "average" else ("loss_dense",)


@score_rule(needs=needed)
def depends(columns, *, how: str = "dense"):
    return plain(columns) if how == "average" else columns["loss_dense"]
"""


def test_scores_of_ones_own_that_average_take_weights(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_pieces.py").write_text(AVERAGES)
    out = tmp_path / "run"
    assert main([*words, "--subnets", "dlc", "--out", str(out)]) == 0
    choice = [
        "select",
        str(out),
        "--keep",
        "5",
        "--clusters",
        "none",
        "--method",
        "hardest",
        "--score-weights",
        "0",
        "0",
        "1",
    ]
    loss = pq.read_table(out / "scores.parquet").to_pandas().loss_magnitude_0640.nlargest(5).index.tolist()
    for score in (["my_pieces:plain"], ["my_pieces:depends", "--score-param", "how=average"]):
        assert main([*choice, "--score", *score]) == 0
        chosen = pq.read_table(out / "selection.parquet").to_pandas()
        assert sorted(chosen.row_id[chosen.selected]) == sorted(loss)
    assert main([*choice, "--score", "my_pieces:depends"]) == 2
    assert "is no average over subnets" in capsys.readouterr().err
