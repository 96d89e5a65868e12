"""A LoRA adapter in a folder, as PEFT saves it (Hu et al., arXiv 2106.09685): what it is for and by how much it counts. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.storage import digest, sha256_of

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BEGINNING = "base_model.model."
"""Before the name of a module of the base model, in the names that PEFT gives to an adapter's matrices."""
NEW_MATRICES = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to begin an adapter (``init_lora_weights``) that leave the base model as it is."""
PLAIN_LORA = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "target_parameters", "task_type", "trainable_token_indices",
    "use_rslora",
}  # fmt: skip
"""Keys of the configuration under which an adapter stays output + scale * B(A(input)). Others (``use_dora``, ...) are variants
of LoRA, also such as are not invented yet. What these keys put into the folder beside A and B is refused where it is read."""


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that has been looked at, its weights unread.

    Attributes:
        folder: where it lies.
        config: ``adapter_config.json``.
    """

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def open(cls, name: str) -> AdapterFolder:
        """Look at a folder.

        Raises:
            InputError: it is none, holds no adapter, one that is kept in a pickle, or one that is more than LoRA matrices.
        """
        folder = Path(name).expanduser()
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"adapter:{name}: {_what_is_there(folder)}. Name the folder that PEFT's save_pretrained wrote."
            )
        if not (folder / WEIGHTS).is_file():
            kept = (
                f"{PICKLE} is a pickle, and reading one may run any code"
                if (folder / PICKLE).exists()
                else "is not there"
            )
            raise InputError(
                f"adapter:{name}: {WEIGHTS} is wanted ({kept}). Save the adapter anew with a present PEFT."
            )
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            found = cls(folder, config)
            refused = found._beyond_lora()
            float(found.scale("", 1))
        except (ValueError, TypeError, AttributeError, KeyError, re.error) as error:
            raise InputError(f"adapter:{name}: {CONFIG} cannot be read: {error}") from None
        if refused:
            raise InputError(
                f"adapter:{name} is not a plain LoRA adapter ({refused}), and only those can be switched on here. Merge it into "
                "its base model (PEFT's merge_and_unload), and give that as --model."
            )
        return found

    @property
    def identity(self) -> str:
        """Digest of the adapter's weights and configuration, whatever its folder is called."""
        return digest([sha256_of(self.folder / name) for name in (WEIGHTS, CONFIG)])

    def scale(self, module: str, rank: int) -> float:
        """What B(A(input)) is multiplied by for a module of the base model.

        Args:
            module: its name.
            rank: of its matrices.
        """
        patterns = self.config.get("alpha_pattern") or {}
        # The first pattern that fits the end of the name, as PEFT's get_pattern_key takes it.
        pattern = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
        alpha = float(self.config["lora_alpha"] if pattern is None else patterns[pattern])
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _beyond_lora(self) -> str:
        """What the adapter is beside matrices A and B, "" where it is nothing else."""
        kind = self.config.get("peft_type")
        if kind != "LORA":
            return f"its peft_type is {kind}"
        start = self.config.get("init_lora_weights", True)
        if start not in NEW_MATRICES:
            return f"it began by changing the base model's weights, init_lora_weights={start}"
        return next((f"{key} is {value}" for key, value in self.config.items() if value and key not in PLAIN_LORA), "")


def adapter_name(folder: str) -> str:
    """What an adapter is called after its folder; after the one around it where that is just called "adapter"."""
    path = Path(folder).expanduser().absolute()
    return re.sub(r"\W+", "_", path.parent.name if path.name == "adapter" else path.name).strip("_")


def _what_is_there(folder: Path) -> str:
    if not folder.exists():
        return "there is no such folder"
    return f"it holds no adapter (it has no {CONFIG})" if folder.is_dir() else "it is a file"
