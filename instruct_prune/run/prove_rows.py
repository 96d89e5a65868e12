"""The rows of a proof: the pool as the trained model reads it, what is held out of it, and the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instruct_prune.arrays import Bool, Int64, batched
from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.item import Encoded
from instruct_prune.errors import InputError
from instruct_prune.models.text_model import TextModel
from instruct_prune.progress import Progress, say
from instruct_prune.prove.config import ProveConfig
from instruct_prune.prove.harness import YAML
from instruct_prune.rows.row import Reject, Row
from instruct_prune.rows.table import RowTable
from instruct_prune.run.by import named_files
from instruct_prune.run.encode import make_model
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EncodeFacts
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.duplicates import text_keys

HELD_OUT = "held-out"
BATCH = 1024


@dataclass(frozen=True)
class TestFacts:
    """What became of the rows of a test.

    Attributes:
        file: where they came from.
        read: rows read.
        unusable: rows that cannot be read, or of which no response token can be judged.
        repeated: rows whose words stand in the pool, in the target or twice in the test; left out.
        rows: that judge; fewer than are left where ``--test-rows`` says so.
    """

    file: str
    read: int
    unusable: int
    repeated: int
    rows: int


class ProveRows:
    """The pool and the tests, as tokens of the model that is trained.

    Args:
        folder: a scored run over text.
        config: the options.

    Attributes:
        name, revision: of the model that is trained.
        table: the run's scores; rows that no arm may have carry the status "held_out", or that of the trained model.
        held_out: int64, rows of the pool that judge, ascending.
        tests: {name: what became of its rows}.
        sets: {name: rows that judge}: the tests, then the held-out rows.
    """

    def __init__(self, folder: RunFolder, config: ProveConfig) -> None:
        self.folder = folder
        self.pool = RowTable.open(folder / "rows")
        if config.train_model is None and folder.loaded is not None:
            raise InputError(
                f"{folder.path} was scored with a model made in Python, and prove trains one that it can load itself, again and "
                "again. Name it: ProveConfig(train_model=...)."
            )
        facts = folder.facts(EncodeFacts)
        scoring_model, revision = folder.scored_by()
        self.name = config.train_model or scoring_model
        other = self.name != scoring_model
        self.revision = None if other else revision
        scoring = ScoreConfig(model=self.name, model_revision=self.revision)
        model = make_model(scoring, EncodeConfig(**facts.options), self.pool.facts.model_kind, self.pool.facts.format)
        if not isinstance(model, TextModel):
            raise InputError(
                f"{folder.path} is a run over pictures: prove trains language models. See recipes/image_study.py."
            )
        self._model = model
        self._encoded: dict[int, Encoded] = {}
        self.table = self._as_trained(folder.read_scores()) if other else folder.read_scores()
        keys = text_keys(row.text for row in self.pool)
        self.held_out, open_rows = self._hold_out(keys, config)
        self.table = dataclasses.replace(
            self.table, status=np.where(open_rows | ~self.table.scored, self.table.status, "held_out")
        )
        self.tests: dict[str, TestFacts] = {}
        self.sets: dict[str, list[Encoded]] = {}
        known = set(keys.tolist()) | self._queries()
        for test, path in tests_of(config).items():
            self.sets[test] = self._test(test, path, known, config)
        self.sets[HELD_OUT] = list(self.encoded(self.held_out).values())

    def encoded(self, row_ids: Iterable[int] | Int64) -> dict[int, Encoded]:
        """{row id: tokens}, encoded when first asked for."""
        wanted = np.unique(np.asarray(list(row_ids), dtype=np.int64))
        missing = np.asarray([row for row in wanted.tolist() if row not in self._encoded], dtype=np.int64)
        if len(missing):
            for batch in batched(self.pool.take(missing), BATCH):
                self._encoded |= {row.row_id: row for row in self._model.encode(batch)}
        return {row: self._encoded[row] for row in wanted.tolist()}

    def _as_trained(self, table: ScoreTable) -> ScoreTable:
        """The table with the trained model's tokens; what it cannot read is not in the pool."""
        status, prompt, response = table.status.astype("<U32"), table.n_prompt.copy(), table.n_response.copy()
        wanted = np.flatnonzero(table.scored)
        at = 0
        with Progress("encoding for the trained model", len(wanted), "rows") as progress:
            for batch in batched(self.pool.take(table.row_id[wanted]), BATCH):
                for row in self._model.encode(batch):
                    i = wanted[at]
                    status[i], response[i] = row.status, int(row.response_mask.sum())
                    prompt[i] = len(row.input_ids) - response[i]
                    at += 1
                progress.advance(len(batch), len(batch))
        return dataclasses.replace(table, status=status, n_prompt=prompt, n_response=response)

    def _hold_out(self, keys: Int64, config: ProveConfig) -> tuple[Int64, Bool]:
        """Held-out rows at random, and which rows arms may have: none with the words of a held-out one."""
        table = self.table
        key_of = dict(zip(self.pool.row_id.tolist(), keys.tolist(), strict=True))
        own = np.asarray([key_of.get(row, 0) for row in table.row_id.tolist()], dtype=np.int64)
        scored = np.flatnonzero(table.scored)
        order = np.random.default_rng([config.seed, 3]).permutation(scored)
        held = np.sort(order[: min(config.held_out, len(scored) // 5)])
        if len(held) < 2:
            raise InputError(f"{self.folder.path} has {len(scored)} scored rows: too few to hold some out.")
        _, first = np.unique(own[held], return_index=True)
        open_rows: Bool = ~np.isin(own, own[held])
        return table.row_id[held[np.sort(first)]], open_rows

    def _queries(self) -> set[int]:
        """Keys of the rows that the run's selection aims at."""
        keys: set[int] = set()
        for rows in sorted((self.folder / "targets" / "tasks").glob("*/rows/rows.json")):
            keys |= set(text_keys(row.text for row in RowTable.open(rows.parent)).tolist())
        return keys

    def _test(self, name: str, path: str, known: set[int], config: ProveConfig) -> list[Encoded]:
        source = self.pool.facts.opened_like(path)
        if source.model_kind != self.pool.facts.model_kind:
            raise InputError(f"--test {path}: its rows are of another kind ({source.format}) than the pool's.")
        read = list(source)
        rows = [row for row in read if isinstance(row, Row)]
        fresh = _new(rows, known)
        every = self._model.encode(fresh)
        encoded = [row for row in every if row.status.scored]
        order = np.random.default_rng([config.seed, 4]).permutation(len(encoded))
        chosen = [encoded[i] for i in np.sort(order[: config.test_rows])]
        unusable = [row.reason for row in read if isinstance(row, Reject)]
        unusable += [row.reason or row.status.value for row in every if not row.status.scored]
        facts = TestFacts(path, len(read), len(unusable), len(rows) - len(fresh), len(chosen))
        self.tests[name] = facts
        why = f" ({unusable[0]})" if unusable else ""
        if not chosen:
            raise InputError(
                f"--test {path}: none of its {facts.read} rows can judge: {facts.repeated} repeat a row of the pool, of the target or "
                f"of the test itself, {facts.unusable} cannot be used{why}. Give rows that nothing was selected from or by."
            )
        if facts.repeated:
            say(
                f"note: {facts.repeated} rows of the test {name} repeat a row of the pool, of the target or of itself: left out"
            )
        if facts.unusable:
            say(f"note: {facts.unusable} rows of the test {name} cannot be used{why}: left out")
        pool = self.pool.facts.format
        if source.format.split("-")[0] != pool.split("-")[0]:
            say(
                f"WARNING: the test {name} is in the format {source.format}, the pool in {pool}. The pool's template writes its rows too, and "
                "what they judge may not be what the pool's rows teach. Give the test in the pool's format where you can."
            )
        return chosen


def tests_of(config: ProveConfig) -> dict[str, str]:
    """{name: file} of --test.

    Raises:
        InputError: a name is used twice or is that of the held-out rows, or a file is not there.
    """
    found = named_files(config.test, "--test")
    if HELD_OUT in found:
        raise InputError(
            f"--test {HELD_OUT}={found[HELD_OUT]}: {HELD_OUT} are the pool's own rows. Name the test otherwise."
        )
    return found


def _new(rows: Sequence[Row], known: set[int]) -> list[Row]:
    """Rows whose words are not known, each once."""
    seen, found = set(known), []
    for row, key in zip(rows, text_keys(row.text for row in rows).tolist(), strict=True):
        if key not in seen:
            seen.add(key)
            found.append(row)
    return found


def absolute(config: ProveConfig) -> ProveConfig:
    """The same, with absolute paths of the tests and tasks, for what is written down."""
    paths = (f"{name}={Path(path).expanduser().absolute()}" for name, path in tests_of(config).items())
    tasks = ((name, Path(name).expanduser()) for name in config.lm_eval)
    named = (str(path.absolute()) if path.suffix in YAML else name for name, path in tasks)
    return dataclasses.replace(config, test=tuple(paths), lm_eval=tuple(named))
