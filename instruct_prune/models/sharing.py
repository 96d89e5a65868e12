"""Which shortcuts leave a model's losses as they are: found by trying them on the model itself, not by a list of names.

A batch pads rows on the right, and what many rows begin with is computed once and its cache repeated for each of them.
Both are exact for most models and wrong for some: a cache may be of a kind that cannot be continued, a mixture of experts
may drop tokens of a full batch. A `Trial` runs a few short rows both ways before any row is scored.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_prune.arrays import Int32
from instruct_prune.encode.batching import Plan
from instruct_prune.encode.item import Tokens
from instruct_prune.errors import InputError
from instruct_prune.models.decoder import long_above
from instruct_prune.models.model import Model
from instruct_prune.models.names import context_of

PREFIX_LENGTHS = (24, 17)  # tokens of the two beginnings that are tried
OWN_LENGTHS = (
    (44, 5),
    (11,),
)  # and of what the rows that begin with each go on with, where the model allows so long a row
LONGEST = max(PREFIX_LENGTHS) + 44
EXACT, ROUNDED = 1e-4, 0.25  # nats a token by which losses may differ in float32, and in 16-bit types (of one token)
GUESS = 10.0  # nats a token above which 16-bit rounding grows with the loss: a trained model finds random tokens far worse than a guess
MODEL_FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError, AssertionError)


@dataclass(frozen=True)
class Shortcuts:
    """What rows of one model may have in common without a change of their losses.

    Attributes:
        batches: a forward pass: rows of different lengths, padded on the right.
        prefixes: the computation of their beginning.
        positions: whether a model that goes on from a cache is told the positions.
        reason: why not, where one of them does not hold.
    """

    batches: bool = True
    prefixes: bool = True
    positions: bool = True
    reason: str = ""


def tolerance_of(module: nn.Module, losses: Tensor) -> Callable[[int], float]:
    """Nats a token by which a mean over so many tokens may differ between two ways of a model with these losses.

    Rounding is below it, a cache that is not understood far above.
    """
    if module.dtype == torch.float32:
        return lambda n_tokens: EXACT
    one = ROUNDED * max(1.0, float(losses.mean()) / GUESS)
    return lambda n_tokens: one / float(n_tokens) ** 0.5


class Trial:
    """A few short rows, their losses by the model's own forward pass over each alone, and what is compared with these.

    Args:
        module: a causal language model of transformers with its weights.

    Raises:
        InputError: it cannot be run, sees later tokens, or its losses are no numbers.
    """

    def __init__(self, module: Any) -> None:
        self.beginnings, self.rows = _rows(module)
        kind = type(module).__name__
        _check_attention(module.config, kind)
        try:
            losses = [plain_losses(module, row.ids) for row in self.rows]
        except MODEL_FAULTS as error:
            raise InputError(
                f"{kind} cannot be run on a row of {len(self.rows[0].ids)} tokens: {told_of(error)}"
            ) from error
        self.tolerance = tolerance_of(module, torch.cat(losses))
        _check_reference(module, losses, len(self.beginnings[0]), self.tolerance(len(self.beginnings[0])))
        self._wanted = torch.stack(
            [own[row.response_mask[1:]].mean() for own, row in zip(losses, self.rows, strict=True)]
        )

    def alone(self, model: Model) -> str:
        """What is wrong with a row that runs by itself as rows do here; "" where its loss is the model's own."""
        return self._differs(model, [(-1, [0])])

    def shortcuts(self, model: Model, prefixes: bool) -> Shortcuts:
        """What rows may share; the model's own ``shortcuts`` are set to what is tried.

        Args:
            model: as it runs rows.
            prefixes: whether shared prefixes are wanted at all.
        """
        batches = self._differs(model, [(-1, [0, 1, 2]), (-1, [1, 2])])
        groups = [(0, [0, 1]), (1, [2]), (0, [1])]  # the first once more: what was kept of it must be as it was
        if batches:
            groups = [(prefix, [i]) for prefix, members in groups for i in members]
        cached = ""
        # Some models count on from the cache (RoBERTa from 2), some only from what they are told.
        for positions in (True, False) if prefixes else ():
            model.shortcuts = Shortcuts(not batches, True, positions)
            cached = self._differs(model, groups)
            if not cached:
                break
        return Shortcuts(not batches, prefixes and not cached, model.shortcuts.positions, batches or cached)

    def _differs(self, model: Model, groups: Sequence[tuple[int, list[int]]]) -> str:
        return differs(model, self.rows, self._wanted, self.tolerance, groups, self.beginnings)


def differs(
    model: Model,
    rows: Sequence[Tokens],
    wanted: Tensor,
    tolerance: Callable[[int], float],
    groups: Sequence[tuple[int, list[int]]],
    beginnings: tuple[Int32, ...] = (),
) -> str:
    """How the losses of rows differ from those wanted, where they run in batches; "" where they agree.

    Args:
        model: as it runs rows.
        rows: n of them.
        wanted: float32 [n], the loss of each by itself.
        tolerance: of the model, as `tolerance_of` says.
        groups: (index of a beginning or -1, rows that run together).
        beginnings: that rows may share.
    """
    model.start_pass(Plan((), beginnings, len(rows), 0, 0), (), pooled=False)
    try:
        for prefix, members in groups:
            batch = model.collate([rows[i] for i in members], prefix)
            found = model.losses(batch, model.forward(batch), None).float().cpu()
            for i, far in zip(members, (found - wanted[members]).abs().tolist(), strict=True):
                if not far <= tolerance(int(rows[i].response_mask.sum())):
                    return f"losses change by {far:.2g} nats a token"
    except torch.OutOfMemoryError:
        raise
    except MODEL_FAULTS as error:
        return told_of(error)
    return ""


