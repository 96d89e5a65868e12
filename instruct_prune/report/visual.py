"""What the report says of pictures beside text: how much each row's picture helps, and where it misleads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instruct_prune.measure.subnet import BLIND, DENSE, SubnetSpec
from instruct_prune.report.tables import Tables

LISTED = 200
"""Rows that a picture misleads, or helps most, that are listed; all of them are counted."""
HARDLY = 0.05
"""Nats per response token below which a picture is hardly needed."""


@dataclass(frozen=True)
class VisualNumbers:
    """The loss without the pictures less the loss with them, ``visual`` (docs/multimodal.md).

    Attributes:
        rows: that have it, and show a picture.
        misleads: how many are below 0.
        hardly: how many lie from 0 to HARDLY.
        needed: the others.
        median: of all of them.
        lowest: (row id, visual) of those below 0, the lowest first.
        highest: the same of those that need their picture most.
    """

    rows: int
    misleads: int
    hardly: int
    needed: int
    median: float
    lowest: list[tuple[int, float]]
    highest: list[tuple[int, float]]


def visual_numbers(tables: Tables) -> VisualNumbers | None:
    """What the losses say of pictures; None where the view ``blind`` was not measured."""
    blind = SubnetSpec(DENSE.kind, view=BLIND)
    if blind not in tables.subnets or DENSE not in tables.subnets:
        return None
    visual = tables.losses[:, tables.subnets.index(blind)] - tables.losses[:, tables.subnets.index(DENSE)]
    there = np.flatnonzero(np.isfinite(visual) & (visual != 0))  # a row without pictures has twice the same loss
    order = there[np.argsort(visual[there], kind="stable")]
    listed = [(int(tables.row_id[at]), float(visual[at])) for at in order.tolist()]
    misleads, hardly = int((visual[there] < 0).sum()), int((visual[there] < HARDLY).sum())
    return VisualNumbers(
        rows=len(there),
        misleads=misleads,
        hardly=hardly - misleads,
        needed=len(there) - hardly,
        median=float(np.median(visual[there])) if len(there) else float("nan"),
        lowest=listed[: min(misleads, LISTED)],
        highest=listed[max(misleads, len(listed) - LISTED // 4) :][::-1],
    )
