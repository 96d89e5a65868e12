"""What `Run` says of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunFacts:
    """How the rows of a scored text run were read, written and scored.

    Attributes:
        model: the scoring model's name.
        model_revision: of a Hub model.
        template: name of the template, or path of its Jinja file.
        template_sha256: hash of its text.
        max_length: tokens of a row at most.
        turns, overlong: as in EncodeConfig.
        format: the format of the rows that was asked for, None where it was detected.
        columns: the column mapping, as "name=column".
        pictures: whether rows may show pictures.
    """

    model: str
    model_revision: str | None
    template: str
    template_sha256: str
    max_length: int
    turns: Literal["all", "last"]
    overlong: Literal["truncate", "drop"]
    format: str | None
    columns: tuple[str, ...]
    pictures: bool = False
