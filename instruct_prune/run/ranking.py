"""What a selection will go by: whether it is measured, and whether what the user gave changes anything; a name is used or refused.

Nothing here imports torch, unless the rows are pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from instruct_prune.config import ScoreConfig, SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.measure.ladder import PRESETS, parse_subnets, score_name_of
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models import MODELS, names
from instruct_prune.registry import is_reference, resolve
from instruct_prune.rows.inputs import TEXT
from instruct_prune.run.asked import method_of
from instruct_prune.score.columns import ADAPTED, LABEL, LOSS
from instruct_prune.score.scores import LADDER, find_score
from instruct_prune.select.methods import LOSSES

MASKED = ("magnitude", "random")
SEEDED = ("random", "dropout")


def check_score_measured(select: SelectConfig, score: ScoreConfig, kind: str | None) -> None:
    """What the score is made of.

    Raises:
        InputError: ``--subnets`` does not measure it, or rows of this kind do not have it.
    """
    if select.score is None:
        return
    found = find_score(select.score)
    needs = found.needs_of(found.parse(select.score_param, "--score-param"))
    if LABEL in needs and kind == TEXT:
        raise InputError(f"--score {select.score} goes by the classes of labelled pictures, and the rows are texts.")
    ladder = ladder_of(score, kind)
    if ladder is None:
        return
    measured = {LOSS + spec.name for spec in ladder}
    if any(name.startswith(ADAPTED) for name in measured):
        measured.add(ADAPTED)  # any adapter will do
    missing = [need for need in needs if need.startswith(LOSS) and need not in measured]
    if missing:
        wanted = "an adapter" if missing[0] == ADAPTED else repr(missing[0].removeprefix(LOSS))
        raise InputError(
            f"--score {select.score} needs the loss under {wanted}, which --subnets "
            f"{' '.join(score.subnets)} does not measure. Name it there too, or a preset that measures it."
        )


def check_method(select: SelectConfig, score: ScoreConfig, kind: str | None) -> None:
    """The losses that the method reads.

    Raises:
        InputError: ``--subnets`` does not measure one of them.
    """
    ladder = ladder_of(score, kind)
    if ladder is None:
        return
    method, params = method_of(select)
    measured = {LOSSES + spec.name for spec in ladder}
    missing = [need for need in method.needs_of(params) if need.startswith(LOSSES) and need not in measured]
    if missing:
        raise InputError(
            f"{method} needs the loss under {missing[0].removeprefix(LOSSES)!r}, which --subnets {' '.join(score.subnets)} does not "
            "measure. Name it there too, or a preset that measures it."
        )


def refuse_idle_average(
    config: SelectConfig, score: str, ladder: Sequence[SubnetSpec], collapsed: Sequence[str]
) -> None:
    """What says how subnets are averaged, where they are not.

    Args:
        config: the options.
        score: the score that the selection goes by.
        ladder: the subnets that are measured, or will be.
        collapsed: names of those that are known to have collapsed.

    Raises:
        InputError: a score that averages nothing, a subnet that is not measured, not averaged, or collapsed, or weights that
            do not fit the subnets.
    """
    given = {"--score-subnets": config.score_subnets, "--score-weights": config.score_weights,
             "--include-collapsed": config.include_collapsed}  # fmt: skip
    flags = [flag for flag, value in given.items() if value]
    found = find_score(score)
    declared = callable(found.needs) or found.needs  # a function that declares nothing may average
    if flags and declared and LADDER not in found.needs_of(found.parse(config.score_param, "--score-param")):
        raise InputError(
            f"{' and '.join(flags)}: the score {score!r} is no average over subnets. Name one that is: --score dlc"
        )
    named = parse_subnets(config.score_subnets) if config.score_subnets else ()
    for spec in named:
        if spec not in ladder:
            there = ", ".join(dict.fromkeys(each.name for each in ladder))
            raise InputError(f"--score-subnets: {spec.name!r} is not measured; --subnets measures {there}.")
        if not spec.is_averaged:
            raise InputError(f"--score-subnets: losses under {spec.name!r} are not averaged with others. Leave it out.")
        if spec.name in collapsed and not config.include_collapsed:
            raise InputError(
                f"--score-subnets: {spec.name!r} has collapsed, so it is left out. Leave it out of the list, or give --include-collapsed."
            )
    averaged = named or tuple(spec for spec in ladder if spec.is_averaged)
    if config.score_weights and len(config.score_weights) != len(averaged):
        raise InputError(
            f"--score-weights: {len(config.score_weights)} weights for {len(averaged)} subnets; give one for each."
        )


def ladder_of(score: ScoreConfig, kind: str | None) -> tuple[SubnetSpec, ...] | None:
    """The subnets that will be measured; None where they depend on a kind of model that is not known yet."""
    if kind is None or (score.model is not None and is_reference(score.model)):
        return None
    own = {} if kind == TEXT else resolve(MODELS, kind, "kind of model").ladders
    return parse_subnets(score.subnets, score.subnet_seeds, {**PRESETS, **own})


def refuse_idle_ranking(select: SelectConfig, score: ScoreConfig, kind: str | None) -> None:
    """As `refuse_idle_average`, for a run that is to be scored; only of texts are the presets known.

    Raises:
        InputError: likewise.
    """
    ladder = ladder_of(score, kind)
    if ladder is not None and kind == TEXT:
        refuse_idle_average(select, select.score or score_name_of(score.subnets), ladder, ())


def refuse_idle_scoring(score: ScoreConfig, kind: str | None) -> None:
    """Options of scoring that no subnet goes by, and those of pictures for texts.

    Raises:
        InputError: one of them is given and would change nothing.
    """
    ladder = ladder_of(score, kind)
    if ladder is None:
        return
    own = any(":" in spec.kind for spec in ladder)
    if score.subnet_seeds > 1 and not (own or any(spec.kind in SEEDED for spec in ladder)):
        raise InputError(
            f"--subnet-seeds {score.subnet_seeds} is for random and dropout subnets; --subnets {' '.join(score.subnets)} has none."
        )
    if score.include_head and not (own or any(spec.kind in MASKED for spec in ladder)):
        raise InputError(
            f"--include-head is for subnets with masked weights; --subnets {' '.join(score.subnets)} has none."
        )
    if score.image_size is not None and kind == TEXT:
        raise InputError(f"--image-size {score.image_size}: the rows are texts, without pictures. Leave it out.")


def refuse_idle_revision(score: ScoreConfig, kind: str | None) -> None:
    """``--model-revision`` for a model that is not on the Hub.

    Raises:
        InputError: the model lies on this machine, or is the user's own.
    """
    name = score.model if score.model is not None else names.DEFAULTS.get(str(kind))
    if score.model_revision is None or name is None:
        return
    if is_reference(name) or names.locate(name).is_local:
        raise InputError(
            f"--model-revision {score.model_revision} names a commit, tag or branch on the Hub, and {name} is not there. Leave it out."
        )
