"""What runs lack: cells of a sweep that one method has and another has not, and families of methods."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pandas as pd

from uqbench.families import FAMILIES
from uqbench.report.load.runs import METHOD, TASK, describe


def missing_runs(rows: pd.DataFrame) -> Iterator[str]:
    """Yield one line for each method that was not run under conditions, or lacks seeds, that others of its task have.

    Before them, one line for each method of an unknown family. rows as in `Runs`. Seeds are compared on the same
    scored frames, so that a missing split shows as well.
    """
    for uq in rows.loc[rows["family"].isna(), "uq"].dropna().unique():
        yield f"family of {uq} ({', '.join(FAMILIES)}): claims take it neither for an ensemble nor for a single model"
    keys = [key for key in TASK if key not in ("split", "generation")]
    runs = rows[rows["source"] != ""].drop_duplicates(["path", "source"])
    for task, runs_of_task in runs.groupby(keys, sort=False, dropna=False):
        name = describe(task)
        methods = runs_of_task[["uq", "shared"]].drop_duplicates()
        done = set(methods.itertuples(index=False, name=None))
        for uq, shared in itertools.product(methods["uq"].unique(), methods["shared"].unique()):
            if (uq, shared) not in done:
                yield f"{name}: {uq} was not run, or not to its end, with {shared}"
        yield from (f"{name}: {line}" for line in _missing_seeds(runs_of_task))


def _missing_seeds(runs: pd.DataFrame) -> Iterator[str]:
    """Yield what methods of one task lack; on which splits and generations, unless on all."""
    methods = list(runs[METHOD].drop_duplicates().itertuples(index=False, name=None))
    parts = list(runs.groupby(["split", "generation"], sort=False, dropna=False))
    lines: dict[str, list[str]] = {}
    for (split, generation), part in parts:
        cells = {method: set() for method in methods}
        for uq, variant, frames, seed in zip(part["uq"], part["variant"], part["frames"], part["seed"], strict=True):
            cells[uq, variant].add((frames, int(seed)))
        every = set().union(*cells.values())
        for method, present in cells.items():
            seeds = sorted({seed for _, seed in every - present})
            if seeds:
                line = f"{', '.join(filter(None, method))} lacks seed {', '.join(map(str, seeds))}"
                where = str(split) if pd.isna(generation) else f"{split} of generation {generation}"
                lines.setdefault(line, []).append(where)
    for line, details in lines.items():
        yield line if len(details) == len(parts) else f"{line} ({'; '.join(details)})"
