"""``python -m instruct_prune``, and so ``accelerate launch -m instruct_prune score ...``."""

from instruct_prune.cli import console_script

if __name__ == "__main__":
    console_script()
