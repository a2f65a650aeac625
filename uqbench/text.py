"""Text that comes from files and configs, made safe to show: as characters, none of which steer what shows them."""

from __future__ import annotations

import unicodedata

# Control characters and formats (also what turns the direction of writing), lone surrogates, ends of lines.
STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: object) -> str:
    r"""Return a text with every character that steers a terminal or a page written out, such as `\x1b` and `\n`."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(_written_out(c) if unicodedata.category(c) in STEERING else c for c in text)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode()
