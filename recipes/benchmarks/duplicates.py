"""How many planted near-duplicates does ``--dedup`` find, and how many other rows does it take for duplicates?

    python recipes/benchmarks/duplicates.py --data alpaca.json --planted 500
    python recipes/benchmarks/duplicates.py --data alpaca.json --rows 1000 --planted 300 \
        --embedder all-minilm-l6-v2 model model:weighted model:mean@15 --keep-files FOLDER

Copies of random rows are planted with other case, other punctuation, or the instruction paraphrased by a template; then
keys alone, embeddings alone and both together look for them. "Others in groups" are rows that were not planted, nor copied,
and yet are said to be near-duplicates of one another: some of them truly are.

Equal thresholds do not mean the same for two embedders. So each is also tried at the cosine that puts a given share of the
other rows into groups, and "order" is the probability that a planted pair is nearer than another row is to the row that is
nearest to it: 50% would be chance. The scoring model's states ("model") come from one dense pass, however many are named;
with --keep-files an interrupted pass goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from embedders import vectors_of

from instruct_prune import EncodeConfig, Message, Row, ScoreConfig, load_data
from instruct_prune.arrays import Bool, Float32, Int64
from instruct_prune.geometry import nearest_similarity
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


@dataclasses.dataclass(frozen=True)
class Planted:
    """Rows with copies behind them.

    Attributes:
        rows: all, the copies last.
        copied: int64 [m], the position of the row that each copy was made of.
        kinds: of the m copies.
    """

    rows: list[Row]
    copied: Int64
    kinds: list[str]

    @classmethod
    def of(cls, rows: list[Row], n: int, seed: int) -> Planted:
        rng = np.random.default_rng(seed)
        copied = rng.choice(len(rows), n, replace=False)
        kinds = [list(KINDS)[i % len(KINDS)] for i in range(n)]
        copies = [
            planted(rows[j], kind, len(rows) + i, rng) for i, (j, kind) in enumerate(zip(copied, kinds, strict=True))
        ]
        return cls(rows + copies, copied, kinds)

    @property
    def n_before(self) -> int:
        return len(self.rows) - len(self.copied)

    @property
    def other(self) -> Bool:
        """bool [n]: neither planted nor copied."""
        other = np.ones(len(self.rows), dtype=bool)
        other[self.copied], other[self.n_before :] = False, False
        return other

    def line(self, name: str, keys: Int64 | None, vectors: Float32 | None, threshold: float) -> str:
        """What is found by keys, vectors or both: of all copies, of each kind, and among the other rows."""
        row_id = np.arange(len(self.rows))
        twin = find_duplicates(row_id, row_id, keys=keys, vectors=vectors, threshold=threshold)
        # A planted row is found when it and its original end in one group: one stands for the other, or a third for both.
        stands = np.where(twin >= 0, twin, row_id)
        hit = stands[self.n_before :] == stands[self.copied]
        # Groups among the rows that were there before.
        sizes = np.bincount(stands[: self.n_before], minlength=len(self.rows))
        grouped = (sizes[stands] > 1) & self.other
        cells = "".join(f"{hit[[k == kind for k in self.kinds]].mean():>13.1%}" for kind in KINDS)
        return f"{name:<40}{hit.mean():>9.1%}{cells}{grouped.sum() / self.other.sum():>19.2%}"

    def nearest(self, vectors: Float32) -> tuple[Float32, Float32]:
        """Cosines: of each copy with its original, of each other row with the nearest row that was there before."""
        pairs: Float32 = np.einsum("ij,ij->i", vectors[self.n_before :], vectors[self.copied])
        own = np.flatnonzero(self.other)
        return pairs, nearest_similarity(vectors[own], vectors[: self.n_before], own)


def order(pairs: Float32, others: Float32) -> float:
    """The probability that a pair is nearer than another row's nearest neighbour; ties count half."""
    ranks = np.sort(others)
    below = np.searchsorted(ranks, pairs, side="left") + np.searchsorted(ranks, pairs, side="right")
    return float(below.mean() / 2 / len(ranks))


def threshold_for(others: Float32, share: float) -> float:
    """The cosine that this share of the other rows (at least one) reaches with another row."""
    highest = np.sort(others)[-max(1, round(share * len(others)))]
    return float(np.clip(highest, 1e-6, 1.0))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, help="the first so many; all when not given")
    parser.add_argument("--planted", type=int, default=500)
    parser.add_argument(
        "--embedder", nargs="+", default=["all-minilm-l6-v2"], help="sentence encoders, model, model:POOLING@DEPTH"
    )
    parser.add_argument("--raw", action="store_true", help="the model's states also without taking off their mean")
    parser.add_argument("--model", help="whose states: the scoring model")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.002, 0.01], help="of other rows in groups")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-files", type=Path, help="folder in which vectors stay, so that work can go on")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    data = load_data([options.data])
    rows = [row for row in data if isinstance(row, Row)][: options.rows]
    pool = Planted.of([dataclasses.replace(row, row_id=i) for i, row in enumerate(rows)], options.planted, options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep_files or Path(temporary)
        config = ScoreConfig(model=options.model)
        found = vectors_of(options.embedder, pool.rows, config, EncodeConfig(), data.format, folder, options.raw)
    keys = text_keys(row.text for row in pool.rows)
    print(f"{len(rows):,} rows and {options.planted} planted near-duplicates; {pool.other.sum():,} rows are neither\n")
    print(f"{'compared':<40}{'found':>9}" + "".join(f"{kind:>13}" for kind in KINDS) + f"{'others in groups':>19}")
    print(pool.line("keys", keys, None, 1.0))
    for name, vectors in found.items():
        pairs, others = pool.nearest(vectors)
        print(f"\n{name}: order {order(pairs, others):.2%}")
        for threshold in options.thresholds:
            print(pool.line(f"  embeddings at {threshold:g}", None, vectors, threshold))
            print(pool.line(f"  both at {threshold:g}", keys, vectors, threshold))
        for share in options.shares:
            threshold = threshold_for(others, share)
            print(pool.line(f"  embeddings at {threshold:.4f} ({share:.1%} of others)", None, vectors, threshold))


if __name__ == "__main__":
    main()
