"""Which writing system a text is in: a cheap stand-in for its language, by the Unicode names of its letters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache

NO_LETTERS = "no letters"
NAMED = {"CJK": "Han", "IDEOGRAPHIC": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
"""{first word of a letter's name: its script}, where they differ."""


def script_of(text: str) -> str:
    """The writing system of most letters: "Latin", "Cyrillic", "Han", "Arabic", ..., or "no letters".

    Japanese mixes Han and Kana: a text with a Kana letter in five of the two counts as Kana.
    """
    if text.isascii():
        return "Latin" if any(letter.isalpha() for letter in text) else NO_LETTERS
    found: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            found[_script(letter)] += count
    if 4 * found["Kana"] > found["Han"]:
        found["Kana"] += found.pop("Han", 0)
    return found.most_common(1)[0][0] if found else NO_LETTERS


@cache
def _script(letter: str) -> str:
    plain = unicodedata.normalize("NFKC", letter)[0]  # wide, narrow and mathematical forms are of their letter's script
    word = unicodedata.name(plain, "unknown").partition(" ")[0].partition("-")[0]
    return NAMED.get(word, word.capitalize())
