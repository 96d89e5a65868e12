"""ms-swift 4.6: the scored text without a template of ms-swift's.

Read in template/base.py (``_swift_encode``, ``_get_std_messages``), loss_scale/base.py and cli/main.py.
"""

from __future__ import annotations

from typing import Any

from instruct_prune.export import stanzas
from instruct_prune.export.job import CannotExpressError, Exported, ExportJob, write_json_rows
from instruct_prune.export.scored import pieces_of
from instruct_prune.rows.row import Row

COMMAND = "swift sft swift.yaml"


def swift(job: ExportJob) -> Exported:
    """``swift/swift.yaml`` and its data file.

    With ``use_chat_template: false`` ms-swift puts one question and one answer together as they are. What comes after the
    first learnt piece goes as further pieces of this answer, each of which says whether it is learnt (``loss``).

    Raises:
        InputError: none can be written so.
    """
    folder = job.folder / "swift"
    target, config = folder / f"{job.slug}.jsonl", folder / "swift.yaml"

    def convert(sample: Row) -> dict[str, Any]:
        (prompt, learnt), *answer = pieces_of(job, sample, opened=False)
        if learnt:
            raise CannotExpressError("the row has no prompt")
        said = [{"role": "assistant", "content": text, "loss": learnt} for text, learnt in answer]
        return {"messages": [{"role": "user", "content": prompt, "loss": False}, *said]}

    notes = (f"run in {folder}: {COMMAND}", *((f"not exactly what was scored: {job.parted}",) if job.parted else ()))
    exported = write_json_rows(job, "swift", target, convert, (config,), notes)
    data = {"dataset": [target.name], "use_chat_template": False}
    stanzas.write_yaml(config, stanzas.for_swift(job, data), COMMAND)
    return exported
