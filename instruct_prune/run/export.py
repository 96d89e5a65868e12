"""Export: the kept rows, exactly as they came, and in trainers' formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from instruct_prune.arrays import Int64
from instruct_prune.config import ExportConfig
from instruct_prune.encode.store import TokenStore
from instruct_prune.export import Exported, ExportJob, export_selection
from instruct_prune.export.hub import inherited_license
from instruct_prune.export.job import KeptTokens
from instruct_prune.export.own_format import write_own_format, write_pruned
from instruct_prune.models.names import name_for_trainers
from instruct_prune.progress import say
from instruct_prune.rows.row import Row
from instruct_prune.rows.table import RowTable
from instruct_prune.run.check import check_export
from instruct_prune.run.encode import model_of
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.lock import writes
from instruct_prune.run.records import ExportFacts, ScoreFacts, SelectFacts
from instruct_prune.run.rows import rows_of
from instruct_prune.run.select import selection_of
from instruct_prune.select.data import Selection
from instruct_prune.storage import sha256_of


@writes
def export(folder: RunFolder, config: ExportConfig) -> Path:
    """Write ``pruned.jsonl`` (kept rows, input order), the same in the input's own format, and what ``to`` asks for.

    Raises:
        InputError: there is no selection, the data changed, an unknown format or one that cannot hold the rows.
    """
    check_export(config)
    chosen = folder.facts(SelectFacts)
    selection = selection_of(folder)
    table = rows_of(folder)
    known = folder.record(ExportFacts)
    before = known.facts.held if known is not None and known.facts is not None else {}
    options = {"to": list(config.to), "selected": chosen.selected_hash}
    folder.begin(ExportFacts, options, (SelectFacts,), replace=True)
    target = folder / "pruned.jsonl"
    written = write_pruned(table.raw(selection.kept), target)
    if written != chosen.kept:
        raise AssertionError(f"{written} rows were written, {chosen.kept} were kept")
    read, kept = table.facts, Kept(table, selection.kept)
    split, subset = read.opened_with.get("split"), read.opened_with.get("subset")
    own = write_own_format(kept, read.kind, folder.path, split=split, subset=subset)
    told = [f"in the input's own format: {path}" for path in own]
    if config.to:
        done = export_selection(config.to, _job(folder, config, selection, kept))
        told += [line for one in done for line in _tell(one)]
    sha256 = sha256_of(target)
    held = {**before, **dict.fromkeys(config.to, sha256)}
    folder.finish(ExportFacts(rows=written, sha256=sha256, told=tuple(told), held=held), "pruned.jsonl")
    earlier = [name for name, rows in held.items() if rows != sha256]
    if earlier:
        say(
            f"note: what --to {' '.join(earlier)} wrote into {folder.path} is of an earlier selection, and was not written again: "
            f"instruct-prune export {folder.path} --to {' '.join(earlier)}"
        )
    return target


class Kept:
    """The kept rows in input order; iterate as often as needed."""

    def __init__(self, table: RowTable, row_id: Int64) -> None:
        self.table, self.row_id = table, row_id

    def __iter__(self) -> Iterator[Row]:
        return self.table.take(self.row_id)


def _job(folder: RunFolder, config: ExportConfig, selection: Selection, kept: Kept) -> ExportJob:
    source, chosen, scored = kept.table.facts, folder.facts(SelectFacts), folder.facts(ScoreFacts)
    model = model_of(folder)
    loaded = "" if folder.loaded is None else str(getattr(folder.loaded[0], "name_or_path", ""))
    items = model.open_items(folder / "items")
    return ExportJob(
        samples=kept,
        folder=folder.path,
        name=f"{Path(source.files[0]).stem}-pruned",
        model=name_for_trainers(loaded or scored.model),
        revision=None if loaded else folder.scored_by()[1],
        writing=model.writing(),
        tokens=KeptTokens(items, selection.kept) if isinstance(items, TokenStore) else None,
        model_kind=source.model_kind,
        format=source.format,
        columns=source.opened_with.get("columns") or {},
        kind=source.kind,
        split=source.opened_with.get("split"),
        subset=source.opened_with.get("subset"),
        license=config.license or inherited_license(source.files, source.kind),
        facts={
            "method": selection.method,
            "score": chosen.score,
            "scored with": scored.model,
            "kept": f"{chosen.kept} of {chosen.scored} rows",
        },
        hub_repo=config.hub_repo,
        hub_private=not config.hub_public,
    )


def _tell(one: Exported) -> list[str]:
    lines = [f"{one.to}: {one.rows} rows in {', '.join(str(path) for path in one.paths)}"]
    if one.left_out:
        lines.append(f"  {one.left_out} rows cannot be expressed in it; they are listed in {one.left_out_file}")
    return lines + [f"  {note}" for note in one.notes]
