"""Conversations that show pictures, as trainers read them: LLaVA, LLaMA-Factory's ShareGPT with ``images``, TRL's messages.

Read in LLaVA's train/train.py, LLaMA-Factory's data/converter.py and data/mm_plugin.py, TRL's data_utils.py and sft_trainer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_prune.arrays import batched
from instruct_prune.errors import InputError
from instruct_prune.export import stanzas
from instruct_prune.export.conversations import check_masks, mask_notes, messages_row, sharegpt_row
from instruct_prune.export.job import CannotExpressError, Exported, ExportJob, write_json_rows
from instruct_prune.rows.arrow_tables import KeptTable, write_parquet_table
from instruct_prune.rows.pictures import MARK
from instruct_prune.rows.row import ImageRef, Message, Row, suffix_of
from instruct_prune.storage import atomic, make_folder, write_json

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256
TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip


def pictures_of(sample: Row) -> list[ImageRef]:
    """The pictures of a row, in order."""
    return [picture for message in sample.messages for picture in message.images]


def marked(sample: Row) -> Row:
    """The row with ``<image>`` in its text where a picture stands.

    Raises:
        CannotExpressError: its text holds such a mark that is no picture's.
    """

    def written(message: Message) -> Message:
        if MARK in message.text or MARK in message.context:
            raise CannotExpressError(f"its text holds {MARK}, which stands for a picture here")
        if not message.images:
            return message
        return replace(message, content=message.marked(MARK))

    return replace(sample, messages=tuple(map(written, sample.messages)))


def files_in(folder: Path) -> Callable[[Row], list[str]]:
    """A function of a row: where its pictures lie, as absolute paths. Those that lay inside a table are written to the folder."""

    def files(sample: Row) -> list[str]:
        found = []
        for number, picture in enumerate(pictures_of(sample)):
            path = Path(picture.path)
            if picture.data is not None:
                make_folder(folder)
                path = folder / f"{sample.row_id:07d}-{number}{suffix_of(picture.data)}"
                path.write_bytes(picture.data)
            found.append(str(path.absolute()))
        return found

    return files


def llava(job: ExportJob) -> Exported:
    """``llava/NAME.json``: LLaVA's conversations, with ``image`` (a list of paths where a row shows several pictures).

    Raises:
        InputError: no row can be written so.
    """
    folder = job.folder / "llava"
    files = files_in(folder / "pictures")

    def convert(sample: Row) -> dict[str, Any]:
        check_masks(job, sample)
        said = sharegpt_row(marked(sample), tools=False)
        if sample.tools or any(turn["from"] not in ("human", "gpt") for turn in said["conversations"]):
            raise CannotExpressError("LLaVA's rows have no place for tools")
        if said["system"]:
            raise CannotExpressError("LLaVA's rows have no place for a system message")
        shown = files(sample)
        image = {} if not shown else {"image": shown[0] if len(shown) == 1 else shown}
        return {"id": str(sample.row_id), **image, "conversations": said["conversations"]}

    lines, target = folder / f"{job.slug}.jsonl", folder / f"{job.slug}.json"
    exported = write_json_rows(job, "llava", lines, convert, notes=mask_notes(job))
    with open(lines, "rb") as rows, atomic(target) as file:  # LLaVA's loader takes an array
        file.write(b"[\n" + b",\n".join(row.rstrip() for row in rows) + b"\n]\n")
    lines.unlink()
    return replace(exported, paths=(target,))


def llamafactory(job: ExportJob) -> Exported:
    """``llamafactory/``: conversations with ``images``, and the ``dataset_info.json`` that names every column.

    LLaMA-Factory's template decides how a picture is written, so the text that was scored cannot be given as it is.

    Raises:
        InputError: no row can be written so.
    """
    folder, found = job.folder / "llamafactory", job.survey
    target, files = folder / f"{job.slug}.jsonl", files_in(folder / "pictures")

    def convert(sample: Row) -> dict[str, Any]:
        check_masks(job, sample)
        return {**sharegpt_row(marked(sample), tools=found.tools > 0), "images": files(sample)}

    columns = {"messages": "conversations", "system": "system", "images": "images"}
    columns |= {"tools": "tools"} if found.tools else {}
    notes = (f"train with the template of your model: template: qwen2_vl (or llava, ...), dataset_dir: {folder}",)
    exported = write_json_rows(
        job, "llamafactory", target, convert, (folder / "dataset_info.json",), (*notes, *mask_notes(job))
    )
    entry = {"file_name": target.name, "formatting": "sharegpt", "columns": columns, "tags": TAGS}
    write_json(folder / "dataset_info.json", {job.slug: entry})
    return exported


def trl(job: ExportJob) -> Exported:
    """``trl/NAME.parquet`` and ``trl.yaml``: ``images``, and prompt and completion where only last turns are learnt, else ``messages``.

    The processor's chat template writes the rows, as it did when they were scored.

    Raises:
        InputError: a row calls tools beside its pictures.
    """
    folder, last = job.folder / "trl", job.survey.last_only
    target, config = folder / f"{job.slug}.parquet", folder / "trl.yaml"
    make_folder(folder)
    rows = write_parquet_table(_messages_table(job, last), target)
    data: dict[str, Any] = {"datasets": [{"path": "parquet", "data_files": target.name, "split": "train"}]}
    if not last:
        data["assistant_only_loss"] = True
    command = "trl sft --config trl.yaml"
    stanza = stanzas.for_trl(job, data)
    stanzas.write_yaml(config, {**stanza, "max_length": None}, command)  # TRL would cut inside a picture
    notes: tuple[str, ...] = (f"run in {folder}: {command}",)
    if not last:
        notes += ("several turns are learnt, which TRL does only under chat templates with {% generation %}",)
    if job.survey.untrained and not last:
        notes += ("turns that were not scored are trained by TRL all the same",)
    return Exported("trl", (target, config), rows, notes=notes)


def turns_of(sample: Row, turns: list[dict[str, Any]], files: Iterator[str] | None) -> Iterator[dict[str, Any]]:
    """The turns with content as parts; parts that show a picture name its file where there are ``files``."""
    for message, turn in zip(sample.messages, turns, strict=True):
        if not message.images and files is not None:
            yield turn
            continue
        content = message.content if message.images else turn["content"] or ""
        parts: list[dict[str, str]] = []
        for part in [content] if isinstance(content, str) else [part.value for part in content]:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
            else:
                parts.append({"type": "image"} | ({} if files is None else {"image": next(files)}))
        if message.images and message.context.strip():
            parts.append({"type": "text", "text": f"\n{message.context}"})
        yield {**turn, "content": parts}


def _messages_table(job: ExportJob, last: bool) -> KeptTable:
    import datasets

    part = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    turns = datasets.List({"role": datasets.Value("string"), "content": datasets.List(part)})
    names = ("prompt", "completion") if last else ("messages",)
    features = datasets.Features({**dict.fromkeys(names, turns), "images": datasets.List(datasets.Image())})

    def chunks() -> Iterator[pa.Table]:
        for batch in batched(job.samples, BATCH_ROWS):
            made = [_messages(sample, last) for sample in batch]
            yield datasets.Dataset.from_list(made, features=features).data.table.cast(features.arrow_schema)

    return KeptTable(features.arrow_schema, chunks)


def _messages(sample: Row, last: bool) -> dict[str, Any]:
    if sample.tools or any(m.tool_calls or m.role == "tool" for m in sample.messages):
        raise InputError(f"--to trl: row {sample.row_id} calls tools beside its pictures, which this file cannot hold.")
    turns = [
        {"role": t["role"], "content": t["content"]}
        for t in turns_of(sample, messages_row(sample, set(), pictures=True)["messages"], None)
    ]
    said: Mapping[str, Any] = {"prompt": turns[:-1], "completion": turns[-1:]} if last else {"messages": turns}
    images = [{"bytes": p.data, "path": p.path if p.data is None else None} for p in pictures_of(sample)]
    return {**said, "images": images}
