"""Every causal architecture of transformers against its own plain forward pass, and the table in docs/models.md.

``python tests/models/test_architectures.py`` writes the table.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_architectures import NOT_HERE, architectures, tiny_model

from instruct_prune.encode.batching import Plan, plan_batches, shared_prefixes
from instruct_prune.encode.item import Tokens
from instruct_prune.errors import InputError
from instruct_prune.measure.engine import run_batch
from instruct_prune.measure.measurement import Measurement, Pass
from instruct_prune.measure.probes import Loss
from instruct_prune.measure.subnet import DENSE, SubnetSpec
from instruct_prune.measure.subnets import inject_dropout, subnet
from instruct_prune.models.causal_lm import CausalLM

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
HERE = [name for name in architectures() if name not in NOT_HERE]
REFUSED = {"cpmant", "prophetnet", "reformer", "xlm", "xlnet"}
"""Not causal language models, or not in their usual form: told so before any row is scored."""
SHARED, LONGEST = 20, 64
MASKED = SubnetSpec("magnitude", 0.8)


def rows() -> list[Tokens]:
    """Twelve rows that begin alike; long and short ones, some with two responses."""
    rng = np.random.default_rng(0)
    preamble = rng.integers(3, 90, SHARED)
    found = []
    for i in range(12):
        own = rng.integers(3, 90, LONGEST - SHARED if i == 0 else int(rng.integers(4, 30)))
        ids = np.concatenate([preamble, own]).astype(np.int32)
        mask = np.arange(len(ids)) >= SHARED + 2
        if i % 3 == 0:
            mask[SHARED + 4 : SHARED + 6] = False
        found.append(Tokens(ids, mask))
    return found


@torch.no_grad()
def plain_losses(model: Any, data: list[Tokens]) -> list[float]:
    """By the model's own forward pass over one row at a time."""
    found = []
    for row in data:
        ids = torch.as_tensor(row.ids.astype(np.int64))[None]
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        of_tokens = -torch.log_softmax(logits[:-1], dim=-1)[torch.arange(len(row.ids) - 1), ids[0, 1:]]
        found.append(float(of_tokens[torch.as_tensor(row.response_mask[1:])].mean()))
    return found


def our_losses(held: CausalLM, data: list[Tokens], batch_tokens: int, share: bool) -> np.ndarray:
    """float32 [n]: as a run computes them, with all that the model allows."""
    lengths = np.asarray([len(row.ids) for row in data], dtype=np.int32)
    positions = np.arange(len(data))
    group, prefixes = None, ()
    if share:
        offset = np.concatenate([[0], np.cumsum(lengths)])
        first = np.asarray([int(row.response_mask.argmax()) for row in data], dtype=np.int32)
        found = shared_prefixes(np.concatenate([row.ids for row in data]), offset, positions, first)
        assert len(found[1]) == 1
        group, prefixes = held.allowed(*found, lengths)
    alone = held.alone(lengths)
    plan = plan_batches(positions, lengths, batch_tokens=batch_tokens, group=group, prefixes=prefixes, alone=alone)
    a_pass = Pass(DENSE, "full", (Measurement(DENSE, Loss()),))
    held.start_pass(plan, a_pass.depths, a_pass.pooled)
    values = np.full(len(data), np.nan, dtype=np.float32)
    for chunk in plan.chunks:
        for batch in chunk:
            values[batch.rows] = run_batch(held, a_pass, data, batch).numpy()[:, 0]
    return values


@dataclass(frozen=True)
class Facts:
    """One line of the table."""

    prefixes: bool = False
    batches: bool = False
    depth: bool = False
    dropout: bool = False
    note: str = ""


@cache
def facts(name: str) -> Facts:
    """Try everything on a tiny model of this architecture; every number that comes out must be the model's own.

    Raises:
        AssertionError: one is not.
    """
    model, data = tiny_model(name), rows()
    try:
        held = CausalLM.holding(model)
    except InputError as error:
        return Facts(note=f"refused: {_short(str(error))}")
    expected = plain_losses(model, data)
    assert np.isfinite(expected).all()
    for share in (False, True):
        for batch_tokens in (64, 1000):
            np.testing.assert_allclose(our_losses(held, data, batch_tokens, share), expected, atol=1e-4, rtol=0)
    with subnet(model, MASKED):
        masked = plain_losses(model, data)
        np.testing.assert_allclose(our_losses(held, data, 1000, True), masked, atol=1e-4, rtol=0)
    assert np.abs(np.subtract(masked, expected)).max() > 1e-4, "the mask changes something"
    shortcuts = held.shortcuts
    note = "" if shortcuts.batches and shortcuts.prefixes else _short(shortcuts.reason)
    return Facts(shortcuts.prefixes, shortcuts.batches, _depth_of(held), _dropout_of(model), note)


