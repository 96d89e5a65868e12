"""What of a row the model sees. A view is a function (item, model) -> item."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from instruct_prune.arrays import Int32, Int64
from instruct_prune.encode.item import Tokens
from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import ALONE, BLIND
from instruct_prune.models.model import Items, Model
from instruct_prune.registry import load_attribute

View = Callable[[Any, Model], Any]


def alone(item: Any, model: Model) -> Tokens:
    """The response without its prompt, for IFD: the row's first token where that is a BOS, then the response tokens.

    Without a BOS the first response token has no context, so it is no target (docs/method.md, section 1).

    Raises:
        InputError: the items are no tokens.
    """
    if not isinstance(item, Tokens):
        raise InputError(
            f"the view {ALONE!r} of --subnets (and so ifd) is for texts that a tokenizer encodes. Leave it out."
        )
    ids = item.ids[item.response_mask]
    if len(item.ids) and item.ids[0] == getattr(model, "bos_token_id", None):
        ids = np.concatenate([item.ids[:1], ids]).astype(np.int32)
    mask = np.ones(len(ids), dtype=bool)
    mask[:1] = False
    return Tokens(ids, mask)


def view_of(name: str) -> View:
    """The function of a view's name."""
    if name == ALONE:
        return alone
    if name == BLIND:  # VisNec, arXiv 2603.01195
        return lambda item, model: model.blind(item)
    found: View = load_attribute(name, "--subnets")
    return found


class Viewed:
    """All items as a view shows them, made when they are asked for."""

    def __init__(self, items: Items, view: View, model: Model) -> None:
        self._items, self._view, self._model = items, view, model

    def __getitem__(self, i: int) -> Any:
        return self._view(self._items[i], self._model)

    @cached_property
    def lengths(self) -> Int32:
        """int32 [n]: what each scorable row costs; 0 for the others, and where nothing is left to predict."""
        found = np.zeros(len(self._items), dtype=np.int32)
        for i in np.flatnonzero(self._items.scorable):
            item = self[int(i)]
            if not isinstance(item, Tokens) or item.response_mask[1:].any():
                found[i] = self._model.cost(item)
        return found

    def rows(self, rows: Int64) -> Int64:
        """The rows of which enough is left to predict something: a picture, or a response token after another token."""
        return rows[self.lengths[rows] > 0]
