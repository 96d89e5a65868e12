"""Tasks of lm-evaluation-harness as judges of arms: found before anything is trained, asked once for each arm."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.errors import InputError, told_together
from instruct_prune.progress import say
from instruct_prune.registry import suggestion
from instruct_prune.storage import digest

Numbers = dict[str, dict[str, float]]
"""{task: {metric: value}} of one arm."""

OLDEST = "0.4.12"
"""Version of lm_eval that has all that is called here."""
BATCH = 4
"""Sequences in a forward pass of the harness, which computes the logits of every token of each."""
SEED = 1234
"""Of everything that is drawn, examples in prompts among it; it is that of the harness's own command."""
TIMED_DOCUMENTS = 8
YAML = (".yaml", ".yml")
SOURCES = ("metadata", "dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset")
"""Keys of a task's configuration that say where its data lie; the data themselves decide."""


class Tasks:
    """Some tasks, named on the command line; without a name there is nothing to load and nothing to ask.

    Args:
        named: names of tasks, groups or tags of lm-evaluation-harness, or YAML files.

    Attributes:
        directions: {task: {metric: whether higher is better, None where the task does not say}}, of the tasks, and of the groups that
            have a number of their own.
        documents: {task: how many}, of all tasks that are asked.
        version: of lm_eval.
    """

    def __init__(self, named: Sequence[str]) -> None:
        self.named = tuple(named)
        self.directions: dict[str, dict[str, bool | None]] = {}
        self.documents: dict[str, int] = {}
        self.version = ""
        self._tasks: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        self._warned = False

    def __bool__(self) -> bool:
        return bool(self.named)

    def load(self) -> None:
        """Find the tasks and their data.

        Raises:
            InputError: lm_eval is missing or too old, there is no such task, its data cannot be had, or it cannot be asked here.
        """
        if not self.named or self._tasks:
            return
        for name in self.named:
            if Path(name).suffix in YAML and not Path(name).expanduser().is_file():
                raise InputError(f"--lm-eval {name}: there is no such file.")
        manager = self._manager()
        told_together(*(lambda name=name: _check_name(name, manager.all_tasks) for name in self.named))
        for name in self.named:
            with _refused(f"--lm-eval {name}: lm_eval cannot make this task", DATA), _heard() as warnings:
                _seed()
                found = manager.load([name])
            self._note(name, warnings)
            groups = found.get("groups", {})
            if twice := [task for task in found["tasks"] if task in self._tasks]:
                raise InputError(f"--lm-eval {name}: the task {twice[0]} is named twice, by itself or in a group.")
            self._tasks |= found["tasks"]
            self._groups |= groups
            top = next(iter(groups.values()), None)
            if top is not None and top.has_aggregation:
                self.directions[top.name] = _agreed(task.higher_is_better() for task in found["tasks"].values())
            else:
                self.directions |= {task: dict(made.higher_is_better()) for task, made in found["tasks"].items()}
        for name, task in self._tasks.items():
            self._check_task(name, task)
            self.documents[name] = len(task.eval_docs)

    def words(self) -> str:
        """What there is to ask, to go on with after what else judges; "" for nothing."""
        if len(self.documents) > 5:
            return f", {len(self.documents)} tasks with {sum(self.documents.values())} documents"
        return "".join(f", {task} {documents} documents" for task, documents in self.documents.items())

    def _manager(self) -> Any:
        try:
            import lm_eval
            import lm_eval.evaluator
            import lm_eval.models.huggingface
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            missing = "" if error.name == "lm_eval" else f" ({error})"
            raise InputError(
                f"--lm-eval needs lm-evaluation-harness{missing}: pip install 'instruct-prune[lm-eval]'. Or leave --lm-eval out: the "
                "loss on the rows of the tests decides in any case."
            ) from None
        self.version = lm_eval.__version__
        if not hasattr(TaskManager, "load"):
            raise InputError(
                f"--lm-eval: lm_eval {self.version} is too old, {OLDEST} or later is needed: pip install -U 'instruct-prune[lm-eval]'"
            )
        return TaskManager()

    def _check_task(self, name: str, task: Any) -> None:
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(f"--lm-eval: the task {name} runs code that the model writes, which is not done here.")
        if getattr(task, "MULTIMODAL", False):
            raise InputError(f"--lm-eval: the task {name} shows pictures or sounds: prove trains language models.")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)

    @cached_property
    def identity(self) -> list[Any]:
        """All that decides the numbers of a model: version, documents, prompts with their examples, metrics."""
        found: list[Any] = [self.version]
        for name, task in self._tasks.items():
            with _refused(f"--lm-eval: the prompts of the task {name} cannot be made", DATA), _heard(), _no_bars():
                _seed()
                task.set_fewshot_seed(seed=SEED)
                task.build_all_requests(rank=0, world_size=1)
            asked = [[each.request_type, each.args, each.doc] for each in task.instances]
            config = {key: value for key, value in task.dump_config().items() if key not in SOURCES}
            # Functions that have no source text are told by their address, which is another one in every process.
            told = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(config, sort_keys=True, default=str))
            found.append([name, told, digest(asked)])
        return [*found, list(self.directions)]

    def judge(self, model: Any, tokenizer: Any) -> Numbers:
        """The numbers of a model in all tasks; what is no finite number is left out.

        Args:
            model: a causal language model of transformers, or one of peft with an adapter.
            tokenizer: a transformers tokenizer; it may be given a token for padding.
        """
        found = self._evaluate(model, tokenizer, self._tasks, self._groups, None)
        return {task: _metrics(found["results"].get(task, {})) for task in self.directions}

    def seconds(self, model: Any, tokenizer: Any) -> float:
        """What `judge` takes, by the first documents of each task."""
        took = 0.0
        self._evaluate(model, tokenizer, self._tasks, {}, 1)  # the first time makes what all others find ready
        for name, task in self._tasks.items():
            began = time.monotonic()
            self._evaluate(model, tokenizer, {name: task}, {}, TIMED_DOCUMENTS)
            took += (time.monotonic() - began) * max(1.0, self.documents[name] / TIMED_DOCUMENTS)
        return took

    def _evaluate(
        self, model: Any, tokenizer: Any, tasks: Mapping[str, Any], groups: Mapping[str, Any], limit: int | None
    ) -> Any:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        held = model.get_base_model() if hasattr(model, "get_base_model") else model
        with _heard():  # it warns that the model is there already
            asked = HFLM(pretrained=held, tokenizer=tokenizer, batch_size=BATCH)
        _seed()
        for task in tasks.values():
            task.set_fewshot_seed(seed=SEED)  # each time, or every arm would see other examples in its prompts
        with _refused(f"--lm-eval {' '.join(tasks)}: lm_eval failed"), _heard() as warnings, _no_bars():
            children = {name: group.child_names for name, group in groups.items()}
            loaded = {"tasks": dict(tasks), "groups": dict(groups), "group_map": children}
            found = evaluate(lm=asked, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=False)
        if limit is None and not self._warned:
            self._note(" ".join(self.named), warnings)
            self._warned = True
        return found

    def _note(self, name: str, warnings: Sequence[str]) -> None:
        if warnings:
            more = f" (and {len(warnings) - 1} more warnings)" if len(warnings) > 1 else ""
            say(f"note: lm_eval on {name}: {' '.join(warnings[0].split())[:300]}{more}")


