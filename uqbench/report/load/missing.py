"""What runs lack: cells of a sweep that one method has and another has not, and families of methods."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pandas as pd

from uqbench.families import FAMILIES
from uqbench.report.places import METHOD, PLACE, describe


def gaps(rows: pd.DataFrame) -> Iterator[str]:
    """Yield one line for each method that was not run under conditions, or lacks seeds, that others of its place have.

    Before them, one line for each method of an unknown family. rows as in `Collected`. Seeds are compared on the same
    scored frames, so that a missing split shows as well.
    """
    for uq in rows.loc[rows["family"].isna(), "uq"].dropna().unique():
        yield f"family of {uq} ({', '.join(FAMILIES)}): claims take it neither for an ensemble nor for a single model"
    where = [key for key in PLACE if key not in ("split", "generation")]
    runs = rows[rows["source"] != ""].drop_duplicates(["path", "source"])
    for place, around in runs.groupby(where, sort=False, dropna=False):
        name = describe(place)
        methods = around[["uq", "shared"]].drop_duplicates()
        run = set(methods.itertuples(index=False, name=None))
        for uq, shared in itertools.product(methods["uq"].unique(), methods["shared"].unique()):
            if (uq, shared) not in run:
                yield f"{name}: {uq} was not run, or not to its end, with {shared}"
        yield from (f"{name}: {line}" for line in _seeds(around))


def _seeds(around: pd.DataFrame) -> Iterator[str]:
    """Yield what methods of one place lack; on which splits and generations, unless on all."""
    every_method = list(around[METHOD].drop_duplicates().itertuples(index=False, name=None))
    parts = list(around.groupby(["split", "generation"], sort=False, dropna=False))
    found: dict[str, list[str]] = {}
    for (split, generation), group in parts:
        cells = {method: set() for method in every_method}
        keys = zip(group["uq"], group["variant"], group["frames"], group["seed"], strict=True)
        for uq, variant, frames, seed in keys:
            cells[uq, variant].add((frames, int(seed)))
        every = set().union(*cells.values())
        for method, present in cells.items():
            missing = sorted({seed for _, seed in every - present})
            if missing:
                line = f"{', '.join(filter(None, method))} lacks seed {', '.join(map(str, missing))}"
                detail = str(split) if pd.isna(generation) else f"{split} of generation {generation}"
                found.setdefault(line, []).append(detail)
    for line, details in found.items():
        yield line if len(details) == len(parts) else f"{line} ({'; '.join(details)})"
