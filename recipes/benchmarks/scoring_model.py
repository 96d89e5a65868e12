"""The model and the rows of one timed process, and the rate at which the machine multiplies matrices of the model's shapes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from instruct_prune.encode.batching import Plan, plan_batches
from instruct_prune.encode.store import TokenStore
from instruct_prune.measure.measurement import Pass, measurements_of, plan_passes
from instruct_prune.measure.probes import parse_probe
from instruct_prune.measure.subnet import DENSE
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.models.names import find_model, load_causal_lm, load_tokenizer


def precision(options: argparse.Namespace, method: str) -> str:
    return "bfloat16" if method == "ours-bf16" else options.dtype


class Bench:
    """The model and the rows of one process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load_model(options, self.device)
        self.tokenizer = load_tokenizer(find_model(options.model))
        self.scorer = CausalLM.holding(self.model)
        self.store = TokenStore.open(Path(options.store))
        self.rows = [self.store[i] for i in range(len(self.store))]
        self.harness: Any = None
        self.switching: float | None = None

    def dense_pass(self, probes: Sequence[str]) -> Pass:
        """The dense model's losses, and what these probes read beside them."""
        (found,) = plan_passes(measurements_of([DENSE], [parse_probe(text) for text in probes]))
        return found

    def plan(self, options: argparse.Namespace) -> Plan:
        """Batches of all rows, as a run makes them."""
        rows = np.arange(len(self.store))
        group, prefixes = self.scorer.shared_prefixes(self.store, rows)
        tokens = options.batch_tokens or self.scorer.batch.get(self.device.type, self.scorer.batch["other"])
        return plan_batches(rows, self.store.lengths, batch_tokens=tokens, group=group, prefixes=prefixes)


def load_model(options: argparse.Namespace, device: Any) -> Any:
    if options.shape is None:
        return load_causal_lm(find_model(options.model), precision(options, options.one)).to(device)
    torch.manual_seed(0)
    with torch.device(device):
        config = LlamaConfig(**json.loads(options.shape))
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, precision(options, options.one)), attn_implementation="sdpa"
        )
    return model.eval().requires_grad_(False)


def synchronise(device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def linear_shapes(bench: Bench) -> list[tuple[int, int]]:
    head = bench.model.get_output_embeddings()
    return [
        (m.out_features, m.in_features)
        for m in bench.model.modules()
        if isinstance(m, torch.nn.Linear) and m is not head
    ]


def operations(bench: Bench, tokens: int) -> float:
    """Multiply-adds counted twice: linear layers of every token, the head of response tokens (attention is left out)."""
    head = bench.model.get_output_embeddings().weight
    responses = sum(int(row.response_mask.sum()) for row in bench.rows)
    return float(2 * tokens * sum(a * b for a, b in linear_shapes(bench)) + 2 * responses * head.numel())


def matrix_rate(bench: Bench, tokens: int = 2048) -> float:
    """Operations a second of plain matrix products at the model's own shapes, best of several."""
    shapes = linear_shapes(bench)[: 7 * 4]
    dtype = bench.model.dtype
    weights = [torch.randn(a, b, device=bench.device).to(dtype) for a, b in shapes]
    inputs = {b: torch.randn(tokens, b, device=bench.device).to(dtype) for _, b in shapes}
    best = 0.0
    with torch.no_grad():
        for _ in range(4):
            synchronise(bench.device)
            began = time.perf_counter()
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)
            synchronise(bench.device)
            done = 2.0 * tokens * sum(a * b for a, b in shapes)
            best = max(best, done / (time.perf_counter() - began))
    return best
