"""GGUF files, converted once into folders that transformers reads fast."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from instruct_prune.errors import InputError
from instruct_prune.progress import say


def cache_folder() -> Path:
    """Where converted models lie: $INSTRUCT_PRUNE_CACHE, else the user's cache folder."""
    root = os.environ.get("INSTRUCT_PRUNE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "instruct_prune"
    )
    return Path(root).expanduser()


def converted_gguf(path: Path) -> Path:
    """The safetensors folder of a GGUF file, made on first use and cached under the file's hash and transformers' major
    version, since each writes configurations and tokenizers that the other may not read.

    transformers reads GGUF in tens of seconds each time and flags the model as quantised, so that it can neither be
    saved nor masked nor trained; converted once, it is a plain float32 model.
    """
    with open(path, "rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    major = version("transformers").partition(".")[0]
    target = cache_folder() / "models" / f"{path.stem}-{key}-transformers{major}"
    if (target / "config.json").exists():
        return target
    say(f"converting {path.name} to safetensors, once (about half a minute): {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _convert_gguf(path, scratch)
        try:
            os.replace(scratch, target)
        except OSError:
            if not (target / "config.json").exists():  # else another process has put the same files there
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert_gguf(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        packed = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise InputError(f"{path} cannot be read as a GGUF model: {error}") from error
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(folder, max_shard_size="100GB")
    tokenizer.save_pretrained(folder)