def repeated(cache: Any, n_rows: int) -> Any:
    """A copy of what a model keeps of one row, for ``n_rows`` rows: keys and values, states of convolutions, recurrent states.

    Args:
        cache: any object of transformers or container; tensors have the rows in their first dimension.
        n_rows: rows that continue it.
    """
    done: dict[int, Any] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, str | int | float | type(None) | type):
            return value
        if id(value) not in done:
            done[id(value)] = _copied(value, n_rows, copied)
        return done[id(value)]

    try:
        return copied(cache)
    finally:
        # ``copied`` refers to itself, so what it remembers would stay in memory until the next garbage collection.
        done.clear()


def _copied(value: Any, n_rows: int, copied: Callable[[Any], Any]) -> Any:
    if isinstance(value, Tensor):
        one_row = value.ndim > 1 and len(value) == 1
        return value.repeat(n_rows, *(1 for _ in value.shape[1:])) if one_row else value.clone()
    if isinstance(value, list | tuple):
        return type(value)([copied(entry) for entry in value])
    if isinstance(value, dict):
        return type(value)((key, copied(entry)) for key, entry in value.items())
    known = type(value).__module__.startswith("transformers.") and not hasattr(value, "to_dict")
    if not known or isinstance(value, nn.Module):
        return value
    new = copy.copy(value)
    for name, entry in vars(value).items():
        setattr(new, name, copied(entry))
    return new


def _rows(module: Any) -> tuple[tuple[Int32, ...], list[Tokens]]:
    """Two beginnings and three rows of random tokens: long and short with the first, one with the second.

    Each part has the end token in it, as rows of chats do: where it is the padding token, too, some models count by it.
    """
    config = module.config.get_text_config()
    vocabulary = min(config.vocab_size, len(module.get_input_embeddings().weight))
    end = getattr(config, "eos_token_id", None)
    most = min(context_of(module.config), long_above(module.config) or LONGEST)
    rng = np.random.default_rng(0)

    def some(length: int) -> Int32:
        ids = rng.integers(vocabulary // 8, vocabulary, length).astype(np.int32)
        if isinstance(end, int) and 0 <= end < vocabulary:
            ids[length // 2] = end
        return ids

    beginnings, rows = [], []
    for length, own in zip(PREFIX_LENGTHS, OWN_LENGTHS, strict=True):
        beginnings.append(some(min(length, most // 2)))
        for more in own:
            ids = np.concatenate([beginnings[-1], some(min(more, most - len(beginnings[-1])))])
            rows.append(Tokens(ids, np.arange(len(ids)) > len(beginnings[-1])))
    return tuple(beginnings), rows


def plain_losses(module: Any, ids: Int32, **more: Any) -> Tensor:
    """float32 [t - 1], on the CPU: -log p of every token but the first, by the model's own forward pass over this row alone.

    Args:
        module: of transformers.
        ids: int32 [t].
        more: what else its ``forward`` is given, as far as it takes that.
    """
    there = module.get_input_embeddings().weight.device
    hook = getattr(module, "_hf_hook", None)
    row = torch.as_tensor(ids.astype(np.int64), device=getattr(hook, "execution_device", None) or there)[None]
    accepted = inspect.signature(module.forward).parameters
    given = {name: value for name, value in {"use_cache": False, **more}.items() if name in accepted}
    logits = module(input_ids=row, **given).logits[0, :-1].float()
    return F.cross_entropy(logits, row[0, 1:].to(logits.device), reduction="none").cpu()


def _check_attention(config: Any, kind: str) -> None:
    """Two kinds of attention that show in long rows only."""
    if "lsh" in (getattr(config, "attn_layers", None) or ()):
        raise InputError(f"{kind} attends by random hashes: its losses of a longer row differ from call to call.")
    if config.model_type == "big_bird" and config.attention_type == "block_sparse":
        raise InputError(
            f"{kind} with block_sparse attention sees later tokens in longer rows, so it is not a causal language model. Set "
            "attention_type to original_full in its configuration."
        )


def _check_reference(module: Any, losses: Sequence[Tensor], shared: int, tolerance: float) -> None:
    kind = type(module).__name__
    if not all(bool(own.isfinite().all()) for own in losses):
        kind_of_number = str(module.dtype).removeprefix("torch.")
        raise InputError(
            f"{kind}: the loss of a row of {len(losses[0]) + 1} random tokens is not a finite number in {kind_of_number}. "
            + (
                "Its weights are damaged."
                if kind_of_number == "float32"
                else "Try --dtype float32, or look at the weights."
            )
        )
    far = float((losses[0][: shared - 1] - losses[1][: shared - 1]).abs().mean())
    if far > tolerance:
        raise InputError(
            f"{kind}: the loss of a token depends on tokens that come after it ({far:.2g} nats), so this is not a causal "
            "language model. (Of BERT's relatives, only those with is_decoder=true in their configuration are.)"
        )


def told_of(error: BaseException) -> str:
    """Kind and first line of what a library raised."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
