"""Which writing system a text is in: a cheap stand-in for its language, by counting letters of Unicode blocks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LETTERS = 400
"""Characters of a text that are looked at."""

RANGES: tuple[tuple[str, str], ...] = (
    ("Latin", "41-5A 61-7A AA-AA BA-BA C0-D6 D8-F6 F8-2AF 1E00-1EFF 2C60-2C7F A720-A7FF FF21-FF3A FF41-FF5A"),
    ("Greek", "370-373 376-377 37B-37D 386-3FF 1F00-1FFF"),
    ("Cyrillic", "400-52F 1C80-1C8F 2DE0-2DFF A640-A69F"),
    ("Armenian", "531-58F"),
    ("Hebrew", "591-5F4 FB1D-FB4F"),
    ("Arabic", "620-64A 66E-6D3 6FA-6FF 750-77F 8A0-8FF FB50-FDFF FE70-FEFC"),
    ("Devanagari", "900-97F A8E0-A8FF"),
    ("Bengali", "980-9FF"),
    ("Gurmukhi", "A00-A7F"),
    ("Gujarati", "A80-AFF"),
    ("Tamil", "B80-BFF"),
    ("Telugu", "C00-C7F"),
    ("Kannada", "C80-CFF"),
    ("Malayalam", "D00-D7F"),
    ("Sinhala", "D80-DFF"),
    ("Thai", "E00-E7F"),
    ("Lao", "E80-EFF"),
    ("Tibetan", "F00-FFF"),
    ("Myanmar", "1000-109F"),
    ("Georgian", "10A0-10FF 1C90-1CBF"),
    ("Ethiopic", "1200-137F"),
    ("Khmer", "1780-17FF"),
    ("Kana", "3041-3096 309D-309F 30A1-30FA 30FC-30FF FF66-FF9D"),
    ("Hangul", "1100-11FF 3131-318E AC00-D7A3"),
    ("Han", "2E80-2FDF 3005-3007 3400-4DBF 4E00-9FFF F900-FAFF 20000-323AF"),
)
NAMES = ("no letters", *(name for name, _ in RANGES))
KANA, HAN = NAMES.index("Kana"), NAMES.index("Han")


def scripts_of(texts: Sequence[str]) -> NDArray[np.uint8]:
    """uint8 [len(texts)]: index into NAMES of the script most letters are of.

    Japanese mixes Han and Kana: a text with a Kana letter in five of the two counts as Kana.
    """
    heads = [text[:LETTERS] for text in texts]
    points = np.frombuffer("".join(heads).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    row = np.repeat(np.arange(len(heads)), [len(head) for head in heads])
    counts = np.bincount(row * len(NAMES) + _table()[points], minlength=len(heads) * len(NAMES))
    counts = counts.reshape(len(heads), len(NAMES))
    counts[:, 0] = 0
    japanese = counts[:, KANA] * 4 > counts[:, HAN]
    counts[:, KANA] += counts[:, HAN] * (japanese & (counts[:, KANA] > 0))
    return np.asarray(counts.argmax(axis=1), dtype=np.uint8)


@functools.cache
def _table() -> NDArray[np.uint8]:
    """uint8 [0x110000]: each code point's index into NAMES."""
    table = np.zeros(0x110000, dtype=np.uint8)
    for i, (_, ranges) in enumerate(RANGES, start=1):
        for pair in ranges.split():
            first, last = (int(edge, 16) for edge in pair.split("-"))
            table[first : last + 1] = i
    return table
