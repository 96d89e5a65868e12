"""Push to the Hugging Face Hub: a Parquet file and a dataset card that claims nothing it does not know."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.export.job import Exported, ExportJob
from instruct_prune.export.tables import table_of
from instruct_prune.rows.arrow_tables import write_parquet_table
from instruct_prune.storage import atomic

DATA_FILE = "data/train-00000-of-00001.parquet"


def hub(job: ExportJob, api: Any = None) -> Exported:
    """Write ``hub/`` (Parquet and README.md) and upload it.

    Args:
        job: what to push, with ``hub_repo``.
        api: a ``huggingface_hub.HfApi``.

    Raises:
        InputError: no repository is named, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    if not job.hub_repo or job.hub_repo.count("/") != 1:
        raise InputError(f"--to hub: name the repository as owner/name with --hub-repo (it is {job.hub_repo!r}).")
    folder = job.folder / "hub"
    shutil.rmtree(folder, ignore_errors=True)
    rows = write_parquet_table(table_of(job), folder / DATA_FILE)
    with atomic(folder / "README.md", "w") as file:
        file.write(card(job, rows))
    api = api or HfApi()
    try:
        api.create_repo(job.hub_repo, repo_type="dataset", private=job.hub_private, exist_ok=True)
        api.upload_folder(
            repo_id=job.hub_repo,
            repo_type="dataset",
            folder_path=str(folder),
            commit_message=f"Pruned set of {rows} rows",
        )
    except hub_errors() as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"--to hub: {job.hub_repo} could not be pushed: {reason} Log in with a token that may write (`hf auth login`), "
            f"and check the name and the network. What would have been pushed lies in {folder}."
        ) from None
    visibility = "private" if job.hub_private else "public"
    return Exported("hub", (folder,), rows, notes=(f"pushed to {job.hub_repo} ({visibility} if it was new)",))


def card(job: ExportJob, rows: int) -> str:
    """The dataset card: metadata, what was done, and the licence only where the source states one."""
    from huggingface_hub import DatasetCardData

    metadata = DatasetCardData(
        license=job.license,
        tags=["instruct-prune", "data-selection"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    facts = {"rows": f"{rows:,}", **job.facts}
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items()]
    licence = (
        f"`{_cell(job.license)}`, inherited from the source."
        if job.license
        else "not stated by the source of these rows; whoever publishes them has to find out and say it here."
    )
    return "\n".join(
        (
            f"---\n{metadata.to_yaml()}\n---",
            f"# {_cell(job.name)}, pruned",
            "",
            "The part of an instruction-tuning set that was kept by instruct-prune (learning complexity, arXiv 2402.05356). "
            "The rows are as they were in the source.",
            "",
            "| | |",
            "|---|---|",
            *lines,
            "",
            f"License: {licence}",
            "",
        )
    )


def inherited_license(sources: Sequence[str], kind: str, api: Any = None) -> str | None:
    """The licence that all source datasets state on the Hub; None for local files, where it is unknown, or they differ."""
    from huggingface_hub import HfApi

    if kind != "hub":
        return None
    api = api or HfApi()
    try:
        cards = [api.dataset_info(source).card_data for source in sources]
    except hub_errors():  # not reachable: then it is not known
        return None
    stated = [card.get("license") if card is not None else None for card in cards]
    return stated[0] if all(isinstance(name, str) and name == stated[0] for name in stated) else None


def hub_errors() -> tuple[type[BaseException], ...]:
    """What the Hub's client raises for refusals, bad names, missing tokens and a missing network."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The HTTP library below it has changed over time (requests, httpx); its base error is that of this class.
    return (*HfHubHTTPError.__bases__, OSError, HFValidationError)


def _cell(text: str) -> str:
    """Text that cannot leave its table cell or carry markup."""
    flat = " ".join(str(text).split())
    return "".join("\\" + c if c in "\\|<>[]`*_" else c for c in flat)
