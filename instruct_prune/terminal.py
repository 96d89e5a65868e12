"""Dataset text is hostile in terminals: control, bidirectional and invisible characters are shown, never obeyed."""

from __future__ import annotations

import unicodedata

KEPT = "\n\t"


def safe(text: str) -> str:
    """The text with control (Cc), format (Cf: bidi, zero width), surrogate and private characters as ``\\x1b`` escapes."""
    return "".join(
        c if c in KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else escaped(c) for c in text
    )


def tell(text: str) -> None:
    """Print lines on standard output, safe."""
    print(safe(text))


def one_line(text: str, width: int = 100) -> str:
    """The text on one line, safe, cut with an ellipsis to ``width`` characters."""
    flat = " ".join(safe(text[: 4 * width]).split())
    return flat if len(flat) <= width and len(text) <= 4 * width else flat[: width - 1] + "…"


def escaped(c: str) -> str:
    """A character as people can see it, whatever it is."""
    return c.encode("unicode_escape").decode("ascii") if not 0xD800 <= ord(c) <= 0xDFFF else f"\\u{ord(c):04x}"
