"""What a training script does around its work: options from flags and a YAML file, errors as sentences, exit codes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from instruct_prune.config_file import load_yaml, take_flags
from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.train.processes import is_main

Options = TypeVar("Options")


def parse(kind: type[Options], words: Sequence[str], description: str) -> Options:
    """A dataclass of options from --config FILE.yaml and flags; flags win.

    Raises:
        InputError: --config names no file, or one that is missing or has a key that does not exist.
    """
    import tyro

    given, rest = take_flags(words)
    default = load_yaml(given.config, kind) if given.config else kind()
    return tyro.cli(kind, args=rest, default=default, description=description)


def run_script(name: str, action: Callable[[], object]) -> int:
    """Exit code: 0 done, 1 incomplete, 2 wrong input (told in a sentence, once), 130 interrupted."""
    # peft asks transformers 5 for an attribute by its old name; users can do nothing about it.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    code = 0
    try:
        action()
    except IncompleteRunError as error:
        print(f"{name}: incomplete: {error}", file=sys.stderr, flush=True)
        return 1
    except InputError as error:
        if is_main():
            print(f"{name}: error: {error}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to go on from the last checkpoint.", file=sys.stderr)
        return 130
    from instruct_prune.measure.ranks import leave_group  # loads torch

    leave_group()  # here, where no error holds the model any more
    return code
