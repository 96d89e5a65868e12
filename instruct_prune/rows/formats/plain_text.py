"""Plain language modelling: a field of text, all of it learnt."""

from __future__ import annotations

from instruct_prune.rows.formats.format import Fields, Format, Parsed
from instruct_prune.rows.row import Message


def _text(fields: Fields) -> Parsed:
    return [Message("text", fields.text("text"), trained=True)], ()


TEXT = Format("text", (("text",),), (), _text)
