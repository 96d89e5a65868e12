"""What pruning did to the planted rows of data_samples/: `python recipes/demo_report.py RUN KEY.json`.

The key says which lines were planted; the tool itself never reads it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

RANDOM_DRAWS = 200
GROUPS = "near_duplicates"


def dropped_duplicates(groups: list[list[int]], kept: set[int]) -> int:
    """Rows of near-duplicate groups that went, counting one of each group as the one that may stay."""
    return sum(len(group) - max(1, len(kept & set(group))) for group in groups if group)


def main(run: str, key_path: str) -> None:
    selection = pq.read_table(Path(run) / "selection.parquet").to_pandas()
    key = json.loads(Path(key_path).read_text(encoding="utf-8"))
    lines = selection.row_id.to_numpy() + 1
    kept = set(lines[selection.selected].tolist())
    there = set(lines.tolist())
    key = {name: [line for line in planted if line in there] for name, planted in key.items() if name != GROUPS} | {
        GROUPS: [[line for line in group if line in there] for group in key[GROUPS]]
    }
    rng = np.random.default_rng(0)
    draws = [set(rng.choice(lines, len(kept), replace=False).tolist()) for _ in range(RANDOM_DRAWS)]

    print(
        f"\nplanted rows dropped, keeping {len(kept)} of {len(lines)}      this run    random subsets of that size (mean)"
    )
    extra = sum(len(group) - 1 for group in key[GROUPS] if group)
    ours = dropped_duplicates(key[GROUPS], kept)
    chance = np.mean([dropped_duplicates(key[GROUPS], draw) for draw in draws])
    print(f"  {f'superfluous near-duplicates ({extra})':<45}{ours:>6}          {chance:>6.1f}")
    for name in ("garbled", "wrong", "trivial", "hard"):
        planted = set(key[name])
        ours = len(planted - kept)
        chance = np.mean([len(planted - draw) for draw in draws])
        print(f"  {f'{name:<9}({len(planted)})':<45}{ours:>6}          {chance:>6.1f}")
    code = set(key["code"])
    chance = np.mean([len(code & draw) for draw in draws])
    print(f"{f'rows of code kept, of {len(code)}':<47}{len(code & kept):>6}          {chance:>6.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What pruning did to the planted rows of data_samples/.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("key", help="KEY.json: which lines were planted")
    given = parser.parse_args()
    main(given.run, given.key)
