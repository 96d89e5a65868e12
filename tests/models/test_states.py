"""Pooled hidden states against the plain way: one row a forward pass, transformers' own hidden states, NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_causal_lm import fast_losses, read, rows
from tiny_families import families

from instruct_prune.encode.item import Tokens
from instruct_prune.errors import InputError
from instruct_prune.measure.probes import Loss, State

NAMES = list(families())
EVERY = [State(how, depth) for how in ("mean", "weighted", "last") for depth in (None, 1, 2)]


@torch.no_grad()
def plain_states(model: Any, row: Tokens) -> list[np.ndarray]:
    """float64 [t, h] after 0, 1, 2, ... blocks; the last as the model gives it, after its final norm."""
    ids = torch.as_tensor(row.ids.astype(np.int64))[None]
    states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    return [state[0].double().numpy() for state in states]


def plain_vector(model: Any, row: Tokens, probe: State) -> np.ndarray:
    states = plain_states(model, row)[-1 if probe.depth is None else probe.depth]
    n = len(row.ids)
    assert states.shape == (n, model.config.hidden_size)
    if probe.how == "last":
        return states[-1]
    weights = np.ones(n) if probe.how == "mean" else np.arange(1.0, n + 1)
    weights[0] *= probe.depth in (None, model.config.num_hidden_layers)  # after inner blocks the first is left out
    return sum(w * state for w, state in zip(weights, states, strict=True)) / weights.sum()


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared-prefix"])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_agrees_with_plain_states(name: str, share: bool) -> None:
    model = families()[name]()
    data = rows(12)
    found = read(model, data, 300, share, list(EVERY))
    expected = [np.concatenate([plain_vector(model, row, probe) for probe in EVERY]) for row in data]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(scale)), rtol=0)


@pytest.mark.parametrize("probe", EVERY, ids=lambda probe: probe.name)
@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared-prefix"])
@pytest.mark.parametrize("batch_tokens", [1, 64, 5000])
def test_batches_and_prefixes_change_no_state(probe: State, share: bool, batch_tokens: int) -> None:
    model = families()["llama"]()
    data = rows()
    found = read(model, data, batch_tokens, share, [probe])
    np.testing.assert_allclose(found, [plain_vector(model, row, probe) for row in data], atol=1e-5, rtol=0)


def test_the_ways_of_pooling_and_the_depths_differ() -> None:
    model = families()["llama"]()
    vectors = np.split(read(model, rows(8), 300, True, list(EVERY)), len(EVERY), axis=1)
    different = [(i, j) for i in range(9) for j in range(i) if not np.allclose(vectors[i], vectors[j], atol=1e-3)]
    same = {(i, i - 2) for i in (2, 5, 8)}  # after the last of two blocks is where the model ends
    assert set(different) == {(i, j) for i in range(9) for j in range(i)} - same


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared-prefix"])
def test_what_else_is_read_in_the_pass_changes_no_loss(share: bool) -> None:
    model = families()["llama"]()
    data = rows()
    alone = fast_losses(model, data, 300, share)[:, 0]
    together = read(model, data, 300, share, [State("weighted", 1), Loss(1), Loss(), State("mean"), State("last")])
    width = model.config.hidden_size
    np.testing.assert_allclose(together[:, width + 1], alone, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(alone, fast_losses(model, data, 300, share)[:, 0])


def test_tokens_after_the_last_target_belong_to_a_state_and_not_to_a_loss() -> None:
    """A row that ends with a user's turn: the loss needs nothing of it, the pooled state all of it."""
    model = families()["llama"]()
    row = rows(1)[0]
    longer = Tokens(np.concatenate([row.ids, [5, 6, 7]]).astype(np.int32), np.pad(row.response_mask, (0, 3)))
    data = [row, longer]
    found = read(model, data, 300, False, [Loss(), State("mean")])
    np.testing.assert_allclose(found[0, 0], found[1, 0], atol=1e-5)
    np.testing.assert_allclose(found[1, 1:], plain_vector(model, longer, State("mean")), atol=1e-5, rtol=0)
    assert not np.allclose(found[0, 1:], found[1, 1:], atol=1e-3)


@pytest.mark.parametrize("depth", [3, 99])
def test_a_state_beyond_the_model_is_an_error(depth: int) -> None:
    with pytest.raises(InputError, match=rf"depth {depth} .* 2 depths"):
        read(families()["llama"](), rows(8), 300, False, [State("mean", depth)])
