"""The run folder in Python: the same stages, options and files as the command line."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_prune.config import (
    DataConfig,
    EmbedConfig,
    EncodeConfig,
    ExportConfig,
    ScoreConfig,
    SelectConfig,
    TargetConfig,
)
from instruct_prune.errors import InputError
from instruct_prune.rows.inputs import IMAGES_AND_TEXT
from instruct_prune.rows.row import Row
from instruct_prune.rows.table import RowTable
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.own_facts import RunFacts
from instruct_prune.run.records import EncodeFacts, ExportFacts, RowsFacts, ScoreFacts
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Selection

if TYPE_CHECKING:
    import datasets

    from instruct_prune.encode.tokenize import Encoder
    from instruct_prune.models.vision_language import VisionLanguage
    from instruct_prune.prove.config import ProveConfig


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
        self,
        data: DataConfig | str | Sequence[Mapping[str, Any]] | datasets.Dataset,
        score: ScoreConfig | None = None,
        encode: EncodeConfig | None = None,
        *,
        model: tuple[Any, Any] | None = None,
        embed: EmbedConfig | None = None,
        dedup_first: SelectConfig | None = None,
    ) -> ScoreTable | None:
        """Losses of every row under every subnet; resumes, and is skipped when done. None off the main process.

        Args:
            data: what to read: options, the path of a file, a list of dictionaries, or a ``datasets.Dataset``.
            score: the model's name and its subnets.
            encode: how rows become tokens.
            model: a model that is loaded already, in place of the name: (a causal language model of transformers, its
                tokenizer), or its processor where rows show pictures, or for pictures alone (a module, its transform). It is
                used as it is: dtype and device are its own. Later stages of this `Run` take it too.
            embed: the embedding that will follow, so that vectors of the model itself are read in the same passes.
            dedup_first: the selection that will follow: rows that it takes out as near-duplicates, or because they repeat a
                test, are found first and not scored.

        Raises:
            IncompleteRunError: parts are missing; call again to complete.
        """
        from instruct_prune.run.score import Scoring

        if isinstance(data, str | Path):
            data = DataConfig((str(data),))
        named, memory = (data, None) if isinstance(data, DataConfig) else (DataConfig(), data)
        encode, score, first = encode or EncodeConfig(), score or ScoreConfig(), dedup_first is not None
        scoring = Scoring(self.folder, named, encode, score, dedup_first, embed, memory, model, dedup_first=first)
        table = scoring.run()
        if table is not None:
            self.folder.loaded = model
        return table

    def embed(self, embed: EmbedConfig | None = None, restart: bool = False) -> None:
        """Write ``embeddings.npy``; with ``restart``, in place of the vectors that are there."""
        from instruct_prune.run.embed import embed as stage

        stage(self._existing, embed or EmbedConfig(), restart)

    def target(self, target: TargetConfig | str, by: str | None = None) -> None:
        """Measure rows that show what the model should become good at, for `select`; the pool is not scored again.

        Args:
            target: its files, or one file.
            by: how rows are compared: "rds" (when None), "gradient", "embedding", "drop" or "shown"; what was measured before stays.
        """
        from instruct_prune.run.target import target as stage

        stage(self.folder, TargetConfig((target,)) if isinstance(target, str) else target, by)

    def select(self, select: SelectConfig) -> Selection:
        """Draw an exact budget; needs no model, may be called many times."""
        from instruct_prune.run.select import select as stage

        return stage(self.folder, select)

    def prove(self, prove: ProveConfig | None = None) -> dict[str, Any] | None:
        """Train on the selection and on random rows, and judge: what ``prove.json`` says. None off the main process."""
        from instruct_prune.prove.config import ProveConfig
        from instruct_prune.run.prove import prove as stage

        return stage(self._existing, prove or ProveConfig())

    def export(self, export: ExportConfig | None = None) -> Path:
        """Write ``pruned.jsonl`` and return its path."""
        from instruct_prune.run.export import export as stage

        return stage(self.folder, export or ExportConfig())

    def report(self, *beside: Run, samples: int = 5000) -> Path:
        """Write ``report.html`` and return its path.

        Args:
            beside: further runs over the same data, put beside this one.
            samples: rows whose text is in the page.
        """
        from instruct_prune.run.pipeline import report as write

        return write(self._existing, [run._existing for run in beside], samples)

    def samples(self) -> Iterator[Row]:
        """The rows of the data that could be read, in input order."""
        from instruct_prune.run.rows import rows_of

        return iter(rows_of(self._existing))

    @property
    def scores(self) -> ScoreTable:
        """The table of a scored run."""
        self.folder.require(ScoreFacts)
        return self.folder.read_scores()

    @property
    def selection(self) -> Selection:
        """The selection of the run; refused when it is stale."""
        from instruct_prune.run.select import selection_of

        return selection_of(self._existing)

    @property
    def model(self) -> str:
        """Name of the scoring model."""
        return self._existing.facts(ScoreFacts).model

    @property
    def facts(self) -> RunFacts:
        """How the rows were read, written and scored.

        Raises:
            InputError: nothing is scored here, or rows that are no text are.
        """
        rows, encode = self._existing.require(RowsFacts), self.folder.require(EncodeFacts)
        config, facts = encode.config, encode.facts
        assert facts is not None
        if "template" not in config:
            raise InputError(
                f"{self.folder.path} is a run over pictures, which have no template and no tokens. Name a run over text."
            )
        names = ("template", "template_sha256", "max_length", "turns", "overlong")
        return RunFacts(
            model=self.model,
            model_revision=self.folder.scored_by()[1],
            format=rows.config["format"],
            columns=tuple(rows.config["columns"]),
            pictures=RowTable.open(self.folder / "rows").facts.model_kind == IMAGES_AND_TEXT,
            **{name: config[name] for name in names},
        )

    def encoder(
        self,
        model: str | None = None,
        revision: str | None = None,
        *,
        max_length: int | None = None,
        data_format: str | None = None,
        other_template: bool = False,
    ) -> Encoder | VisionLanguage:
        """The run's encoder: ``encode(rows)`` gives the tokens and masks that were scored; of rows that show pictures, a model's own.

        Args:
            model: whose tokenizer; the scoring model's when None.
            revision: of a Hub model.
            max_length: tokens of a row at most, when other than the run's; never more than the model takes.
            data_format: of the rows that will be encoded, where they are others than the run's.
            other_template: let the template's text be another than the one that the rows were scored under.

        Raises:
            InputError: the run is over pictures, there is no such model, or its chat template is another text.
        """
        from instruct_prune.models.causal_lm import CausalLM
        from instruct_prune.models.vision_language import VisionLanguage

        facts = self.facts
        name = model or facts.model
        scoring = ScoreConfig(model=name, model_revision=revision if model else facts.model_revision)
        loaded = self.folder.loaded if model is None else None
        options = EncodeConfig(facts.template, max_length or facts.max_length, facts.turns, facts.overlong)
        reads = (VisionLanguage if facts.pictures else CausalLM)(scoring, options, data_format, loaded)
        if facts.template_sha256 != reads.encoder.identity["template_sha256"] and not other_template:
            raise InputError(
                f"the template {facts.template!r} is not the text that {self.folder.path} was scored under (another SHA-256): "
                f"the chat template of {name} differs from that of {facts.model}, or the file was changed. Train "
                f"{facts.model}, score with the model that is trained, or pass --other-template to train under the other text "
                "knowingly."
            )
        return reads if isinstance(reads, VisionLanguage) else reads.encoder

    def rows(self, kept: bool | None = True) -> Iterator[Row]:
        """Scored rows in input order.

        Args:
            kept: True for those that the selection keeps, False for those that it drops, None for all.

        Raises:
            InputError: nothing is scored or selected, the selection is stale, or the data changed.
        """
        from instruct_prune.run.rows import rows_of

        rows = rows_of(self._existing)
        if kept is None:
            return rows.take(self.scores.row_id[self.scores.scored])
        return rows.take(self.selection.row_id[self.selection.selected == kept])

    def kept(self) -> datasets.Dataset:
        """The pruned rows, as export() wrote them, as a ``datasets`` table.

        Raises:
            InputError: nothing is exported, or the selection is another one since.
        """
        from instruct_prune.export.tables import dataset_of

        self._existing.require(ExportFacts)
        with open(self.folder / "pruned.jsonl", "rb") as file:
            return dataset_of([json.loads(line) for line in file])

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r})"

    @property
    def _existing(self) -> RunFolder:
        if not self.folder.exists:
            raise InputError(
                f"{self.folder.path}: there is no such run folder. Make one: instruct-prune run --data ... --out {self.folder.path}"
            )
        return self.folder

    def _repr_html_(self) -> str:
        """For notebooks: what stages have run, and how many rows they left."""
        from instruct_prune.report.summary import state_lines

        lines = "".join(
            f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in state_lines(self.folder)
        )
        return f"<b>Run</b> <code>{html.escape(str(self.folder.path))}</code><table>{lines}</table>"
