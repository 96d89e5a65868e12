"""The fast loss against the plain one: one row at a time, all logits, log_softmax, a Python loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import families

from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.batching import plan_batches, shared_prefixes
from instruct_prune.encode.item import Tokens
from instruct_prune.errors import InputError
from instruct_prune.measure.engine import run_batch
from instruct_prune.measure.measurement import Measurement, Pass
from instruct_prune.measure.probes import Loss, Probe
from instruct_prune.measure.subnet import DENSE as WHOLE
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.measure.subnets import SubnetSwitch, block_outputs, inject_dropout, subnet
from instruct_prune.models import head
from instruct_prune.models.causal_lm import CausalLM

DENSE = (SubnetSpec("dense"),)
SPECS = [
    SubnetSpec("dense"),
    SubnetSpec("magnitude", 0.7),
    SubnetSpec("magnitude", 0.7, scope="global"),
    SubnetSpec("random", 0.9, seed=1),
    SubnetSpec("dropout", 0.2, seed=1),
]
NAMES = list(families())


def rows(n: int = 24, shared: int = 20) -> list[Tokens]:
    """Rows that begin alike, with one or two response spans."""
    rng = np.random.default_rng(0)
    preamble = rng.integers(3, 90, shared)
    found = []
    for i in range(n):
        own = rng.integers(3, 90, int(rng.integers(4, 30)))
        ids = np.concatenate([preamble, own]).astype(np.int32)
        mask = np.zeros(len(ids), dtype=bool)
        mask[shared + 2 :] = True
        if i % 3 == 0 and len(ids) > shared + 6:
            mask[shared + 4 : shared + 6] = False  # a user turn between two assistant turns
        found.append(Tokens(ids, mask))
    return found


@torch.no_grad()
def plain_loss(model: Any, row: Tokens) -> float:
    logits = model(input_ids=torch.as_tensor(row.ids.astype(np.int64))[None]).logits[0].float()
    losses = []
    for t in range(1, len(row.ids)):
        if row.response_mask[t]:
            losses.append(-torch.log_softmax(logits[t - 1], dim=-1)[int(row.ids[t])].item())
    return sum(losses) / len(losses)


def held(module: Any) -> CausalLM:
    """The model of the house around a loaded one of transformers."""
    model = CausalLM(ScoreConfig(), EncodeConfig(), None, loaded=(module, None))
    model.hold(module)
    return model


def fast_losses(model: Any, data: list[Tokens], batch_tokens: int, share: bool, subnets: Any = DENSE) -> np.ndarray:
    """float32 [n, s]: losses read after as many blocks as each subnet has; its weights are those that are there."""
    return read(model, data, batch_tokens, share, [Loss(spec.depth) for spec in subnets])


def read(model: Any, data: list[Tokens], batch_tokens: int, share: bool, probes: list[Probe]) -> np.ndarray:
    """float32 [n, sum of widths]: what the probes read in one pass."""
    lengths = np.asarray([len(r.ids) for r in data], dtype=np.int32)
    positions = np.arange(len(data))
    group, prefixes = None, ()
    if share:
        offset = np.concatenate([[0], np.cumsum(lengths)])
        first = np.asarray([int(r.response_mask.argmax()) for r in data], dtype=np.int32)
        group, prefixes = shared_prefixes(np.concatenate([r.ids for r in data]), offset, positions, first)
        assert len(prefixes) == 1
    plan = plan_batches(positions, lengths, batch_tokens=batch_tokens, group=group, prefixes=prefixes)
    backbone = held(model)
    a_pass = Pass(WHOLE, "full", tuple(Measurement(WHOLE, probe) for probe in probes))
    backbone.start_pass(plan, a_pass.depths, a_pass.pooled)
    values = np.full((len(data), sum(probe.width(backbone) for probe in probes)), np.nan, dtype=np.float32)
    for chunk in plan.chunks:
        for batch in chunk:
            values[batch.rows] = run_batch(backbone, a_pass, data, batch).numpy()
    return values


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared-prefix"])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_agrees_with_the_plain_loss(name: str, share: bool) -> None:
    model = families()[name]()
    data = rows()
    expected = [plain_loss(model, row) for row in data]
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(fast_losses(model, data, 300, share)[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_vocabulary_in_blocks_agrees_with_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "BLOCK_WORDS", 7)
    monkeypatch.setattr(head, "BLOCK_POSITIONS", 5)
    model = families()[name]()
    data = rows(8)
    states, targets = torch.randn(23, model.config.hidden_size), torch.arange(23) % model.config.vocab_size
    backbone = held(model)
    assert backbone.head.is_plain  # the fast path is what runs
    with torch.inference_mode():
        blocks = backbone.head.losses(states, targets)
        monkeypatch.setattr(head.Head, "is_plain", property(lambda self: False))
        np.testing.assert_allclose(blocks, backbone.head.losses(states, targets), atol=1e-5)
        monkeypatch.undo()
    expected = [plain_loss(model, row) for row in data]
    np.testing.assert_allclose(fast_losses(model, data, 300, True)[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared-prefix"])
def test_every_subnet_agrees_with_the_plain_loss(spec: SubnetSpec, share: bool) -> None:
    model = families()["llama"]()
    data = rows()
    dense = [plain_loss(model, row) for row in data]
    with subnet(model, spec):
        expected = [plain_loss(model, row) for row in data]
        found = fast_losses(model, data, 300, share, (spec,))[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (spec.kind == "dense") == np.allclose(expected, dense, atol=1e-3), "the subnet is not the dense model"


@pytest.mark.parametrize("batch_tokens", [1, 64, 5000])
def test_batch_size_does_not_change_a_score(batch_tokens: int) -> None:
    model = families()["llama"]()
    data = rows()
    expected = fast_losses(model, data, 300, True)
    np.testing.assert_allclose(fast_losses(model, data, batch_tokens, True), expected, atol=1e-5)


def test_bfloat16_keeps_the_ranks_of_float32() -> None:
    from scipy.stats import spearmanr

    model = families()["llama"]()
    data = rows(80)
    exact = fast_losses(model, data, 1, False)[:, 0]
    coarse = fast_losses(model.to(torch.bfloat16), data, 400, True)[:, 0]
    assert not np.array_equal(exact, coarse)
    assert spearmanr(exact, coarse).statistic >= 0.999


def test_all_depths_come_out_of_one_pass() -> None:
    """Exit after block k equals a model with k blocks; the last depth equals the dense model."""
    from torch import nn

    model = families()["llama"]()
    data = rows()
    both = (SubnetSpec("depth", 1), SubnetSpec("depth", 2))
    for share in (False, True):
        found = fast_losses(model, data, 300, share, both)
        np.testing.assert_allclose(found[:, 1], [plain_loss(model, row) for row in data], atol=1e-4)
        cut = families()["llama"]()
        cut.model.layers = nn.ModuleList(list(cut.model.layers)[:1])
        cut.config.num_hidden_layers = 1
        np.testing.assert_allclose(found[:, 0], [plain_loss(cut, row) for row in data], atol=1e-4)


def test_a_depth_beyond_the_model_is_an_error() -> None:
    with pytest.raises(InputError, match=r"depth 3 .* 2 depths"):
        fast_losses(families()["llama"](), rows(8), 300, False, (SubnetSpec("depth", 3),))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_reaches_every_block_of_every_family(name: str) -> None:
    model = families()[name]()
    assert len(block_outputs(model)) == 4  # attention and MLP of two blocks
    row = rows(1)[0]
    dense = plain_loss(model, row)
    losses = []
    for spec in (SubnetSpec("dropout", 0.2, 0), SubnetSpec("dropout", 0.2, 1), SubnetSpec("dropout", 0.3, 0)):
        with subnet(model, spec):
            losses.append(plain_loss(model, row))
    assert len({round(x, 6) for x in [dense, *losses]}) == 4, "subnets must differ (Llama has no dropout of its own)"
    assert plain_loss(model, row) == dense


def test_dropout_zeroes_the_same_units_for_every_sample_and_scales_the_rest() -> None:
    model = families()["llama"]()
    seen = []
    handles = inject_dropout(model, SubnetSpec("dropout", 0.25, 0))
    handles.append(model.model.layers[0].mlp.register_forward_hook(lambda m, i, o: seen.append(o.clone())))
    for row in rows(2):
        ids = torch.as_tensor(row.ids.astype(np.int64))[None]
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    zero = [(x == 0).all(dim=(0, 1)) for x in seen]
    assert torch.equal(zero[0], zero[1])
    assert int(zero[0].sum()) == 8  # a quarter of 32 units, exactly


def test_an_unknown_block_is_refused_by_name() -> None:
    from torch import nn

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])

    with pytest.raises(InputError, match="attention"):
        inject_dropout(Odd(), SubnetSpec("dropout", 0.2))


def test_a_head_that_is_not_understood_is_an_error(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    whole = model.forward

    def scaled(*a: Any, **k: Any) -> Any:
        out = whole(*a, **k)
        out.logits = out.logits * 1.5
        return out

    model.forward = scaled
    with pytest.raises(InputError, match="after the output head"):
        held(model)


def test_switch_restores_weights_and_hooks(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    row = rows(1)[0]
    dense = plain_loss(model, row)
    with SubnetSwitch(model) as switch:
        for spec in SPECS:
            switch.to(spec)
        switch.to(SubnetSpec("dropout", 0.5))
    assert plain_loss(model, row) == dense
