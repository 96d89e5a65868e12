"""A library in place of lm_eval, as far as it is called: its numbers follow from the weights of an adapter, by hand."""

from __future__ import annotations

import logging
import math
import random
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

DIRECTIONS = {"up": True, "down": False, "drawn": True, "unsaid": None, "sometimes": True}


class FakeTask:
    """A task of some documents, whose prompts have drawn examples."""

    def __init__(self, name: str, documents: Sequence[str], **flags: bool) -> None:
        self.name, self.eval_docs, self.settings = name, list(documents), {"task": name, "metadata": {"at": id(self)}}
        self.instances: list[Any] = []
        self.rng = random.Random()
        for flag, value in flags.items():
            setattr(self, flag, value)

    def get_config(self, key: str) -> Any:
        return self.settings.get(key)

    def set_config(self, key: str, value: Any) -> None:
        self.settings[key] = value

    def dump_config(self) -> dict[str, Any]:
        return {**self.settings, "process_docs": f"<function shuffle at {id(self):#x}>"}

    def higher_is_better(self) -> dict[str, Any]:
        return DIRECTIONS

    def set_fewshot_seed(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def build_all_requests(self, rank: int, world_size: int) -> None:
        assert (rank, world_size) == (0, 1)
        print("a bar", file=sys.stderr)
        self.instances = [
            SimpleNamespace(
                request_type="loglikelihood", args=(f"{self.rng.random()} {text}", "yes"), doc={"text": text}
            )
            for text in self.eval_docs
        ]


class FakeGroup:
    """Tasks with a number of their own together."""

    def __init__(self, name: str, tasks: Sequence[FakeTask], has_aggregation: bool) -> None:
        self.name, self.child_names, self.has_aggregation = name, [task.name for task in tasks], has_aggregation


class FakeManager:
    """All tasks that there are."""

    all_tasks = ("bread", "tea", "meals", "kinds", "runs_code", "pictures", "far_away")

    def load(self, named: list[str]) -> dict[str, Any]:
        tea = FakeTask("tea", ["green", "black"])
        bread = FakeTask("bread", ["rye"] * 16)
        known: dict[str, tuple[list[FakeTask], list[FakeGroup]]] = {
            "bread": ([bread], []),
            "tea": ([tea], []),
            "meals": ([bread, tea], [FakeGroup("meals", [bread, tea], True)]),
            "kinds": ([bread, tea], [FakeGroup("kinds", [bread, tea], False)]),
            "runs_code": ([FakeTask("runs_code", ["x"], UNSAFE_CODE=True)], []),
            "pictures": ([FakeTask("pictures", ["x"], MULTIMODAL=True)], []),
        }
        if named[0] not in known:
            raise ConnectionError(f"Couldn't reach 'kitchen/{named[0]}' on the Hub")
        tasks, groups = known[named[0]]
        return {"tasks": {task.name: task for task in tasks}, "groups": {group.name: group for group in groups}}


class FakeHFLM:
    def __init__(self, pretrained: Any, tokenizer: Any, batch_size: int) -> None:
        logging.getLogger("lm_eval.models").warning("the model is there already")
        self.model, self.tokenizer = pretrained, tokenizer
        tokenizer.pad_token = "<|im_start|>"  # as the real one may


CALLS: list[tuple[tuple[str, ...], int | None]] = []


def evaluate(lm: FakeHFLM, task_dict: Any, limit: int | None, bootstrap_iters: int, log_samples: bool) -> Any:
    assert (bootstrap_iters, log_samples) == (0, False)
    CALLS.append((tuple(task_dict["tasks"]), limit))
    logging.getLogger("lm_eval.models").warning("cut a prompt")
    print("a bar", file=sys.stderr)
    weight = sum(float(p.detach().abs().sum()) for name, p in lm.model.named_parameters() if "lora_B" in name)
    results = {}
    for name, task in [*task_dict["tasks"].items(), *task_dict["groups"].items()]:
        drawn = random.random() + np.random.random() + (task.rng.random() if isinstance(task, FakeTask) else 0)
        results[name] = {
            "alias": name, "sample_len": 2, "up,none": weight, "up_stderr,none": "N/A", "down,none": weight, "drawn,none": drawn,
            "unsaid,none": weight, "sometimes,strict": weight if weight else math.nan,
        }  # fmt: skip
    return {"results": results}


def install(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """Stand in for lm_eval; what is given replaces the manager of tasks."""
    names = {
        "lm_eval": {"__version__": "0.4.99"},
        "lm_eval.evaluator": {"evaluate": evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": FakeHFLM},
        "lm_eval.tasks": {"TaskManager": changed.get("manager", FakeManager)},
        "lm_eval.utils": {"set_torch_seed": lambda seed: None},
    }
    for name, values in names.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, module)
    CALLS.clear()
