"""Inspect: what would be scored? Nothing is written."""

from __future__ import annotations

from instruct_prune.command_options import InspectCommand
from instruct_prune.config import ScoreConfig
from instruct_prune.errors import InputError
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.report.inspect import Inspection, inspect_data
from instruct_prune.run.check import check_model
from instruct_prune.run.encode import make_model
from instruct_prune.run.rows import open_source


def inspect(config: InspectCommand) -> Inspection:
    """Look at the rows as the model would be given them.

    Raises:
        InputError: as the stages that read and encode; or the rows are not text.
    """
    source = open_source(config.data)
    score = ScoreConfig(model=config.model, model_revision=config.model_revision)
    check_model(score, source.model_kind)
    model = make_model(score, config.encode, source.model_kind, source.format)
    if not isinstance(model, CausalLM):
        raise InputError(
            f"inspect looks at text, and these rows are for {type(model).__name__}. `instruct-prune score --dry-run` reads "
            "and encodes them and tells the plan."
        )
    return inspect_data(source, model.encoder, encode=model.encode)
