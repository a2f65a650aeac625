"""Reads any number of run directories into one table, and says which of them it could not use."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from uqbench.errors import DataError
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.report.load.run import Record, read_all
from uqbench.report.load.variants import Variant, setting, variants
from uqbench.report.parallel import mapped
from uqbench.runs.run_dir import INFO
from uqbench.runs.tables import IDENTITY

BATCH = 100  # runs
WORTH_A_PROCESS = 5  # batches
IN_DOMAIN = ("train", "validation", "test")

Samples = dict[tuple[str, str, str], np.ndarray]
"""(B,) bootstrap values by target, population and metric."""


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
    """What was found.

    Attributes:
        rows: the metric rows of all finished runs (see `tables.COLUMNS`), with further columns: `path` of the run,
            `variant`, which tells apart methods of equal name with different settings, `shared`, the part of it that is
            not of the method itself, `unacquired`, the part that is not of the acquisition, `acquisition` and
            `setting` of active learning, `own`, the part of the variant that is of the method itself, `source`,
            `frames`, `family` and `trained_on` as in `reading.Record`, and `domain`: `in`, or `out` for data that the
            run was not trained with and for splits other than IN_DOMAIN.
        problems: one line for each directory left out: why.
    """

    rows: pd.DataFrame
    problems: list[str]


def collect(places: Iterable[str | os.PathLike]) -> Collected:
    """Read every run at or below some folders; raises DataError where a folder is missing or holds no finished run.

    Runs inside other runs, such as the generations of active learning, have their rows there; they are read on their
    own only where they are asked for and the run around them is not.
    """
    paths = find(places)
    batches = [paths[k : k + BATCH] for k in range(0, len(paths), BATCH)]
    records, tables, problems = [], [], []
    for found, table, damaged in mapped(read_all, batches, worth=WORTH_A_PROCESS):
        records += found
        tables += [table] if found else []
        problems += damaged
    if not records:
        reasons = "".join(f"\n{problem}" for problem in problems[:5])
        raise DataError(f"runs: no finished run below {', '.join(map(str, places))}{reasons}")
    rows = _joined(records, pa.concat_tables(tables), variants(records))
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
        table = pq.ParquetFile(path).read(columns=["target", "population", "metric", "values"])
        keys = list(zip(*(table[name].to_pylist() for name in ("target", "population", "metric")), strict=True))
        values = table["values"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(keys), -1)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); used without its bootstrap values") from error
    return dict(zip(keys, values, strict=True))


def _joined(records: list[Record], table: pa.Table, names: list[Variant]) -> pd.DataFrame:
    """All rows with the columns that `Collected` describes; those of a few values for many rows are categories."""
    types = {pa.int64(): pd.Int64Dtype(), pa.string(): pd.StringDtype("pyarrow")}
    rows = table.to_pandas(types_mapper=types.get)
    lengths = [record.count for record in records]
    run = np.repeat(np.arange(len(records)), lengths)

    def spread(values: list[str | None]) -> pd.Categorical:
        codes, known = pd.factorize(np.array(values, dtype=object))
        return pd.Categorical.from_codes(codes[run], known)

    def by_row(values: list[str | list[str]]) -> pd.Categorical:
        every = (own if isinstance(own, list) else [own] * n for own, n in zip(values, lengths, strict=True))
        return pd.Categorical(list(itertools.chain.from_iterable(every)))

    rows["path"] = spread([_text(record.path) for record in records])
    columns = {
        "variant": [str(name) for name in names],
        "shared": [name.shared for name in names],
        "unacquired": [name.without_acquisition for name in names],
        "acquisition": [_acquisition(record) for record in records],
        "setting": [setting(record) for record in records],
        "own": [name.own for name in names],
        "trained_on": [record.trained_on for record in records],
        "family": [record.family for record in records],
    }
    for column, values in columns.items():
        rows[column] = spread(values).astype(rows["uq"].dtype)
    foreign = np.repeat([record.foreign for record in records], lengths)
    rows["domain"] = np.where(foreign | ~rows["split"].isin(IN_DOMAIN), "out", "in")
    rows["source"] = by_row([record.sources for record in records])
    rows["frames"] = by_row([record.frames for record in records])
    return rows


def _text(path: Path) -> str:
    """A path in characters: its bytes need not be any."""
    return str(path).encode(errors="backslashreplace").decode()


def _acquisition(record: Record) -> str:
    named = record.choices.get("acquisition") or record.settings.get("acquisition._target_", "")
    return str(named).rpartition(".")[2]
