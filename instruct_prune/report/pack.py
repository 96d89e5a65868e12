"""Data for the page as one compressed text: a JSON header and binary columns, in letters that HTML cannot take for markup."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGN = 8


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Base64 of gzip of: length of the JSON (uint32), JSON, then the arrays, each at a multiple of 8 bytes.

    The JSON is ``{"header": ..., "arrays": {name: [dtype, offset after the JSON, length]}}``, padded with spaces. Base64
    has no character that HTML gives a meaning, so hostile text cannot leave its element.
    """
    parts: list[bytes] = []
    table: dict[str, tuple[str, int, int]] = {}
    offset = 0
    for name, array in arrays.items():
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        data = little.tobytes()
        table[name] = (array.dtype.name, offset, len(array))
        parts.append(data + bytes(-len(data) % ALIGN))
        offset += len(parts[-1])
    text = json.dumps({"header": header, "arrays": table}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    meta = text.encode()
    meta += b" " * (-(4 + len(meta)) % ALIGN)
    return squeeze(len(meta).to_bytes(4, "little") + meta + b"".join(parts))


def squeeze(data: bytes) -> str:
    """Base64 of gzip, the same for the same bytes (no time stamp)."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")


def small_codes(values: NDArray[Any], missing: bool = False) -> NDArray[Any]:
    """Whole numbers >= 0 in the smallest unsigned type that holds them; with ``missing``, -1 becomes its largest value."""
    top = int(values.max(initial=0)) + int(missing)
    kind = next(t for t in (np.uint8, np.uint16, np.uint32) if top <= np.iinfo(t).max)
    return np.where(values < 0, np.iinfo(kind).max, values).astype(kind) if missing else values.astype(kind)


def spread(values: NDArray[Any]) -> tuple[NDArray[np.uint16], float, float]:
    """Floats as 65,536 steps between their least and greatest: (uint16 [n], least, greatest). NaN becomes the least."""
    finite = np.isfinite(values)
    low, high = (float(f(values[finite])) if finite.any() else 0.0 for f in (np.min, np.max))
    scale = 65535 / (high - low) if high > low else 0.0
    steps = np.rint((np.where(finite, values, low).astype(np.float64) - low) * scale)
    return steps.astype(np.uint16), low, high
