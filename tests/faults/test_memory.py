"""Memory and time of many short rows, stage by stage (nightly), and of one long row beside many short ones."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fault_runs import Command

ROWS = 300_000
MOST_MEGABYTES = 1300  # of which torch, transformers and their kin take some 500


def short_rows(path: Path) -> Path:
    """Rows of some twenty tokens, no two alike."""
    with path.open("w") as file:
        for i in range(ROWS):
            file.write(json.dumps({"instruction": f"Add {i} and {i % 7}.", "output": f"It is {i + i % 7}."}) + "\n")
    return path


def one_layer(folder: Path, tokenizer_folder: Path) -> Path:
    """A model of one narrow layer, beside the tokenizer of the fixtures."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=400, max_position_embeddings=512, **size)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


@pytest.mark.nightly
def test_many_short_rows_stage_by_stage(tiny_model_folder: Path, tmp_path: Path) -> None:
    data, out = short_rows(tmp_path / "rows.jsonl"), tmp_path / "RUN"
    model = one_layer(tmp_path / "model", tiny_model_folder)
    vectors = tmp_path / "vectors.npy"
    np.save(vectors, np.random.default_rng(0).normal(size=(ROWS, 32)).astype(np.float32))
    scoring = [
        "--data",
        str(data),
        "--model",
        str(model),
        "--dtype",
        "float32",
        "--subnets",
        "dense",
        "--template",
        "plain",
    ]
    stages = {
        "read, encode, plan": ["score", *scoring, "--dry-run", "--out", str(out)],
        "score": ["score", *scoring, "--out", str(out)],
        "embed": ["embed", "--out", str(out), "--embedder", str(vectors)],
        "select": ["select", "--out", str(out), "--keep", "30%", "--clusters", "50", "--dedup", "0.99"],
        "export": ["export", "--out", str(out), "--to", "messages", "parquet"],
        "report": ["report", "--out", str(out)],
    }
    log = tmp_path / "log"
    for name, words in stages.items():
        measured = tmp_path / "measured"
        began = time.monotonic()
        command = Command(words, log, before=Measure(measured))
        assert command.end(3600).is_clean(0)
        peak, seconds = (float(text) for text in measured.read_text().split())
        sys.stderr.write(
            f"{name:<20} peak {peak:7,.0f} MB, CPU {seconds / ROWS * 1e6:7,.1f} us a row, {time.monotonic() - began:,.0f} s\n"
        )
        assert peak < MOST_MEGABYTES, name
    assert len((out / "pruned.jsonl").read_bytes().splitlines()) == ROWS * 3 // 10


class Measure:
    """Writes peak memory in MB and CPU seconds of a command's process when it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        from multiprocessing import util

        util.Finalize(None, self._write, exitpriority=0)

    def _write(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.path.write_text(f"{used.ru_maxrss / 1024} {used.ru_utime + used.ru_stime}")
