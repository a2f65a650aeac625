"""Estimates, differences and tables as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uqbench.runs.tables import number

NOTHING = "–"
NEGLIGIBLE = 1e-4  # share of an estimate below which the end of its interval is written as 0


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table, with an empty one before and after."""
    return ["", _row(head), _row(["---"] * len(head)), *map(_row, rows), ""]


def name(method: tuple[str, str]) -> str:
    """Name of a method with the settings that tell it from others of its name."""
    uq, variant = method
    return f"{uq} ({variant})" if variant else uq


def slug(text: str) -> str:
    """Part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def with_unit(label: str, unit: str) -> str:
    """Heading of a quantity."""
    return label if unit in ("1", "") else f"{label}, {unit}"


def estimate(row: Mapping[str, Any] | None, *, bold: bool = False) -> str:
    """Mean with its interval."""
    if row is None or math.isnan(row["mean"]):
        return NOTHING
    return _interval(row, bold)


def difference(row: Mapping[str, Any] | None) -> str:
    """Difference with its interval, bold where that leaves out zero and covers seeds."""
    if row is None or math.isnan(row["mean"]):
        return NOTHING
    if row["runs"] < 2:
        return f"{_interval(row, False)}, one run"
    return _interval(row, bool(row["ci_low"] > 0 or row["ci_high"] < 0))


def _interval(row: Mapping[str, Any], bold: bool) -> str:
    text = f"**{number(row['mean'])}**" if bold else number(row["mean"])
    ends = row["ci_low"], row["ci_high"]
    if any(map(math.isnan, ends)):
        return text
    least = NEGLIGIBLE * max(map(abs, (row["mean"], *ends)))
    low, high = (0.0 if abs(end) < least else end for end in ends)
    return f"{text} ({number(low)} … {number(high)})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
