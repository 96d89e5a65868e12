"""The run folder in Python: the same stages, options and files as the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_prune.config import DataConfig, EmbedConfig, EncodeConfig, ExportConfig, ScoreConfig, SelectConfig
from instruct_prune.rows.row import Row
from instruct_prune.run.folder import RunFolder
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Selection

if TYPE_CHECKING:
    import datasets


class Run:
    """One run folder.

    Example:
        >>> run = Run("RUN")
        >>> scores = run.score(DataConfig("alpaca.jsonl"), ScoreConfig(model="Qwen/Qwen3-0.6B"))
        >>> run.embed()
        >>> selection = run.select(SelectConfig(keep=0.3))
        >>> pruned = run.export()

    Args:
        out: the folder; made on first use.

    Raises:
        InputError: (every method too) something given is wrong; the message says what to do.
    """

    def __init__(self, out: str | Path) -> None:
        self.folder = RunFolder(out)

    def score(
        self, data: DataConfig, score: ScoreConfig | None = None, encode: EncodeConfig | None = None
    ) -> ScoreTable | None:
        """Losses of every row under every subnet; resumes, and is skipped when done. None off the main process.

        Raises:
            IncompleteRunError: parts are missing; call again to complete.
        """
        from instruct_prune.run.score import score as stage

        return stage(self.folder, data, encode or EncodeConfig(), score or ScoreConfig())

    def embed(self, embed: EmbedConfig | None = None) -> None:
        """Write ``embeddings.npy``."""
        from instruct_prune.run.embed import embed as stage

        stage(self.folder, embed or EmbedConfig())

    def select(self, select: SelectConfig) -> Selection:
        """Draw an exact budget; needs no model, may be called many times."""
        from instruct_prune.run.select import select as stage

        return stage(self.folder, select)

    def export(self, export: ExportConfig | None = None) -> Path:
        """Write ``pruned.jsonl`` and return its path."""
        from instruct_prune.run.export import export as stage

        return stage(self.folder, export or ExportConfig())

    def samples(self) -> Iterator[Row]:
        """The rows of the data that could be read, in input order."""
        from instruct_prune.run.rows import rows_of

        return iter(rows_of(self.folder))

    def kept(self) -> datasets.Dataset:
        """The pruned rows as a ``datasets`` table.

        Raises:
            InputError: nothing was exported, or another selection was made since.
        """
        import json

        import datasets

        from instruct_prune.run.records import ExportFacts

        self.folder.require(ExportFacts)
        with open(self.folder / "pruned.jsonl", "rb") as file:
            return datasets.Dataset.from_list([json.loads(line) for line in file])
