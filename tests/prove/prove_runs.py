"""A small pool of two kinds of rows, scored by the tiny model: what the tests of prove start from."""

from __future__ import annotations

from pathlib import Path

from sample_rows import TOPICS, write_jsonl

from instruct_prune.cli import main

QUICK = [
    "--random-arms",
    "6",
    "--rule-arms",
    "2",
    "--keep-tokens",
    "800",
    "--learning-rates",
    "2e-3",
    "--dtype",
    "float32",
]
QUICK += ["--held-out", "15", "--test-rows", "15", "--budget-minutes", "10000"]


def usual(n: int) -> list[dict[str, str]]:
    """Short rows that say different things, so that an arm has many of them."""
    rows = []
    for i in range(n):
        told = f"About {TOPICS[i % 8]} {i * 7 % 17}" + f" and {i % 5}" * (1 + i % 4)
        rows.append({"instruction": f"Tell me about {i}.", "input": "", "output": told, "source": "usual"})
    return rows


def planted(n: int, start: int = 0) -> list[dict[str, str]]:
    """Rows of a kind that the tiny model has not seen, of words that it knows."""
    rows = []
    for i in range(start, start + n):
        told = f"bread {TOPICS[i % 8]} " + f"bread {TOPICS[(i // 8 + 3) % 8]} " * (1 + i % 3)
        rows.append({"instruction": f"Tell me, case {i}.", "input": "", "output": f"{told}bread", "source": "planted"})
    return rows


def score_pool(folder: Path, model: Path) -> Path:
    """A folder with a scored run over two sources, and rows of one of them to test by."""
    pool = write_jsonl(folder / "pool.jsonl", [*usual(200), *planted(80)])
    write_jsonl(folder / "test.jsonl", [*planted(15, start=500), *planted(2)])
    words = [
        "--data",
        str(pool),
        "--model",
        str(model),
        "--subnets",
        "dense",
        "--dtype",
        "float32",
        "--template",
        "plain",
    ]
    assert main(["score", *words, "--out", str(folder / "RUN")]) == 0
    return folder
