"""A prompt and what follows it, as text or as turns: TRL's prompt-completion, and preference pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from instruct_prune.rows.formats.conversations import checked
from instruct_prune.rows.formats.format import SYSTEM, TOOLS, Fields, Format, Parsed, opening, tools, user
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import Message
from instruct_prune.rows.turns import messages_of, transcript


def _prompt(fields: Fields) -> list[Message]:
    """What stands before a completion: a list of turns, or text in one field or in Alpaca's."""
    name = fields.present("prompt", "conversations", "question", "instruction")
    if name is None:
        return []
    if not isinstance(fields.get(name), str):
        said = [replace(message, trained=False) for message in messages_of(fields.get(name), name)]
        return said if said and said[0].role == "system" else opening(fields, "system", "system_prompt") + said
    return [*opening(fields, "system", "system_prompt"), user(fields, [name], fields.text("input", required=False))]


def _prompt_completion(fields: Fields) -> Parsed:
    said = _prompt(fields)
    if not said:
        fields.text("prompt")  # raises, saying why
    completion = fields.get("completion")
    if completion is None or isinstance(completion, str):
        said.append(Message("assistant", fields.text("completion"), trained=True))
    else:
        said += messages_of(completion, "completion")
    return checked(said, "completion"), tools(fields)


def _preference(fields: Fields) -> Parsed:
    prompt, chosen = _prompt(fields), fields.get("chosen")
    if chosen is None:
        fields.text("chosen")  # raises
    if isinstance(chosen, str):
        told = transcript(chosen) if not prompt else None
        if told is None and not prompt:
            raise RowError("there is no field 'prompt', and 'chosen' is not a dialogue", "prompt")
        return _last_trained(told or [*prompt, Message("assistant", chosen)]), ()
    said = messages_of([chosen] if isinstance(chosen, Mapping) else chosen, "chosen")
    if prompt and said and said[0].role == "assistant":
        said = prompt + said
    elif prompt:  # UltraFeedback: 'chosen' is the whole conversation and 'prompt' repeats its beginning
        said = [message for message in prompt if message.role == "system" and said[0].role != "system"] + said
    return _last_trained(said), tools(fields)


def _last_trained(said: list[Message]) -> list[Message]:
    """Only the last answer was chosen; those before it are the prompt."""
    last = max((i for i, message in enumerate(said) if message.role == "assistant"), default=-1)
    return checked([replace(message, trained=i == last) for i, message in enumerate(said)], "chosen")


PROMPT_COMPLETION = Format(
    "prompt-completion",
    (("prompt",), ("completion",)),
    (*TOOLS, *SYSTEM),
    _prompt_completion,
    structures=TOOLS,
    turns=("prompt", "completion"),
    said_as_turns="prompt",
)
PREFERENCE = Format(
    "preference",
    (("chosen",), ("rejected",)),
    ("prompt", "conversations", "question", "instruction", "input", *TOOLS, *SYSTEM),
    _preference,
    structures=("conversations", *TOOLS),
    turns=("prompt", "chosen", "rejected"),
    said_as_turns="chosen",
)
