"""Load and encode: every row is read and tokenized once, into ``RUN/tokens``."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from instruct_prune.arrays import Int64
from instruct_prune.config import DataConfig, EncodeConfig, InspectCommand
from instruct_prune.encode.item import Encoded, Status
from instruct_prune.encode.store import write_store
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.errors import InputError
from instruct_prune.models import names as models
from instruct_prune.progress import Progress, say
from instruct_prune.report.inspect import Inspection, inspect_data
from instruct_prune.rows import Source, open_data
from instruct_prune.rows.row import Reject, Row
from instruct_prune.rows.table import reject_line
from instruct_prune.run.folder import RunFolder
from instruct_prune.storage import atomic

ENCODE_BATCH = 2048


class Rows(Protocol):
    """What the end of a run asks of the encoded rows, tokens or images."""

    @property
    def folder(self) -> Path: ...
    @property
    def row_id(self) -> Int64: ...
    def text_columns(self, *names: str) -> tuple[list[str], ...]: ...


def open_image_data(data: DataConfig) -> Source | None:
    """The data as images, or None where they are text."""
    if "-" in data.data:  # standard input is read once, and never names pictures
        return None
    source = open_source(data)
    return source if source.model_kind == "image_encoder" else None


def open_source(data: DataConfig) -> Source:
    if not data.data:
        raise InputError("--data is missing: name a dataset file (JSON, JSONL, CSV, Parquet), a folder or a Hub id.")
    return open_data(
        data.data,
        format=data.format,
        columns=data.column_map(),
        limit=data.limit,
        strict=data.strict,
        split=data.data_split,
        subset=data.data_subset,
    )


def make_encoder(source: Source, config: EncodeConfig, model: models.ModelSource, tokenizer: Any) -> Encoder:
    """The encoder of a dataset for a model.

    Raises:
        InputError: an impossible --max-length, a template that does not exist or does not fit the data or the tokenizer.
    """
    if config.max_length is not None and config.max_length < 2:
        raise InputError(
            f"--max-length {config.max_length}: a row needs at least two tokens, one of them to be predicted."
        )
    context = models.context_length(model)
    return Encoder(
        tokenizer,
        config.template,
        max_length=min(config.max_length or context, context),
        turns=config.turns,
        overlong=config.overlong,
        data_format=source.format,
    )


def encoder_of(folder: RunFolder, source: Source) -> Encoder:
    """The encoder of a run, as its manifest says."""
    stage = folder.require("encode", f"score --data ... --out {folder.path}")
    model = models.find_model(stage["model"]["name"], stage["model"]["revision"])
    return make_encoder(source, EncodeConfig(**stage["options"]), model, models.load_tokenizer(model))


def inspect(config: InspectCommand) -> Inspection:
    """What would be scored: nothing is written.

    Raises:
        InputError: as `encode`.
    """
    if open_image_data(config.data) is not None:
        raise InputError(
            "inspect looks at text. For images, `instruct-prune score --dry-run` decodes them and tells the plan."
        )
    source = open_source(config.data)
    model = models.find_model(config.model, config.model_revision)
    return inspect_data(source, make_encoder(source, config.encode, model, models.load_tokenizer(model)))


def source_of(folder: RunFolder) -> Source:
    """The data of a run, opened again as its manifest says, and unchanged since."""
    stage = folder.require("encode", "score --data ... --out " + str(folder.path))
    facts: dict[str, Any] = dict(stage["data"])
    facts |= {key: tuple(value) for key, value in facts.items() if isinstance(value, list)}
    data = DataConfig(**facts)
    source = (open_image_data(data) if stage.get("images") else None) or open_source(data)
    now = [entry.get("sha256") for entry in source.identity()]
    then = [entry.get("sha256") for entry in stage["inputs"]]
    if now != then:
        raise InputError(
            f"{', '.join(source.files)}: the data changed since it was scored (another SHA-256). Score it anew in another --out."
        )
    return source


def encode(folder: RunFolder, data: DataConfig, config: EncodeConfig, model: models.ModelSource, restart: bool) -> None:
    """Tokenize every row once into ``RUN/tokens``; rows that cannot be scored are listed in ``rejected.jsonl``."""
    data = _lasting(folder, data)
    source = open_source(data)
    say(f"data: {source.description}")
    tokenizer = models.load_tokenizer(model)
    encoder = make_encoder(source, config, model, tokenizer)
    inputs = source.identity()
    options = {k: v for k, v in dataclasses.asdict(data).items() if k not in ("data", "strict")}
    tokens = {k: v for k, v in encoder.identity.items() if k != "tokenizer"}  # a path; the hash is what counts
    identity = {"inputs": [entry.get("sha256") or entry for entry in inputs], **options, **tokens}
    if folder.begin("encode", identity, restart):
        say("encode: done before, skipped")
        return
    began = time.monotonic()
    say(f"template: {encoder.template_name}")
    counts = {"read": 0, "rejected": 0}
    rejects = folder / "tokens" / "rejects.jsonl"
    with Progress("encoding", None, "rows") as progress, atomic(rejects, "w") as listed:
        store = write_store(folder / "tokens", _encoded(source, encoder, counts, listed, progress))
    list_rejected(folder, store, store.status_names)
    facts = {
        "data": dataclasses.asdict(data),
        "inputs": inputs,
        "description": source.description,
        "kind": source.kind,
        "model": {"name": model.name, "revision": model.revision},
        "options": dataclasses.asdict(config),
        "notes": list(encoder.notes),
        "tokenizer": {
            name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "bos_token", "eos_token")
        },
        "accounting": {**counts, "encoded": len(store), "scorable": int(store.scorable.sum())},
        "seconds": round(time.monotonic() - began, 3),
    }
    if counts["read"] != counts["rejected"] + len(store):
        raise AssertionError(f"rows were lost in encoding: {counts}, {len(store)} stored")
    if not store.scorable.any():
        raise InputError(
            f"{', '.join(source.files)}: none of the {counts['read']} rows can be scored. {_first_reasons(folder)}"
        )
    for note in encoder.notes:
        say(f"note: {note}")
    folder.finish("encode", **facts)


def _encoded(
    source: Source, encoder: Encoder, counts: dict[str, int], listed: Any, progress: Progress
) -> Iterator[tuple[Encoded, str, int]]:
    """Tokenize in batches; write rejects to ``listed`` on the way."""
    waiting: list[Row] = []

    def flush() -> Iterator[tuple[Encoded, str, int]]:
        for sample, row in zip(waiting, encoder.encode(waiting), strict=True):
            yield row, sample.source, sample.line
        progress.advance(len(waiting), len(waiting))
        waiting.clear()

    for row in source:
        counts["read"] += 1
        if isinstance(row, Reject):
            counts["rejected"] += 1
            listed.write(json.dumps(reject_line(row)) + "\n")
            continue
        waiting.append(row)
        if len(waiting) == ENCODE_BATCH:
            yield from flush()
    yield from flush()


def list_rejected(folder: RunFolder, store: Rows, status: Any, errors: Mapping[int, str] | None = None) -> None:
    """Write ``rejected.jsonl``: rows that could not be read, then rows that carry no score, each with its reason."""
    unscored = [i for i, name in enumerate(status) if not Status(name).scored]
    sources, lines, reasons = store.text_columns("source", "line", "reason") if unscored else ([], [], [])
    with atomic(folder / "rejected.jsonl") as file:
        file.write((store.folder / "rejects.jsonl").read_bytes())
        for i in unscored:
            reason = (errors or {}).get(i) or reasons[i] or str(status[i]).replace("_", " ")
            entry = Reject(int(store.row_id[i]), sources[i], int(lines[i]), reason, status=str(status[i]))
            file.write((json.dumps(reject_line(entry)) + "\n").encode())


def _first_reasons(folder: RunFolder) -> str:
    with open(folder / "rejected.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(3), file, strict=False)]
    told = "; ".join(f"{row['file']}, line {row['line']}: {row['reason']}" for row in rows)
    return f"The first: {told}. All are listed in {folder / 'rejected.jsonl'}."


def _lasting(folder: RunFolder, data: DataConfig) -> DataConfig:
    """Paths made absolute, so that later commands find them; standard input copied into the run folder."""
    if "-" in data.data:
        target = folder / "stdin.jsonl"
        if not target.exists():
            with atomic(target) as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        return dataclasses.replace(data, data=tuple(str(target.resolve()) if d == "-" else d for d in data.data))
    return dataclasses.replace(data, data=tuple(os.path.abspath(d) if os.path.exists(d) else d for d in data.data))
