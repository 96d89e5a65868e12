"""recipes/score.py, except that a silent rank is given up after three seconds."""

import sys

from instruct_prune.cli import console_script
from instruct_prune.measure import heartbeat

if __name__ == "__main__":
    heartbeat.DEAD_AFTER_SECONDS = 3.0
    sys.argv.insert(1, "score")
    console_script()
