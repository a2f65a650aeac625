"""Reads any number of run directories into one table, and says which of them it could not use."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from uqbench.errors import DataError
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.report.load.run import Record, read_run
from uqbench.report.load.variants import ACQUISITION_GROUP, METHOD_GROUP, Settings, setting, variants, written
from uqbench.runs.run_dir import INFO, MADE_FOR
from uqbench.runs.tables import IDENTITY

# Columns by which rows are grouped: where methods are compared, what a method is, what is measured.
TASK = ["command", "dataset", "subset", "split", "generation", "backbone", "setting"]
METHOD = ["uq", "variant"]
METRIC = ["target", "population", "metric"]
BATCH = 100  # runs
MOST = 8  # processes
WORTH_A_PROCESS = 5  # batches that take as long to read as a process takes to start
IN_DOMAIN = ("train", "validation", "test")

Samples = dict[tuple[str, str, str], np.ndarray]
"""(B,) bootstrap values by target, population and metric."""


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """The runs below some folders.

    Attributes:
        rows: the metric rows of all finished runs (see `tables.COLUMNS`), with further columns: `path` of the run,
            `variant`, which tells apart methods of equal name with different settings, `shared`, the part of it that is
            not of the method itself, `unacquired`, the part that is not of the acquisition, `acquisition` and
            `setting` of active learning, `uq_settings`, the part of the variant that is of the method itself,
            `source`, `frames`, `family` and `trained_on` as in `run.Record`, and `domain`: `in`, or `out` for data
            that the run was not trained with and for splits other than IN_DOMAIN.
        problems: one line for each directory left out: why.
    """

    rows: pd.DataFrame
    problems: list[str]


def load_runs(folders: Iterable[str | os.PathLike]) -> Runs:
    """Read every run at or below some folders; raises DataError where a folder is missing or holds no finished run.

    Runs inside other runs, such as the generations of active learning, have their rows there; they are read on their
    own only where they are asked for and the run around them is not.
    """
    paths = find_runs(folders)
    batches = [paths[k : k + BATCH] for k in range(0, len(paths), BATCH)]
    records, tables, problems = [], [], []
    parallel = joblib.Parallel(processes(batches, worth=WORTH_A_PROCESS), return_as="generator")
    for read, table, damaged in parallel(map(joblib.delayed(_read_all), batches)):
        records += read
        tables += [table] if read else []
        problems += damaged
    if not records:
        reasons = "".join(f"\n{problem}" for problem in problems[:5])
        raise DataError(f"runs: no finished run below {', '.join(map(str, folders))}{reasons}")
    rows = _joined(records, pa.concat_tables(tables), variants(records))
    twice = rows[rows.duplicated(["path", *IDENTITY])].drop_duplicates("path")
    problems += [f"{row.path}: two rows for {row.target}/{row.population}/{row.metric}" for row in twice.itertuples()]
    return Runs(rows[~rows["path"].isin(twice["path"])].reset_index(drop=True), problems)


def find_runs(folders: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the run directories at or below some folders that lie in no other one, each once, in order."""
    paths: set[Path] = set()
    for top in map(Path, folders):
        if not top.is_dir():
            raise DataError(f"runs: {top}: no such folder")
        paths |= {Path(folder) for folder, _, files in os.walk(top) if INFO in files}
    return sorted(path for path in paths if not any(parent in paths for parent in path.parents))


def by_task(rows: pd.DataFrame, keys: Sequence[str] = TASK) -> dict[tuple, pd.DataFrame]:
    """Rows by their values of TASK, or of some of it, in the order of the first of each; "" for what is missing."""
    groups = rows.groupby(list(keys), sort=False, dropna=False) if len(rows) else ()
    return {tuple("" if pd.isna(part) else part for part in task): group for task, group in groups}


def describe(task: Iterable[Any]) -> str:
    """The values of TASK, or of some of it, that are there, as one line."""
    return ", ".join(str(value) for value in task if not pd.isna(value))


def processes(items: Collection, *, worth: int) -> int:
    """Number of processes for some items, where one takes as long to start as `worth` of them take."""
    return max(min(joblib.cpu_count(), len(items) // worth, MOST), 1)


def read_samples(source: str) -> Samples:
    """Read the bootstrap values of a run directory; nothing where it has none; DataError where they are damaged."""
    path = Path(source, RESAMPLES)
    if not source or not path.exists():
        return {}
    try:
        table = pq.ParquetFile(path).read(columns=[*METRIC, "values"])
        keys = list(zip(*(table[name].to_pylist() for name in METRIC), strict=True))
        values = table["values"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(keys), -1)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); used without its bootstrap values") from error
    return dict(zip(keys, values, strict=True))


def _read_all(paths: Iterable[Path]) -> tuple[list[Record], pa.Table | None, list[str]]:
    """Read runs: their records, the rows of all in one table, which is passed on faster, and why others were left.

    Models that were trained only to have layers fitted on them are left out: nobody has asked for their scores.
    """
    records, tables, problems = [], [], []
    for path in paths:
        try:
            record, rows = read_run(path)
        except DataError as error:
            problems.append(str(error))
            continue
        if not record.info.get(MADE_FOR):
            records.append(record)
            tables.append(rows)
    return records, pa.concat_tables(tables).combine_chunks() if tables else None, problems


def _joined(records: list[Record], table: pa.Table, variants: list[Settings]) -> pd.DataFrame:
    """All rows with the columns that `Runs` describes; those of a few values for many rows are categories."""
    types = {pa.int64(): pd.Int64Dtype(), pa.string(): pd.StringDtype("pyarrow")}
    rows = table.to_pandas(types_mapper=types.get)
    lengths = [record.count for record in records]
    run = np.repeat(np.arange(len(records)), lengths)

    def spread(values: list[str | None]) -> pd.Categorical:
        codes, known = pd.factorize(np.array(values, dtype=object))
        return pd.Categorical.from_codes(codes[run], known)

    def by_row(values: list[str | list[str]]) -> pd.Categorical:
        every = (value if isinstance(value, list) else [value] * n for value, n in zip(values, lengths, strict=True))
        return pd.Categorical(list(itertools.chain.from_iterable(every)))

    rows["path"] = spread([_text(record.path) for record in records])
    columns = {
        "variant": [written(settings) for settings in variants],
        "shared": [written(settings, without=METHOD_GROUP) for settings in variants],
        "unacquired": [written(settings, without=ACQUISITION_GROUP) for settings in variants],
        "acquisition": [record.option(ACQUISITION_GROUP) for record in records],
        "setting": [setting(record) for record in records],
        "uq_settings": [written(settings, within=METHOD_GROUP) for settings in variants],
        "trained_on": [record.trained_on for record in records],
        "family": [record.family for record in records],
    }
    for column, values in columns.items():
        rows[column] = spread(values).astype(rows["uq"].dtype)
    foreign = np.array([record.foreign for record in records])[run]
    rows["domain"] = np.where(foreign | ~rows["split"].isin(IN_DOMAIN), "out", "in")
    rows["source"] = by_row([record.sources for record in records])
    rows["frames"] = by_row([record.frames for record in records])
    return rows


def _text(path: Path) -> str:
    """A path in characters: its bytes need not be any."""
    return str(path).encode(errors="backslashreplace").decode()