def _depth_of(held: CausalLM) -> bool:
    try:
        held.start_pass(Plan((), (), 0, 0, 0), (1,), pooled=False)
    except InputError:
        return False
    return True


def _dropout_of(model: Any) -> bool:
    try:
        hooks = inject_dropout(model, SubnetSpec("dropout", 0.1))
    except InputError:
        return False
    for hook in hooks:
        hook.remove()
    return True


def _short(reason: str) -> str:
    """The kind of a reason, without the figures that differ from machine to machine."""
    if "tokens that come after" in reason:
        return "not causal"
    if "random hashes" in reason:
        return "attends by random hashes"
    if "after the output head" in reason:
        return "its output head is not known"
    if "losses change" in reason:
        return "a continued cache gives other losses"
    return "its cache cannot be continued by several rows" if reason else "keeps no cache"


@pytest.mark.parametrize("name", HERE)
def test_losses_are_those_of_the_plain_forward_pass(name: str) -> None:
    found = facts(name)
    assert found.note.startswith("refused") == (name in REFUSED)


def test_enough_architectures_are_tried() -> None:
    assert len(HERE) - len(REFUSED) >= 90
    assert set(NOT_HERE) <= set(architectures())


def page() -> str:
    """docs/models.md."""
    found = {name: facts(name) for name in HERE}
    kept = {name: one for name, one in found.items() if not one.note.startswith("refused")}

    def count(field: str) -> int:
        return sum(getattr(one, field) for one in kept.values())

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    lines = [
        f"| `{name}` | {yes(one.prefixes)} | {yes(one.batches)} | {yes(one.depth)} | {yes(one.dropout)} | {one.note} |"
        for name, one in sorted(kept.items())
    ]
    refused = [
        f"- `{name}`: {one.note.removeprefix('refused: ')}" for name, one in sorted(found.items()) if name not in kept
    ]
    missing = [f"- `{name}`: {reason}" for name, reason in sorted(NOT_HERE.items())]
    written = DOCS.read_text(encoding="utf-8")  # advice, which is written by hand, stays
    return TEXT.format(
        advice=written[written.index("## Which model to score with") : written.index("## Tried")],
        version=transformers.__version__,
        n=len(kept),
        prefixes=count("prefixes"),
        batches=count("batches"),
        depth=count("depth"),
        dropout=count("dropout"),
        lines="\n".join(lines),
        refused="\n".join(refused),
        missing="\n".join(missing),
    )


TEXT = """# Which language models

Any causal language model of transformers can score rows. Its losses are those of its own forward pass over one row at a time:
before any row is scored, a few short rows of random tokens are run both ways, and what changes a loss is not done.

- **Batches.** Rows of different lengths run together, padded on the right. Where that changes a loss, rows run one by one.
- **Shared prefixes.** What many rows begin with (a template's preamble, a system prompt) is computed once for each subnet; the
  model's own cache, of whatever kind (keys and values, states of convolutions, recurrent states), is repeated for each row.
  Where a model cannot go on from its cache with several tokens, the beginning is computed with every row. The run says so,
  with the share of tokens that this adds.
- **Long rows.** Models with longrope turn positions by other factors in rows of more than
  `original_max_position_embeddings` tokens. Those rows run by themselves and share no prefix.
- **Depth.** `--subnets depth:...` and `--probes mean@DEPTH` read states after an inner block. What the model does after its last
  block (its final norm) is found by running it. Where states between blocks are changed by something else, or have another
  shape, depth is refused.
- **Dropout.** `--subnets dropout:...` needs blocks with an attention and an MLP part; others are refused by name.
- **Heads.** A linear layer, soft-capping and the scales of configurations are known. Where a model transforms its states before
  the head (BERT's relatives), the whole model is run up to the head.

What is refused in words, before the work: models that see later tokens, losses that are not finite numbers, `--dtype float16`
on a CPU, rows with tokens that the model has no embedding for. In float32, losses of the two ways must agree within 0.0001 nats
a token. In 16-bit types within 0.25 (more where losses are above 10 nats) divided by the square root of the number of tokens, which is what
rounding does there; a smaller error of a cache would not be seen.

{advice}## Tried

Tiny models with random weights of transformers {version}, one of each architecture: every loss with and without shared prefixes,
in two batch sizes, dense and under `magnitude:0.8`, is within 0.0001 nats of the plain forward pass. {n} architectures: {prefixes}
share prefixes, {batches} run in batches, {depth} have depth, {dropout} have dropout. Written by
`python tests/models/test_architectures.py`.

| architecture | prefixes | batches | depth | dropout | note |
|---|---|---|---|---|---|
{lines}

Refused:

{refused}

Not tried:

{missing}
"""


def test_the_table_in_the_docs_is_what_was_found() -> None:
    written = DOCS.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," not in written:
        pytest.skip("the table was written with another transformers")
    assert written == page()


if __name__ == "__main__":
    torch.set_num_threads(1)
    DOCS.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{DOCS}\n")
