"""How others compute the losses of rows: (options, rows) -> losses [n], tokens computed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scoring_model import Bench


def paper_loop(options: argparse.Namespace, bench: Bench) -> tuple[np.ndarray, int]:
    """One row per forward pass, all logits, a Python loop over tokens with log_softmax and .item()."""
    losses = []
    with torch.no_grad():
        for row in bench.rows:
            ids = torch.as_tensor(row.ids.astype(np.int64), device=bench.device)[None]
            logits = bench.model(input_ids=ids).logits[0]
            total, count = 0.0, 0
            for t in range(1, len(row.ids)):
                if row.response_mask[t]:
                    total -= torch.log_softmax(logits[t - 1].float(), dim=-1)[int(row.ids[t])].item()
                    count += 1
            losses.append(total / count)
    return np.asarray(losses), sum(len(row.ids) for row in bench.rows)


def hf_loop(options: argparse.Namespace, bench: Bench) -> tuple[np.ndarray, int]:
    """Batch 8, padded in input order, all logits, one vectorised loss."""
    losses: list[float] = []
    computed = 0
    with torch.no_grad():
        for start in range(0, len(bench.rows), 8):
            rows = bench.rows[start : start + 8]
            width = max(len(row.ids) for row in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.int64)
            attention, target = torch.zeros_like(ids), torch.full_like(ids, -100)
            for i, row in enumerate(rows):
                n = len(row.ids)
                ids[i, :n] = torch.as_tensor(row.ids.astype(np.int64))
                attention[i, :n] = 1
                target[i, :n] = ids[i, :n].masked_fill(~torch.as_tensor(row.response_mask), -100)
            ids, attention, target = ids.to(bench.device), attention.to(bench.device), target.to(bench.device)
            logits = bench.model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
            nll = F.cross_entropy(logits.transpose(1, 2), target[:, 1:], ignore_index=-100, reduction="none")
            losses += (nll.sum(1) / (target[:, 1:] != -100).sum(1)).tolist()
            computed += ids.numel()
    return np.asarray(losses), computed


def harness(options: argparse.Namespace, bench: Bench, batch: int | str = 8) -> tuple[np.ndarray, int]:
    """lm-evaluation-harness, HF backend, loglikelihood of the same (context, continuation) pairs."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    if bench.harness is None:
        bench.harness = HFLM(
            pretrained=bench.model, tokenizer=bench.tokenizer, batch_size=batch, device=str(bench.device)
        )
    pairs = json.loads((Path(options.store) / "pairs.json").read_text())
    requests = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(pairs)]
    found = bench.harness.loglikelihood(requests, disable_tqdm=True)
    counts = [int(row.response_mask.sum()) for row in bench.rows]
    return np.asarray([-total / n for (total, _), n in zip(found, counts, strict=True)]), sum(
        len(r.ids) for r in bench.rows
    )


def harness_auto(options: argparse.Namespace, bench: Bench) -> tuple[np.ndarray, int]:
    """The same with automatic batch size."""
    return harness(options, bench, "auto")
