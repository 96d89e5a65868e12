"""Encode: every row becomes what the model is given of it, once, in ``RUN/items``."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.item import Status
from instruct_prune.encode.rendering import Counts
from instruct_prune.errors import InputError
from instruct_prune.measure.ranks import Ranks
from instruct_prune.models import MODELS
from instruct_prune.models.model import Items, Model
from instruct_prune.progress import Progress, say
from instruct_prune.registry import class_name, is_reference, load_attribute, own_code, resolve
from instruct_prune.rows.row import Reject, Row
from instruct_prune.rows.table import RowTable, first_rejects, reject_line
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EncodeFacts, RowsFacts, ScoreFacts
from instruct_prune.storage import atomic


def make_model(
    config: ScoreConfig, encode: EncodeConfig, model_kind: str, data_format: str, loaded: Any = None
) -> Model:
    """The model for rows of a kind; no weights are read yet.

    Args:
        config: the model's name and how it is run.
        encode: how rows become items.
        model_kind: a name in MODELS, or the user's own kind as ``module:Class``.
        data_format: of the rows.
        loaded: a model made in Python, in place of what the name stands for.

    Raises:
        InputError: no such kind or model, or an option that it does not have.
    """
    kind: Any = None
    if config.model is not None and is_reference(config.model):
        kind = load_attribute(config.model, "--model")  # a kind, or a factory that the kind of the rows calls
    if not _is_kind(kind):
        kind = resolve(MODELS, model_kind, "kind of model", "a subclass of instruct_prune.Model", _is_kind)
    missing = sorted(kind.__abstractmethods__)
    if missing:
        raise InputError(f"the kind of model {kind.__module__}:{kind.__name__} does not define {', '.join(missing)}.")
    model: Model = kind(config, encode, data_format, loaded)
    return model


def _is_kind(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Model)


def model_of(folder: RunFolder) -> Model:
    """The model of a run, without its weights: the one that scored it, or that is to.

    Raises:
        InputError: rows are not encoded, or there is no such model any more.
    """
    folder.require(RowsFacts)
    rows, options = RowTable.open(folder / "rows").facts, EncodeConfig(**folder.facts(EncodeFacts).options)
    name, revision = folder.scored_by()
    config = ScoreConfig(model=name, model_revision=revision)
    try:
        return make_model(config, options, rows.model_kind, rows.format, folder.loaded)
    except InputError as error:
        if not name.isidentifier():
            raise
        raise InputError(
            f"{error} If {name} was made in Python, call Run.score with it first, in the same program; what is measured is not "
            "measured again."
        ) from None


def check_unchanged(model: Model, scored: Mapping[str, Any]) -> None:
    """Refuse to measure more of a run by a model that is not what it was.

    Args:
        model: by the name of the one that scored.
        scored: the options that the run was scored under.

    Raises:
        InputError: its files, or its weights in memory, are others than those that scored.
    """
    then, now = scored.get("model", {}), dict(model.identity)
    if any(then.get(key) != now.get(key) for key in ("name", "content", "revision")):
        raise InputError(
            f"the model {model.name} is not what it was when it scored these rows: its weights or files have changed since. Put "
            "them back, or score the rows anew with --restart score."
        )


def encode(
    folder: RunFolder,
    table: RowTable,
    model: Model,
    config: ScoreConfig,
    options: EncodeConfig,
    strict: bool,
    ranks: Ranks,
) -> None:
    """Write every row's item; rows that cannot be scored are listed in ``rejected.jsonl``.

    All processes come here. Where the model can put parts together, each takes a part of the rows; else the main one does it alone.

    Raises:
        InputError: the folder holds items of another encoding, or no row can be scored.
    """

    def begin() -> bool:
        identity = {"kind": type(model).__name__, **model.encoding, **own_code([class_name(model)], "--model")}
        return folder.begin(EncodeFacts, identity, (RowsFacts,), restart=config.restart == "encode")

    if ranks.on_main(begin):
        if ranks.is_main:
            say("encode: done before, skipped")
        return
    began = time.monotonic()
    if ranks.world > 1 and model.splits:
        _write_in_parts(folder, table, model, strict, ranks)
    else:
        ranks.on_main(lambda: _write(folder / "items", table, len(table), model, strict))
    ranks.on_main(lambda: _finish(folder, table, model, config, options, began))


def _write(items: Path, rows: Iterable[Row], n: int, model: Model, strict: bool, shown: bool = True) -> None:
    with Progress("encoding", n, "rows", shown) as progress:
        model.write_items(items, rows, lambda done: progress.advance(done, done), strict)


def _write_in_parts(folder: RunFolder, table: RowTable, model: Model, strict: bool, ranks: Ranks) -> None:
    """Each process writes the items of its part; the progress that is shown is that of the main one."""
    parts = folder / "parts" / "encode"

    def own() -> Counts:
        row_id = np.array_split(table.row_id, ranks.world)[ranks.rank]
        _write(parts / str(ranks.rank), table.take(row_id), len(row_id), model, strict, ranks.is_main)
        return model.counts

    counts = ranks.on_all(own)
    ranks.on_main(lambda: model.join_items(folder / "items", [parts / str(r) for r in range(ranks.world)], counts))
    if ranks.is_main:
        shutil.rmtree(parts, ignore_errors=True)


def _finish(
    folder: RunFolder, table: RowTable, model: Model, config: ScoreConfig, options: EncodeConfig, began: float
) -> None:
    items = model.open_items(folder / "items")
    if not _listed_with_scores(folder):
        list_rejected(folder, items, items.status_names)
    if len(items) != len(table):
        raise AssertionError(f"rows were lost in encoding: {len(table)} read, {len(items)} encoded")
    if not items.scorable.any():
        listed = folder / "rejected.jsonl"
        raise InputError(
            f"{', '.join(table.facts.files)}: none of the {table.facts.read} rows can be scored. {first_rejects(listed)} All are "
            f"listed in {listed}."
        )
    for note in model.notes:
        say(f"note: {note}")
    folder.finish(
        EncodeFacts(
            model=model.name,
            revision=config.model_revision,
            options=dataclasses.asdict(options),
            encoded=len(items),
            scorable=int(items.scorable.sum()),
            notes=tuple(model.notes),
            seconds=round(time.monotonic() - began, 3),
        ),
        "items/**/*",
    )


def _listed_with_scores(folder: RunFolder) -> bool:
    """Whether scoring has listed the rejected rows already, those that failed then among them, and only items are made again."""
    encoded, scored = folder.record(EncodeFacts), folder.record(ScoreFacts)
    return (
        encoded is not None
        and scored is not None
        and scored.facts is not None
        and scored.inputs["encode"] == encoded.fingerprint
        and (folder / "rejected.jsonl").exists()
    )


def list_rejected(
    folder: RunFolder, items: Items, status: Sequence[str] | NDArray[np.str_], errors: Mapping[int, str] | None = None
) -> None:
    """Write ``rejected.jsonl``: rows that could not be read, then rows that carry no score, each with its reason."""
    listed = [one.value for one in Status if not one.scored and one is not Status.SET_ASIDE]
    unscored = np.flatnonzero(np.isin(status, listed)).tolist()
    sources, lines, reasons = items.text_columns("source", "line", "reason") if unscored else ([], [], [])
    with atomic(folder / "rejected.jsonl") as file:
        file.write((folder / "rows" / "rejects.jsonl").read_bytes())
        for i in unscored:
            reason = (errors or {}).get(i) or reasons[i] or str(status[i]).replace("_", " ")
            entry = Reject(int(items.row_id[i]), sources[i], int(lines[i]), reason, status=str(status[i]))
            file.write((json.dumps(reject_line(entry)) + "\n").encode())
