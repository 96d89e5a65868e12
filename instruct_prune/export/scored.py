"""The text that was scored, as pieces for trainers: what stands there, and what is learnt of it."""

from __future__ import annotations

from itertools import groupby

from instruct_prune.errors import InputError
from instruct_prune.export.job import CannotExpressError, ExportJob
from instruct_prune.rows.row import Row

Piece = tuple[str, bool]


def pieces_of(job: ExportJob, sample: Row, *, opened: bool) -> list[Piece]:
    """The scored text of a row in runs of (text, is it learnt), without what follows the last learnt run.

    What follows it (a line break of the chat template, as a rule) is never a target, so nothing is learnt less.

    Args:
        job: says how rows are written.
        sample: the row.
        opened: begin with what stands before every text (BOS), for trainers whose tokenizer is told to add nothing;
            without it for those whose tokenizer adds it by itself.

    Raises:
        CannotExpressError: the template cannot write the row, or the trainer would put something before it that was not
            scored.
    """
    if any(message.images for message in sample.messages):
        raise CannotExpressError("the row shows pictures, and this format holds its text alone")
    try:
        said = job.text.render(sample)
    except InputError as error:
        raise CannotExpressError(str(error)) from None
    pieces = [("".join(text for text, _ in run), learnt) for learnt, run in groupby(said, lambda piece: piece[1])]
    if pieces and not pieces[-1][1]:
        pieces.pop()
    if not pieces:
        raise CannotExpressError("nothing of the row is learnt")
    text, learnt = pieces[0]
    if opened:
        text = job.text.bos + text
    elif not job.text.bos and job.text.added:  # a template that writes its specials itself
        if not text.startswith(job.text.added):
            raise CannotExpressError(
                f"the trainer's tokenizer puts {job.text.added!r} before it, which was not there when it was scored"
            )
        text = text.removeprefix(job.text.added)
    return [(text, learnt), *pieces[1:]]


def prompt_and_answer(job: ExportJob, sample: Row, *, opened: bool) -> tuple[str, str]:
    """The text before the one answer that is learnt, and that answer with its end token.

    Raises:
        CannotExpressError: the row has several learnt answers, or nothing before its answer.
    """
    pieces = pieces_of(job, sample, opened=opened)
    if len(pieces) > 2:
        raise CannotExpressError("several answers of the row are learnt")
    if len(pieces) < 2:
        raise CannotExpressError("the row has no prompt")
    return pieces[0][0], pieces[1][0]


def pair_of(job: ExportJob, sample: Row, *, opened: bool) -> dict[str, str]:
    """``prompt``, ``chosen`` and ``rejected`` answer of a preference row, as the template writes them.

    Raises:
        CannotExpressError: the row is no pair, or its two answers do not answer the same prompt.
    """
    prompt, chosen = prompt_and_answer(job, sample, opened=opened)
    other, rejected = prompt_and_answer(job, job.rejected(sample), opened=opened)
    if prompt != other:
        raise CannotExpressError("the chosen and the rejected answer follow different prompts")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
