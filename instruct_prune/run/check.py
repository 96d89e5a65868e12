"""What can be known to be wrong before anything is read, let alone scored: told in the first second, in one message.

Nothing here imports torch, unless the user names code of his own or pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from instruct_prune.config import (
    DataConfig,
    EmbedConfig,
    EncodeConfig,
    ExportConfig,
    RunConfig,
    ScoreConfig,
    SelectConfig,
)
from instruct_prune.errors import InputError, told_together
from instruct_prune.export import check_holds, exporters_of
from instruct_prune.measure.ladder import AUTO, parse_subnets
from instruct_prune.models import names
from instruct_prune.models.sources import check_on_hub, logged_in
from instruct_prune.registry import is_reference, load_attribute
from instruct_prune.rows import Source
from instruct_prune.rows.find import is_hub_id
from instruct_prune.rows.inputs import IMAGES_AND_TEXT
from instruct_prune.run.asked import check_first, check_selection
from instruct_prune.run.by import DEFAULT, find_by, options_of, tasks_of
from instruct_prune.run.folder import RunFolder, new_run
from instruct_prune.run.ranking import (
    check_method,
    check_score_measured,
    refuse_idle_ranking,
    refuse_idle_revision,
    refuse_idle_scoring,
)
from instruct_prune.run.records import RowsFacts
from instruct_prune.run.rows import absolute, open_source, stored
from instruct_prune.run.target_facts import TargetFacts

TEMPLATES = ("auto", "alpaca", "chat", "plain")
TEXT, MODEL, TEXT_EMBEDDER = "causal_lm", "model", "all-minilm-l6-v2"


@dataclass
class Seen:
    """A first look at the data.

    Attributes:
        kind: the kind of model that the rows are for; None where that would take long to find.
        source: the data, where they were opened.
    """

    kind: str | None = None
    source: Source | None = None

    @property
    def format(self) -> str | None:
        """The rows' format, where the data were opened."""
        return None if self.source is None else self.source.format

    def look_at(self, out: str, data: DataConfig) -> None:
        """Find out what the rows are, from the run folder where it has them, else from the first rows."""
        folder = RunFolder(out) if out else None
        known = folder.record(RowsFacts) if folder is not None and folder.exists else None
        data = absolute(data)
        if folder is not None and known is not None and known.facts and known.facts.names == data.data:
            table = stored(folder, known)
            if table is not None:
                self.kind = table.facts.model_kind
                return
        on_hub = [name for name in data.data if is_hub_id(name)]
        for name in on_hub:
            check_on_hub(name, None, "--data", "dataset")
        if "-" in data.data or on_hub:
            return
        self.source = open_source(data)
        self.kind = self.source.model_kind


def check_run(config: RunConfig) -> Source | None:
    """Refuse a whole run whose options cannot work.

    Returns:
        The data, where they had to be opened to know what they are: nothing is opened twice.

    Raises:
        InputError: everything that was found, in one message.
    """
    seen = Seen()
    told_together(
        lambda: new_run(config.run.out),
        lambda: seen.look_at(config.run.out, config.data),
        lambda: check_model(config.score, seen.kind),
        lambda: check_embedder(config.embed, seen.kind),
        lambda: check_scoring(config.encode, config.score, seen.kind),
        lambda: check_selection(config.select),
        lambda: check_ranking(config.select, config.score, seen.kind),
        lambda: check_export(config.export, seen.kind, seen.format),
        lambda: check_target(config, seen.kind),
        lambda: _check_first(config, seen.kind),
    )
    return seen.source


def check_target(config: RunConfig, kind: str | None) -> None:
    """The tasks of a target and the way to compare.

    Raises:
        InputError: a file or a name is wrong, or the selection needs a target and there is none.
    """
    if config.target.target:
        told_together(
            lambda: options_of(config.select.by or DEFAULT, config.target), lambda: tasks_of(config.target, kind)
        )
        return
    if config.select.by is not None:
        find_by(config.select.by)
    known = RunFolder(config.run.out).record(TargetFacts) if config.run.out else None
    if known is None and (config.select.by is not None or config.select.method == "targeted"):
        raise InputError(
            "the selection aims at a target, and there is none: give rows that show what the model should become good at, with "
            "--target FILE."
        )


def check_score(out: str, data: DataConfig, encode: EncodeConfig, score: ScoreConfig) -> Source | None:
    """Refuse scoring whose options cannot work; returns the data as `check_run` does.

    Raises:
        InputError: everything that was found, in one message.
    """
    seen = Seen()
    told_together(
        lambda: new_run(out),
        lambda: seen.look_at(out, data),
        lambda: check_model(score, seen.kind),
        lambda: check_scoring(encode, score, seen.kind),
    )
    return seen.source


def check_model(config: ScoreConfig, kind: str | None = None) -> None:
    """The model's name: of the user's own code, an installed default, a file, or a Hub id that is there.

    Raises:
        InputError: there is no such model, or none is named and the rows need one.
    """
    if config.model is not None and is_reference(config.model):
        load_attribute(config.model, "--model")
    elif config.model is not None or kind in names.DEFAULTS:
        names.check_model(
            config.model if config.model is not None else names.DEFAULTS[str(kind)], config.model_revision
        )
    elif kind == IMAGES_AND_TEXT:
        raise InputError(names.NO_SIGHT)


