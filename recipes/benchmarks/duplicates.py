"""How many planted near-duplicates does ``--dedup`` find, and how many other rows does it take for duplicates?

    python recipes/benchmarks/duplicates.py --data alpaca.json --planted 500

Copies of random rows are planted with other case, other punctuation, or the instruction paraphrased by a template; then
keys alone, embeddings alone and both together look for them. "Others in groups" are rows that were not planted, nor copied,
and yet are said to be near-duplicates of one another: some of them truly are.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from instruct_prune.models import names as models
from instruct_prune.models.sentence_encoder import TextEncoder, embed_rows, embedding_text
from instruct_prune.progress import Progress
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Message, Row
from instruct_prune.select.duplicates import find_duplicates, text_keys

TEMPLATES = ("Please {}", "Your task: {}", "{} Thank you.", "I need your help with this: {}")
KINDS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "case": lambda text, rng: text.upper() if rng.random() < 0.5 else text.lower(),
    "punctuation": lambda text, rng: (
        text.rstrip(".!?") + "  !" if rng.random() < 0.5 else text.replace(",", " ;") + " .."
    ),
    "template": lambda text, rng: TEMPLATES[rng.integers(len(TEMPLATES))].format(text[:1].lower() + text[1:]),
}


def planted(sample: Row, kind: str, row_id: int, rng: np.random.Generator) -> Row:
    """The row with its first user turn changed; case and punctuation change the answer too, every other time."""
    turns: list[Message] = []
    asked = False
    both = kind != "template" and rng.random() < 0.5
    for turn in sample.messages:
        change = (turn.role == "user" and not asked) or (turn.role == "assistant" and both)
        asked |= turn.role == "user"
        turns.append(dataclasses.replace(turn, content=KINDS[kind](turn.text, rng)) if change else turn)
    return dataclasses.replace(sample, row_id=row_id, messages=tuple(turns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--planted", type=int, default=500)
    parser.add_argument("--embedder", default="all-minilm-l6-v2")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rows = [row for row in open_data([options.data]) if isinstance(row, Row)]
    rng = np.random.default_rng(options.seed)
    copied = rng.choice(len(rows), options.planted, replace=False)
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(options.planted)]
    rows = [dataclasses.replace(row, row_id=i) for i, row in enumerate(rows)]
    copies = [planted(rows[j], kind, len(rows) + i, rng) for i, (j, kind) in enumerate(zip(copied, kinds, strict=True))]
    everything = rows + copies

    found = models.find_model(options.embedder, option="--embedder")
    with tempfile.TemporaryDirectory() as folder, Progress("embedding", len(everything), "rows") as progress:
        target = Path(folder) / "embeddings.npy"
        parts = Path(folder) / "parts"
        encoder = TextEncoder(found.location, found.name)
        embed_rows(everything, len(everything), lambda: encoder, parts, target, progress.advance)
        vectors = np.load(target, allow_pickle=False)
    keys = text_keys(embedding_text(row) for row in everything)
    row_id = np.arange(len(everything))

    other = np.ones(len(everything), dtype=bool)
    other[copied], other[len(rows) :] = False, False
    print(f"{len(rows):,} rows and {options.planted} planted near-duplicates; {other.sum():,} rows are neither\n")
    print(f"{'compared':<24}{'found':>9}" + "".join(f"{kind:>13}" for kind in KINDS) + f"{'others in groups':>19}")
    ways: list[tuple[str, bool, float | None]] = [("keys", True, None)]
    for threshold in options.thresholds:
        ways += [(f"embeddings at {threshold:g}", False, threshold), (f"both at {threshold:g}", True, threshold)]
    for name, by_key, threshold in ways:
        twin = find_duplicates(
            row_id, row_id, keys=keys if by_key else None, vectors=None if threshold is None else vectors,
            threshold=threshold or 1.0,
        )  # fmt: skip
        # A planted row is found when it and its original end in one group: one stands for the other, or a third for both.
        stands = np.where(twin >= 0, twin, row_id)
        hit = stands[len(rows) :] == stands[copied]
        sizes = np.bincount(
            stands[: len(rows)], minlength=len(everything)
        )  # groups among the rows that were there before
        grouped = (sizes[stands] > 1) & other
        cells = "".join(f"{hit[[k == kind for k in kinds]].mean():>13.1%}" for kind in KINDS)
        print(f"{name:<24}{hit.mean():>9.1%}{cells}{grouped.sum() / other.sum():>19.2%}")


if __name__ == "__main__":
    main()