DATA = (
    "Data are taken from the Hugging Face Hub, or from the files that a YAML file names; paths there are relative to the folder in "
    "which the command runs."
)


def _check_name(name: str, known: Sequence[str]) -> None:
    if name not in known and Path(name).suffix not in YAML:
        raise InputError(
            f"unknown --lm-eval {name!r}.{suggestion(name, known)} `lm-eval ls tasks` lists the names; or give a YAML file of your own."
        )


def _agreed(directions: Iterator[Mapping[str, bool]]) -> dict[str, bool | None]:
    """Of a group: those in which its tasks agree."""
    found: dict[str, bool | None] = {}
    for each in directions:
        for metric, up in each.items():
            found[metric] = up if found.get(metric, up) == up else None
    return found


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """{metric: value}; a filter that picks the answer out of a text stands behind a comma, as the harness writes it."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in result.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float | np.number) and math.isfinite(value)
    }


def _seed() -> None:
    """As the harness's own command does: some tasks shuffle with Python's global generator whenever they are asked for documents."""
    from lm_eval.utils import set_torch_seed

    random.seed(0)
    np.random.seed(SEED)
    set_torch_seed(SEED)


@contextlib.contextmanager
def _refused(what: str, hint: str = "") -> Iterator[None]:
    """Tell what the library raises in words: its tasks are files that others wrote, and can fail in any way."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{what}: {type(error).__name__}: {reason.rstrip('.')}. {hint}".rstrip()) from error


def _no_bars() -> contextlib.AbstractContextManager[Any]:
    """Without the library's bars, of which it has two or more for every arm."""
    return contextlib.redirect_stderr(io.StringIO())


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """The library's warnings, for whoever tells them."""
    told: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, kept = logging.getLogger("lm_eval"), Kept(logging.WARNING)
    before = logger.propagate
    logger.addHandler(kept)
    logger.propagate = False
    try:
        yield told
    finally:
        logger.removeHandler(kept)
        logger.propagate = before
