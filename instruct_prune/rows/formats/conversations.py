"""Turns: ShareGPT's, the messages of OpenAI, TRL and the Hub; and a prompt with what follows it, as text or as turns.

The latter are TRL's prompt-completion, and preference pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from instruct_prune.rows.formats.format import SYSTEM, TOOLS, Fields, Format, Parsed, opening, tools, user
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import Message
from instruct_prune.rows.turns import messages_of, transcript


def _conversation(*names: str) -> Callable[[Fields], Parsed]:
    def parse(fields: Fields) -> Parsed:
        name = fields.required(*names)
        said = messages_of(fields.get(name), name)
        if not any(message.role == "system" for message in said):
            said = opening(fields, "system", "system_prompt") + said
        return checked(said, name), tools(fields)

    return parse


def checked(said: list[Message], field: str) -> list[Message]:
    """The turns, among which there must be one of the assistant."""
    if not any(message.role == "assistant" for message in said):
        raise RowError("the conversation has no assistant turn", field)
    return said


MESSAGES = Format(
    "messages",
    (("messages",),),
    ("prompt", *TOOLS, *SYSTEM),
    _conversation("messages"),
    structures=("messages", *TOOLS),
)
SHAREGPT = Format(
    "sharegpt",
    (("conversations", "conversation"),),
    (*TOOLS, *SYSTEM),
    _conversation("conversations", "conversation"),
    structures=("conversations", "conversation", *TOOLS),
)


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
    return answered(fields, "chosen"), tools(fields)


def answered(fields: Fields, which: str) -> list[Message]:
    """The conversation of a preference row with one of its two answers, which alone is trained.

    Args:
        fields: the row.
        which: "chosen" or "rejected".

    Raises:
        RowError: the row has no such conversation.
    """
    prompt, answer = _prompt(fields), fields.get(fields.required(which))
    if isinstance(answer, str):
        told = transcript(answer) if not prompt else None
        if told is None and not prompt:
            raise RowError(f"there is no field 'prompt', and {which!r} is not a dialogue", "prompt")
        return _last_trained(told or [*prompt, Message("assistant", answer)], which)
    said = messages_of([answer] if isinstance(answer, Mapping) else answer, which)
    if prompt and said and said[0].role == "assistant":
        said = prompt + said
    elif prompt:  # UltraFeedback: 'chosen' is the whole conversation and 'prompt' repeats its beginning
        said = [message for message in prompt if message.role == "system" and said[0].role != "system"] + said
    return _last_trained(said, which)


def _last_trained(said: list[Message], which: str) -> list[Message]:
    """Only the last answer was chosen or rejected; those before it are the prompt."""
    last = max((i for i, message in enumerate(said) if message.role == "assistant"), default=-1)
    return checked([replace(message, trained=i == last) for i, message in enumerate(said)], which)


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
