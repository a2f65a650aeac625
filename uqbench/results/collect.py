"""Reads any number of run directories into one table, and says which of them it could not use."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uqbench import config, rundir
from uqbench.errors import DataError, UqbenchError
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.results.runs import METRICS
from uqbench.results.tables import metric_frame
from uqbench.rundir import INFO, Run

# Repetitions of one experiment differ in these only, and so in the weights that they evaluate.
REPEATED = ("seed", "dataset.seed", "dataset.split", "evaluation.seed", "source_sha256")


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
    """What was found.

    Attributes:
        rows: the metric rows of all finished runs (see `tables.COLUMNS`), with three further columns: `path` of the
            run, `variant`, which tells apart methods of equal name with different settings, and `frames`, which is
            equal for runs scored on the same labelled structures.
        resamples: (B,) bootstrap values by (path, target, population, metric).
        problems: one line for each directory left out: why.
    """

    rows: pd.DataFrame
    resamples: dict[tuple[str, str, str, str], np.ndarray]
    problems: list[str]


def collect(places: Iterable[str | os.PathLike]) -> Collected:
    """Read every run at or below some folders; raises DataError where a folder is missing or holds no finished run."""
    runs, problems = [], []
    for path in find(places):
        try:
            run = rundir.read(path)
            runs.append((run, _read(run)))
        except UqbenchError as error:
            problems.append(str(error))
    if not runs:
        reasons = "".join(f"\n{problem}" for problem in problems[:5])
        raise DataError(f"runs: no finished run below {', '.join(map(str, places))}{reasons}")
    names = variants([run for run, _ in runs])
    tables, resamples = [], {}
    for (run, table), variant in zip(runs, names, strict=True):
        table["path"], table["variant"] = str(run.path), variant
        table["frames"] = run.info.get("scored_sha256", run.info["data_sha256"])
        tables.append(table)
        try:
            resamples |= _read_resamples(run)
        except DataError as error:
            problems.append(f"{error} (used without its bootstrap values)")
    return Collected(pd.concat(tables, ignore_index=True), resamples, problems)


def find(places: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the run directories at or below some folders, each once, in alphabetical order."""
    found: set[Path] = set()
    for place in map(Path, places):
        if not place.is_dir():
            raise DataError(f"runs: {place}: no such folder")
        found |= {path.parent for path in place.rglob(INFO)}
    return sorted(found)


def variants(runs: list[Run]) -> list[str]:
    """Return for each run the settings, as `key=value`, in which runs of the same labels differ; mostly nothing.

    Seeds and splits repeat an experiment; everything else that differs makes another one, which must never be averaged
    with the first.
    """
    groups: dict[tuple, list[int]] = {}
    flat = []
    for number, run in enumerate(runs):
        values = run.info.get("source_settings", {}) | config.settings(run.config)
        flat.append({key: value for key, value in values.items() if key not in REPEATED})
        groups.setdefault(tuple(sorted((k, str(v)) for k, v in _identity(run).items())), []).append(number)
    names = [""] * len(runs)
    for members in groups.values():
        keys = sorted({key for number in members for key in flat[number]})
        differing = [key for key in keys if len({repr(flat[number].get(key)) for number in members}) > 1]
        for number in members:
            names[number] = ", ".join(f"{key}={flat[number].get(key)}" for key in differing)
    return names


def _identity(run: Run) -> dict[str, Any]:
    labels = run.info.get("labels") or {}
    own = {name: labels.get(name) for name in ("dataset", "subset", "backbone", "uq")}
    return own | {"command": run.config.get("command")}


def _read(run: Run) -> pd.DataFrame:
    try:
        return metric_frame(run.read_csv(METRICS).to_dict("records"))
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{run.path / METRICS}: not a table of metrics ({error})") from error


def _read_resamples(run: Run) -> dict[tuple[str, str, str, str], np.ndarray]:
    path = run.path / RESAMPLES
    if not path.exists():
        return {}
    try:
        table = pd.read_parquet(path, columns=["target", "population", "metric", "values"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged ({error})") from error
    keys = zip(table["target"], table["population"], table["metric"], strict=True)
    return {(str(run.path), *key): np.asarray(values) for key, values in zip(keys, table["values"], strict=True)}
