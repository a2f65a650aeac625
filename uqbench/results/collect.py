"""Reads any number of run directories into one table, and says which of them it could not use."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from uqbench.errors import DataError
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.results.reading import Record, read
from uqbench.results.tables import IDENTITY
from uqbench.results.variants import Variant, setting, variants
from uqbench.rundir import INFO

Samples = dict[tuple[str, str, str], np.ndarray]
"""(B,) bootstrap values by target, population and metric."""


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
    """What was found.

    Attributes:
        rows: the metric rows of all finished runs (see `tables.COLUMNS`), with further columns: `path` of the run,
            `variant`, which tells apart methods of equal name with different settings, `shared`, the part of it that is
            not of the method itself, `unacquired`, the part that is not of the acquisition, `acquisition` and
            `setting` of active learning, and `source` and `frames` as in `reading.Record`.
        problems: one line for each directory left out: why.
    """

    rows: pd.DataFrame
    problems: list[str]


def collect(places: Iterable[str | os.PathLike]) -> Collected:
    """Read every run at or below some folders; raises DataError where a folder is missing or holds no finished run.

    Runs inside other runs, such as the generations of active learning, have their rows there; they are read on their
    own only where they are asked for and the run around them is not.
    """
    records, problems = [], []
    for path in find(places):
        try:
            records.append(read(path))
        except DataError as error:
            problems.append(str(error))
    if not records:
        reasons = "".join(f"\n{problem}" for problem in problems[:5])
        raise DataError(f"runs: no finished run below {', '.join(map(str, places))}{reasons}")
    tables = [_table(*pair) for pair in zip(records, variants(records), strict=True)]
    rows = pd.concat(tables, ignore_index=True)
    twice = rows[rows.duplicated(["path", *IDENTITY])].drop_duplicates("path")
    for row in twice.itertuples():
        problems.append(f"{row.path}: two rows for {row.target}/{row.population}/{row.metric}")
    rows = rows[~rows["path"].isin(twice["path"])].reset_index(drop=True)
    return Collected(rows, problems)


def find(places: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the run directories at or below some folders that lie in no other one, each once, in order."""
    found: set[Path] = set()
    for place in map(Path, places):
        if not place.is_dir():
            raise DataError(f"runs: {place}: no such folder")
        found |= {Path(folder) for folder, _, files in os.walk(place) if INFO in files}
    return sorted(path for path in found if not any(parent in found for parent in path.parents))


def samples(source: str) -> Samples:
    """Read the bootstrap values of a run directory; nothing where it has none; DataError where they are damaged."""
    path = Path(source, RESAMPLES)
    if not source or not path.exists():
        return {}
    try:
        table = pd.read_parquet(path, columns=["target", "population", "metric", "values"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); used without its bootstrap values") from error
    keys = zip(table["target"], table["population"], table["metric"], strict=True)
    return {key: np.asarray(values) for key, values in zip(keys, table["values"], strict=True)}


def _table(record: Record, variant: Variant) -> pd.DataFrame:
    acquisition = record.choices.get("acquisition") or record.settings.get("acquisition._target_", "")
    added = {"path": str(record.path), "variant": str(variant), "shared": variant.shared}
    added |= {"unacquired": variant.without_acquisition, "acquisition": str(acquisition).rpartition(".")[2]}
    return record.rows.assign(**added, setting=setting(record))
