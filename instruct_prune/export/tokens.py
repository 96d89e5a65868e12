"""The tokens and labels of the kept rows, exactly as they were scored: no trainer writes or masks anything again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instruct_prune.arrays import batched
from instruct_prune.errors import InputError
from instruct_prune.export import stanzas
from instruct_prune.export.job import Exported, ExportJob, KeptTokens
from instruct_prune.rows.arrow_tables import KeptTable, write_parquet_table
from instruct_prune.rows.saved import save_dataset

if TYPE_CHECKING:
    import pyarrow as pa

IGNORED = -100  # the label that torch's cross entropy and all trainers leave out
BATCH_ROWS = 512
FOR_TRL = {"datasets": [{"path": "parquet", "data_files": "tokens.parquet", "split": "train"}]}


def tokens(job: ExportJob) -> Exported:
    """``tokens/``: input_ids, attention_mask and labels, with a configuration for each trainer that takes them.

    ``tokens.parquet`` has the row ids too. ``dataset`` is a saved ``datasets`` folder without them, because
    LLaMA-Factory hands every column on to the model.

    Raises:
        InputError: the rows are no text, or show pictures.
    """
    folder = job.folder / "tokens"
    kept = tokens_of(job, "tokens")
    table, rows = write_tokens(job, "tokens", folder)
    dataset, _ = write_dataset(job, "tokens", folder)
    # LLaMA-Factory wants a dataset and a template named, and reads neither when there is a tokenized_path.
    data = {"dataset": job.slug, "tokenized_path": "dataset", "template": "empty"}
    configs = {
        "trl.yaml": (stanzas.for_trl(job, FOR_TRL), "trl sft --config trl.yaml"),
        "llamafactory.yaml": (stanzas.for_llamafactory(job, data, "sft"), "llamafactory-cli train llamafactory.yaml"),
        "axolotl.yaml": (stanzas.for_axolotl(job, {"path": "dataset"}), "axolotl train axolotl.yaml"),
    }
    for name, (stanza, command) in configs.items():
        stanzas.write_yaml(folder / name, stanza, command)
    paths = (table, dataset, *(folder / name for name in configs))
    notes: tuple[str, ...] = (f"they are tokens of {job.model}: train this model, or one with the same tokenizer",)
    if kept.n_truncated:
        notes += (f"{kept.n_truncated} rows are cut to {job.text.max_length} tokens, as they were scored",)
    return Exported("tokens", paths, rows, notes=notes)


def tokens_of(job: ExportJob, to: str) -> KeptTokens:
    """The tokens of the kept rows.

    Raises:
        InputError: the rows have none, or tokens are not all that the model is given of them.
    """
    if job.tokens is None or job.survey.pictures:
        raise InputError(
            f"--to {to}: these rows show pictures, and tokens cannot hold those. Use --to disk or pruned.jsonl, and for "
            "conversations --to trl, llamafactory, llava or messages."
        )
    return job.tokens


def write_tokens(job: ExportJob, to: str, folder: Path) -> tuple[Path, int]:
    """Write ``tokens.parquet`` for trainers that ignore the row ids; return its path and the number of rows."""
    target = folder / "tokens.parquet"
    return target, write_parquet_table(token_table(tokens_of(job, to), row_ids=True), target)


def write_dataset(job: ExportJob, to: str, folder: Path) -> tuple[Path, int]:
    """Write the ``datasets`` folder ``dataset`` for trainers that take no other columns; as `write_tokens`."""
    target = folder / "dataset"
    return target, save_dataset(token_table(tokens_of(job, to), row_ids=False), target)


def token_table(kept: KeptTokens, *, row_ids: bool) -> KeptTable:
    """Rows of input_ids (int32), attention_mask (int8) and labels (int32), -100 where a token is not a target."""
    import datasets

    columns = {"row_id": datasets.Value("int64")} if row_ids else {}
    for name, kind in (("input_ids", "int32"), ("attention_mask", "int8"), ("labels", "int32")):
        columns[name] = datasets.List(datasets.Value(kind))
    schema = datasets.Features(columns).arrow_schema

    def chunks() -> Iterator[pa.Table]:
        import pyarrow as pa

        for batch in batched(kept, BATCH_ROWS):
            items = [each for _, each in batch]
            offsets = np.cumsum([0, *(len(each.ids) for each in items)]).astype(np.int32)
            ids = np.concatenate([each.ids for each in items]).astype(np.int32)
            mask = np.concatenate([each.response_mask for each in items])
            values = [ids, np.ones(len(ids), np.int8), np.where(mask, ids, np.int32(IGNORED))]
            arrays = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(each)) for each in values]
            arrays = [pa.array([row_id for row_id, _ in batch], pa.int64()), *arrays] if row_ids else arrays
            yield pa.table(arrays, names=schema.names).cast(schema)

    return KeptTable(schema, chunks)
