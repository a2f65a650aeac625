"""Columns by which rows are grouped: where methods are compared, what a method is, what is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

PLACE = ["command", "dataset", "subset", "split", "generation", "backbone", "setting"]
METHOD = ["uq", "variant"]
WHAT = ["target", "population", "metric"]


def plain(values: Iterable[Any]) -> list[Any]:
    """Group keys with None for what is missing."""
    return [None if pd.isna(value) else value for value in values]


def describe(values: Iterable[Any]) -> str:
    """Group keys that are there, as one line."""
    return ", ".join(str(value) for value in plain(values) if value is not None)