def check_embedder(config: EmbedConfig, kind: str | None = None) -> None:
    """The embedder's name; "auto" is known where the kind of the rows is.

    Raises:
        InputError: there is no such embedder.
    """
    if config.embed_batch < 1:
        raise InputError(f"--embed-batch {config.embed_batch}: at least 1 row must be encoded at a time.")
    name, _, pooling = config.embedder.partition(":")
    if name == MODEL:
        if pooling:
            from instruct_prune.measure.probes import parse_probe

            parse_probe(pooling)
    elif name == "auto":
        if kind == TEXT:
            names.check_model(TEXT_EMBEDDER, option="--embedder")
    elif config.embedder.endswith(".npy"):
        if not Path(config.embedder).expanduser().is_file():
            raise InputError(f"--embedder {config.embedder}: there is no such file.")
    else:
        names.check_model(config.embedder, option="--embedder")


def check_scoring(encode: EncodeConfig, score: ScoreConfig, kind: str | None = None) -> None:
    """Template, lengths, subnets, probes.

    Raises:
        InputError: one of them is none.
    """
    told_together(
        lambda: _check_template(encode),
        lambda: _check_length(encode),
        lambda: check_batches(score),
        lambda: check_tolerance(score),
        lambda: refuse_idle_scoring(score, kind),
        lambda: refuse_idle_revision(score, kind),
        lambda: _check_probes(score),
    )


def check_ranking(select: SelectConfig, score: ScoreConfig, kind: str | None = None) -> None:
    """What the selection wants of scores: subnets that will be measured, thresholds, rows to keep.

    Raises:
        InputError: ``--score`` needs a loss that ``--subnets`` does not measure, or a value makes no sense.
    """
    told_together(
        lambda: parse_subnets(select.score_subnets) if select.score_subnets else None,
        lambda: check_score_measured(select, score, kind),
        lambda: check_method(select, score, kind),
        lambda: refuse_idle_ranking(select, score, kind),
    )


def check_export(config: ExportConfig, kind: str | None = None, row_format: str | None = None) -> None:
    """The formats, whether they can hold rows of a kind and format, and what a push needs.

    Raises:
        InputError: an unknown format, or a push without a repository or a login.
    """
    told_together(
        lambda: exporters_of(config.to),
        lambda: check_holds(config.to, kind, row_format),
        lambda: _check_push(config),
    )


def _check_first(config: RunConfig, kind: str | None) -> None:
    name = config.embed.embedder.partition(":")[0]
    if config.dedup_first:
        check_first(config.select, name == MODEL or (name == "auto" and kind not in (None, TEXT)))


def _check_push(config: ExportConfig) -> None:
    if "hub" not in config.to:
        if config.hub_repo or config.hub_public:
            raise InputError("--hub-repo and --hub-public are of --to hub, which is not asked for.")
        if config.license:
            raise InputError(f"--license {config.license} is for the dataset card of --to hub, which is not asked for.")
        return
    if not config.hub_repo:
        raise InputError("--to hub needs --hub-repo owner/name: where the dataset is pushed to.")
    if config.hub_repo.count("/") != 1:
        raise InputError(f"--hub-repo {config.hub_repo}: write owner/name.")
    if not logged_in():
        raise InputError("--to hub: nobody is logged in to the Hub. Log in with a token that may write: hf auth login")


def _check_template(encode: EncodeConfig) -> None:
    if encode.template not in TEMPLATES and not Path(encode.template).expanduser().is_file():
        raise InputError(
            f"--template {encode.template}: give {', '.join(TEMPLATES)}, or the path of a Jinja file; there is no such file."
        )


def _check_length(encode: EncodeConfig) -> None:
    if encode.max_length is not None and encode.max_length < 2:
        raise InputError(f"--max-length {encode.max_length}: at least 2 tokens are needed to score one of them.")


def check_batches(score: ScoreConfig) -> None:
    """``--batch-tokens`` and ``--image-size``; InputError where one of them is below one."""
    if score.batch_tokens is not None and score.batch_tokens < 1:
        raise InputError(f"--batch-tokens {score.batch_tokens}: at least 1 token (or picture) must fit in a batch.")
    if score.image_size is not None and score.image_size < 1:
        raise InputError(f"--image-size {score.image_size}: a picture has at least 1 pixel a side.")


def check_tolerance(score: ScoreConfig) -> None:
    """``--tolerance``, which is for ``--subnets auto`` alone.

    Raises:
        InputError: it is no correlation, or there is no pilot that it could be for.
    """
    if not 0 < score.tolerance <= 1:
        raise InputError(f"--tolerance {score.tolerance:g}: a rank correlation above 0, at most 1 (0.98 is usual).")
    if score.tolerance != ScoreConfig().tolerance and AUTO not in score.subnets:
        raise InputError(f"--tolerance {score.tolerance:g} is for --subnets auto: other ladders save no pass.")


def _check_probes(score: ScoreConfig) -> None:
    if score.probes:
        from instruct_prune.measure.probes import parse_probe

        for text in score.probes:
            parse_probe(text)
