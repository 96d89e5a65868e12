"""Score a dataset on every process that the launcher starts.

accelerate launch recipes/score.py --data alpaca.jsonl --out RUN          (one or many GPUs, one or many machines)
torchrun --nproc_per_node 2 recipes/score.py --data alpaca.jsonl --out RUN  (also on CPU)

The options are those of `instruct-prune score`; run the same command again to go on after an interruption.
"""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "score")
    runpy.run_module("instruct_prune", run_name="__main__")
