"""What an adapter of the target, and its rows before a row, take off the loss: by the real command, against a plain computation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from adapter_folders import save_adapter
from machines import environment, killed_at, on_two_processes
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.cli import main
from instruct_prune.encode.item import Tokens
from instruct_prune.encode.store import TokenStore
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.target_facts import COMPARED

POOL = 24


def words(folder: Path, model: Path) -> list[str]:
    """Options of a run over a pool, with a target beside it; further subnets may follow."""
    write_jsonl(folder / "pool.jsonl", alpaca_rows(POOL))
    write_jsonl(folder / "dev.jsonl", [alpaca_rows(60)[i] for i in (33, 43, 46)])  # short ones
    options = ["--data", str(folder / "pool.jsonl"), "--model", str(model), "--dtype", "float32"]
    return [*options, "--batch-tokens", "200", "--subnets", "dense"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("values")
    out = str(folder / "RUN")
    assert main(["score", *words(folder, tiny_model_folder), "--out", out]) == 0
    return folder


def values(out: Path, by: str) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.load(out / RunFolder(out).facts(COMPARED[by]).pool)
    return found


def plain_loss(module: Any, ids: list[int], n_response: int) -> float:
    """Of transformers (or PEFT) alone: the mean over the last tokens of a row."""
    row = torch.as_tensor(ids)[None]
    with torch.no_grad():
        logits = module(input_ids=row, use_cache=False).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[-n_response - 1 : -1], row[0, -n_response:]))


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def rows_of(store: TokenStore) -> list[Tokens]:
    return [store[i] for i in range(len(store))]


def test_drop(scored: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from peft import PeftModel

    out = scored / "RUN"
    assert main(["target", str(out), "--target", str(scored / "dev.jsonl"), "--by", "drop"]) == 0
    adapter = out / "targets" / "by" / "drop" / "dev" / "adapter"
    base = load(tiny_model_folder)
    own = rows_of(TokenStore.open(out / "items"))
    before = [plain_loss(base, one.ids.tolist(), int(one.response_mask.sum())) for one in own]
    asked = rows_of(TokenStore.open(out / "targets" / "tasks" / "dev" / "items"))
    learnt = [plain_loss(base, one.ids.tolist(), int(one.response_mask.sum())) for one in asked]
    tuned = PeftModel.from_pretrained(base, str(adapter)).eval()
    after = [plain_loss(tuned, one.ids.tolist(), int(one.response_mask.sum())) for one in own]
    expected = [(b - a) / b for b, a in zip(before, after, strict=True)]
    np.testing.assert_allclose(values(out, "drop"), [expected], atol=1e-5)
    assert np.std(expected) > 1e-3
    now = [plain_loss(tuned, one.ids.tolist(), int(one.response_mask.sum())) for one in asked]
    assert np.mean(now) < np.mean(learnt) - 0.01  # it was trained on the target's rows
    assert main(["select", str(out), "--by", "drop", "--keep", "5"]) == 0
    table = pq.read_table(out / "selection.parquet").to_pydict()
    kept = [row for row, chosen in zip(table["row_id"], table["selected"], strict=True) if chosen]
    assert sorted(kept) == sorted(np.argsort(-np.asarray(expected))[:5].tolist())


@pytest.mark.parametrize("k", [1, 2])
def test_shown(scored: Path, tiny_model_folder: Path, k: int) -> None:
    out = scored / "RUN"
    target = ["--target", str(scored / "dev.jsonl"), "--by", "shown", "--shown", str(k)]
    assert main(["target", str(out), *target]) == 0
    base = load(tiny_model_folder)
    own = rows_of(TokenStore.open(out / "items"))
    asked = rows_of(TokenStore.open(out / "targets" / "tasks" / "dev" / "items"))

    def state(one: Tokens) -> torch.Tensor:
        """RDS+: the mean of the last states weighted by position."""
        with torch.no_grad():
            states = base.model(torch.as_tensor(one.ids.astype("int64"))[None]).last_hidden_state[0]
        place = torch.arange(1, len(states) + 1)
        return torch.nn.functional.normalize((place[:, None] * states).sum(0) / place.sum(), dim=0)

    theirs = torch.stack([state(one) for one in asked])
    expected = []
    for one in own:
        n = int(one.response_mask.sum())
        nearest = torch.topk(theirs @ state(one), k).indices.tolist()
        room = 512 - len(one.ids)  # the tiny model takes so many tokens
        fits = np.cumsum([len(asked[q].ids) for q in nearest]) <= room
        nearest = sorted(q for q, there in zip(nearest, fits, strict=True) if there)
        behind = [token for q in nearest for token in asked[q].ids.tolist()] + one.ids.tolist()
        expected.append(plain_loss(base, one.ids.tolist(), n) - plain_loss(base, behind, n))
    np.testing.assert_allclose(values(out, "shown"), [expected], atol=1e-4)
    assert np.std(expected) > 1e-2


def test_rows_without_room_are_told(scored: Path, tmp_path: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """The tiny model takes 512 tokens: three long demonstrations leave room for fewer before long rows."""
    long = [{"instruction": f"Say {i}.", "input": "", "output": "About the moon. " * 32 + str(i)} for i in range(3)]
    target = ["--target", str(write_jsonl(tmp_path / "long.jsonl", long)), "--by", "shown", "--shown", "3"]
    assert main(["target", str(scored / "RUN"), *target]) == 0
    told = capfd.readouterr().err
    assert "rows have fewer than 3 rows of long before them, since the model takes 512 tokens" in told
    assert np.isfinite(values(scored / "RUN", "shown")).all()


def test_warm_up_trains_on_the_pool_and_sketches_with_it(scored: Path, tmp_path: Path) -> None:
    out = scored / "RUN"
    target = ["--target", str(scored / "dev.jsonl"), "--by", "gradient"]
    assert main(["target", str(out), *target]) == 0
    cold = np.load(out / RunFolder(out).facts(COMPARED["gradient"]).pool)
    assert main(["target", str(out), *target, "--warmup-steps", "3"]) == 0
    facts = RunFolder(out).facts(COMPARED["gradient"])
    warm = np.load(out / facts.pool)
    assert "gradient_adapter_warmup_3" in facts.pool
    assert (out / "targets" / "pool" / "warmup_3" / "adapter_model.safetensors").exists()
    assert warm.shape == cold.shape == (POOL, 4096)
    near = (warm.astype(float) * cold).sum(axis=1)
    assert (near < 0.9999).all()
    assert (near > 0.3).all()


def test_own_adapter(scored: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    """--subnets dense adapter:FOLDER, scored, resumed with another batch size, selected by drop."""
    save_adapter(load(tiny_model_folder), tmp_path / "mine" / "adapter", r=1)
    options = [*words(tmp_path, tiny_model_folder), f"adapter:{tmp_path / 'mine' / 'adapter'}", "magnitude:0.8"]
    for name, batch in (("a", "64"), ("b", "2048")):
        assert main(["score", *options, "--batch-tokens", batch, "--out", str(tmp_path / name)]) == 0
    a, b = (pq.read_table(tmp_path / name / "scores.parquet").to_pandas() for name in "ab")
    for column in ("loss_dense", "loss_adapter_mine", "loss_magnitude_0800", "score"):
        np.testing.assert_allclose(a[column], b[column], atol=1e-4)
    np.testing.assert_allclose(
        a["score"], (a["loss_dense"] + a["loss_magnitude_0800"]) / 2, rtol=1e-6
    )  # no adapter in it
    out = str(tmp_path / "a")
    pick = ["--method", "hardest", "--clusters", "none", "--keep", "4"]
    assert main(["select", out, "--score", "drop", *pick]) == 0
    expected = (a["loss_dense"] - a["loss_adapter_mine"]) / a["loss_dense"]
    table = pq.read_table(tmp_path / "a" / "selection.parquet").to_pandas()
    np.testing.assert_allclose(table["score"], expected, rtol=1e-5)
    assert sorted(table["row_id"][table["selected"]]) == sorted(np.argsort(-expected)[:4].tolist())
    assert main(["select", out, "--score", "drop", "--score-param", "adapter=mine", *pick]) == 0


def test_an_adapter_that_has_changed_is_another_configuration(
    tmp_path: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_adapter(load(tiny_model_folder), tmp_path / "mine", r=1)
    options = [*words(tmp_path, tiny_model_folder), f"adapter:{tmp_path / 'mine'}"]
    assert main(["score", *options, "--out", str(tmp_path / "RUN")]) == 0
    assert pq.read_schema(tmp_path / "RUN" / "scores.parquet").names[-1] == "score"
    save_adapter(load(tiny_model_folder), tmp_path / "mine", seed=1, r=1)
    assert main(["score", *options, "--out", str(tmp_path / "RUN")]) == 2
    assert "adapters" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--by", "shown", "--shown", "4"], "the target dev has 3 rows that can be shown"),
        (["--by", "shown", "--shown", "0"], "--shown 0: at least 1"),
        (["--by", "rds", "--shown", "2"], "--shown 2 is for --by shown"),
        (["--by", "drop", "--warmup-steps", "2"], "--warmup-steps 2 is for --by gradient"),
        (["--by", "gradient", "--warmup-steps", "-1"], "--warmup-steps -1: at least 0"),
    ],
)
def test_options_that_do_not_fit(scored: Path, options: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main(["target", str(scored / "RUN"), "--target", str(scored / "dev.jsonl"), *options]) == 2
    assert says in capfd.readouterr().err


def test_nothing_to_average_or_to_drop_with(
    tmp_path: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_adapter(load(tiny_model_folder), tmp_path / "mine", r=1)
    options = [*words(tmp_path, tiny_model_folder)[:-1], f"adapter:{tmp_path / 'mine'}"]
    assert main(["score", *options, "--out", str(tmp_path / "RUN")]) == 2
    assert "Name dense beside it" in capfd.readouterr().err
    run = ["run", *words(tmp_path, tiny_model_folder), "--score", "drop", "--keep", "3"]
    assert main([*run, "--out", str(tmp_path / "RUN")]) == 2
    assert "needs the loss under an adapter" in capfd.readouterr().err


# ---- interruptions and processes ----


def run_words(folder: Path, model: Path, embedder: Path, by: str, out: Path) -> list[str]:
    options = [*words(folder, model), "--embedder", str(embedder), "--keep", "5", "--clusters", "none"]
    return ["run", *options, "--target", str(folder / "dev.jsonl"), "--by", by, "--out", str(out)]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["drop", "shown"])
def test_kills_change_no_byte_and_two_processes_agree(
    by: str, tmp_path: Path, tiny_model_folder: Path, tiny_embedder_folder: Path
) -> None:
    def command(name: str) -> list[str]:
        return run_words(tmp_path, tiny_model_folder, tiny_embedder_folder, by, tmp_path / name)

    alone = [sys.executable, "-m", "instruct_prune"]
    subprocess.run([*alone, *command("whole")], env=environment(), check=True, capture_output=True)

    for path, nth in (("targets/tasks/dev/rows.npy", 1), (f"parts/target/{by}/*", 2)):
        killed_at(tmp_path / "killed" / path, nth, *command("killed"))
    assert not (tmp_path / "killed" / "selection.parquet").exists()
    subprocess.run([*alone, *command("killed")], env=environment(), check=True, capture_output=True)
    on_two_processes(*command("two"))
    names = [f"targets/by/{by}/values.npy", "pruned.jsonl"]
    adapter = "targets/by/drop/dev/adapter"
    names += [f"{adapter}/{name}" for name in ("adapter_model.safetensors", "adapter_config.json") if by == "drop"]
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    np.testing.assert_allclose(values(tmp_path / "two", by), values(tmp_path / "whole", by), atol=1e-4)
    assert (tmp_path / "two" / "pruned.jsonl").read_bytes() == (tmp_path / "whole" / "pruned.jsonl").read_bytes()
