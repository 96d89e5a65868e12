"""Flags of a turn: what each trainer writes beside it to say whether its tokens are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instruct_prune.rows.reader import RowError

# Whether the tokens of a turn are trained: OpenAI and TRL (weight), axolotl (train, training), ms-swift and
# LLaMA-Factory (loss, loss_weight), verl and slime (loss_mask, trainable); torchtune says the opposite (masked).
TRAINED = ("weight", "train", "training", "trainable", "loss", "loss_weight", "loss_mask")
MASKED = ("masked",)
_WORDS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


def flags_of(turn: Mapping[str, Any], field: str, role: str) -> tuple[tuple[bool, ...], dict[str, Any]]:
    """What the turn says of being trained, and flags that cannot be followed as they are.

    Raises:
        RowError: a flag that is no flag, flags that contradict each other, or only a part of the turn is trained.
    """
    flags: dict[str, bool] = {}
    odd: dict[str, Any] = {}
    for key in (*TRAINED, *MASKED):
        value = turn.get(key)
        if value is None:
            continue
        number = _WORDS.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(number, bool | int | float) or number != number:
            if key == "weight":
                raise RowError(f"weight must be 0 or 1, this is {value!r}", field)
            odd[key] = value
            continue
        if number not in (0, 1):
            odd[key] = value  # followed as far as can be: it is trained, with the weight of any other turn
        flags[key] = (number > 0) != (key in MASKED)
    detail = turn.get("train_detail")
    if detail:
        pieces = {bool(piece.get("train", True)) for piece in detail if isinstance(piece, Mapping)}
        if len(pieces) != 1:
            raise RowError("train_detail trains a part of this turn; only whole turns can be scored", field)
        flags["train_detail"] = pieces.pop()
    if role not in ("assistant", "function_call"):
        return (), odd | {key: turn[key] for key, trained in flags.items() if trained and key != "train_detail"}
    if len(set(flags.values())) > 1:
        raise RowError(f"the turn says both that it is trained and that it is not: {', '.join(flags)}", field)
    return tuple(flags.values()), odd
