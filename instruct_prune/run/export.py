"""Export: the kept rows, exactly as they came, and in trainers' formats."""

from __future__ import annotations

from pathlib import Path

from instruct_prune.config import ExportConfig
from instruct_prune.errors import InputError
from instruct_prune.export import Exported, ExportJob, KeptSamples, export_selection
from instruct_prune.export.hub import inherited_license
from instruct_prune.export.own_format import write_own_format
from instruct_prune.export.rows import write_pruned
from instruct_prune.rows import Source, read_raw
from instruct_prune.run.encode import encoder_of, source_of
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.image_strata import is_image_run
from instruct_prune.run.images import export_images
from instruct_prune.select.data import Selection
from instruct_prune.storage import row_ids_hash, sha256_of


def export(folder: RunFolder, config: ExportConfig) -> Path:
    """Write ``pruned.jsonl`` (kept rows, input order), the same in the input's own format, and what ``to`` asks for.

    Raises:
        InputError: there is no selection, the data changed, an unknown format or one that cannot hold the rows.
    """
    if is_image_run(folder):
        return export_images(folder, config)
    stage = folder.require("select", f"select --out {folder.path} --keep ...")
    selection = folder.read_selection()
    source = source_of(folder)
    assert isinstance(source, Source)
    target = folder / "pruned.jsonl"
    written = write_pruned(read_raw(source, selection.kept.tolist()), target)
    if written != stage["accounting"]["kept"]:
        raise AssertionError(f"{written} rows were written, {stage['accounting']['kept']} were kept")
    kept = KeptSamples(source, selection.kept)
    data = folder.stage("encode")["data"]
    own = []
    if source.kind not in ("jsonl", "mixed"):
        own = write_own_format(kept, source.kind, folder.path, split=data["data_split"], subset=data["data_subset"])
    told = [f"in the input's own format: {path}" for path in own]
    if config.to:
        done = export_selection(config.to, _job(folder, config, selection, source, kept))
        told += [line for one in done for line in _tell(one)]
    folder.begin("export", {"selected": row_ids_hash(selection.kept), "to": list(config.to)}, restart=True)
    folder.finish("export", rows=written, sha256=sha256_of(target), told=told)
    return target


def _job(folder: RunFolder, config: ExportConfig, selection: Selection, source: Source, kept: KeptSamples) -> ExportJob:
    if "hub" in config.to and not config.hub_repo:
        raise InputError("--to hub needs --hub-repo owner/name: where the dataset is pushed to.")
    encoded = folder.stage("encode")
    model = encoded["model"]["name"]
    encoder = encoder_of(folder, source)
    accounting = folder.stage("select")["accounting"]
    return ExportJob(
        samples=kept,
        folder=folder.path,
        name=f"{Path(source.files[0]).stem}-pruned",
        template=encoded["config"]["template"],
        model=model,
        max_length=encoded["config"]["max_length"],
        kind=source.kind,
        turns=encoded["config"]["turns"],
        render=encoder.render,
        bos=encoder.bos,
        eos=encoded["tokenizer"]["eos_token"] or "",
        split=encoded["data"]["data_split"],
        subset=encoded["data"]["data_subset"],
        license=config.license or inherited_license(source.files, source.kind),
        facts={
            "method": selection.method,
            "score": str(folder.stage("select")["score"]),
            "scored with": model,
            "kept": f"{accounting['kept']} of {accounting['scored']} rows",
        },
        hub_repo=config.hub_repo,
        hub_private=not config.hub_public,
    )


def _tell(one: Exported) -> list[str]:
    lines = [f"{one.to}: {one.rows} rows in {', '.join(str(path) for path in one.paths)}"]
    if one.left_out:
        lines.append(f"  {one.left_out} rows cannot be expressed in it; they are listed in {one.left_out_file}")
    return lines + [f"  {note}" for note in one.notes]
