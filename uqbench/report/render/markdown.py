"""Estimates, differences, tables and plain text as Markdown: here alone, text from tables becomes Markdown."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uqbench.runs.tables import number
from uqbench.text import printable


class Markdown(str):
    """Text that is Markdown already. Any other string is plain text, and is escaped where it enters a report."""


NOTHING = Markdown("–")
NEGLIGIBLE = 1e-4  # share of an estimate below which the end of its interval is written as 0
# Backslashes are written as entities, so that they cannot change what the backslashes added here do.
MARKUP = str.maketrans(
    {character: f"&#{ord(character)};" for character in "\\`$~"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    | {character: f"\\{character}" for character in "*[]#|"}
)
UNDERSCORES = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # but those within words, which are no markup
STARTS = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+]))")  # of items of lists and of rules
ORDINARY = re.compile(r"[\w ,.=/()+-]{0,100}", re.ASCII)


def escape(text: object) -> Markdown:
    """Plain text, from a table, a config or a path, as Markdown that shows just that, on one line."""
    marked = UNDERSCORES.sub(r"\_", printable(text).translate(MARKUP).strip())
    return Markdown(STARTS.sub(r"\1\\", marked))


def heading(level: int, text: str) -> str:
    """Heading of plain text."""
    return f"{'#' * level} {escape(text)}"


def item(text: str) -> str:
    """Item of a list, plain text."""
    return f"- {escape(text)}"


def image(text: str, file: str) -> str:
    """Figure of the report, with plain text for who does not see it; file: as from `slug`."""
    return f"![{escape(text)}]({file})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table, with an empty one before and after; cells are plain text unless they are `Markdown`."""
    return ["", _row(head), _row([Markdown("---")] * len(head)), *map(_row, rows), ""]


def slug(text: str) -> str:
    """Part of a file name; of its own for texts that are long, or differ in characters that file names lack."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
    if ORDINARY.fullmatch(text):
        return plain
    return f"{plain[:80]}-{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:8]}"


def with_unit(label: str, unit: str) -> str:
    """Heading of a quantity."""
    return label if unit in ("1", "") else f"{label}, {unit}"


def estimate(row: Mapping[str, Any] | None, *, bold: bool = False) -> Markdown:
    """Mean with its interval."""
    if row is None or math.isnan(row["mean"]):
        return NOTHING
    return _interval(row, bold)


def difference(row: Mapping[str, Any] | None) -> Markdown:
    """Difference with its interval, bold where that leaves out zero and covers seeds."""
    if row is None or math.isnan(row["mean"]):
        return NOTHING
    if row["runs"] < 2:
        return Markdown(f"{_interval(row, False)}, one run")
    return _interval(row, bool(row["ci_low"] > 0 or row["ci_high"] < 0))


def _interval(row: Mapping[str, Any], bold: bool) -> Markdown:
    text = f"**{number(row['mean'])}**" if bold else number(row["mean"])
    ends = row["ci_low"], row["ci_high"]
    if any(map(math.isnan, ends)):
        return Markdown(text)
    least = NEGLIGIBLE * max(map(abs, (row["mean"], *ends)))
    low, high = (0.0 if abs(end) < least else end for end in ends)
    return Markdown(f"{text} ({number(low)} … {number(high)})")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell if isinstance(cell, Markdown) else escape(cell) for cell in cells)} |"
