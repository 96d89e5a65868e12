"""What a model is, beside its name: hashes of its files, or of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

SAMPLE_BYTES = 1 << 20


def folder_fingerprint(folder: Path) -> str:
    """Hash of a model folder: small files whole, weight files by size and samples of their bytes (start, middle, end)."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.suffix not in (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja"):
            continue
        size = path.stat().st_size
        total.update(f"{path.relative_to(folder).as_posix()}:{size}".encode())
        with open(path, "rb") as file:
            for start in sorted({0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES)}):
                file.seek(start)
                total.update(file.read(SAMPLE_BYTES))
    return total.hexdigest()


def weights_hash(model: Any) -> str:
    """Hash of all parameters and buffers of a module, by name."""
    import torch

    total = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        total.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
