"""From the rows of runs to estimates per method and paired differences between methods."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from uqbench.errors import DataError
from uqbench.metrics.ranges import range_of
from uqbench.report.load.missing import missing_runs
from uqbench.report.load.runs import METHOD, METRIC, TASK, Runs, Samples, read_samples
from uqbench.report.statistics import metrics
from uqbench.report.statistics.intervals import Estimate, Values, difference, estimate, share, share_difference
from uqbench.runs.tables import IDEAL

CARRIED = ("acquisition", "unacquired", "shared", "domain", "trained_on")  # columns that the summary takes over
NAN = float("nan")

Method = tuple[str, str]
Labels = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side.

    Attributes:
        summary: one row per task, method and metric: TASK, METHOD, METRIC, unit, mean, ci_low, ci_high, runs, seeds_sd,
            ideal, `best`: whether no method is better beyond chance, `values` of the single runs, and CARRIED as in
            `Runs`.
        differences: one row per task, method and metric: the method minus the one compared against.
        acquisitions: the same of runs of active learning that differ in the acquisition, seed by seed: `acquisition`
            minus `against`; `unacquired` as in `Runs`.
        missing: seeds that some method of a task lacks although another has them, one line each.
        problems: bootstrap values that could not be used, one line each.
    """

    summary: pd.DataFrame
    differences: pd.DataFrame
    acquisitions: pd.DataFrame
    missing: list[str]
    problems: list[str]


def compare(runs: Runs, *, against: str, units: str) -> Comparison:
    """Compare all methods on each task (data set, backbone, ...), and each with the method `against`.

    units: `eV` or `kcal/mol`. Intervals are at 95 % and cover both structures and seeds, see `intervals`. Methods are
    compared with `against` under the same conditions; where it was not run under them, with its only other variant.
    """
    summary, differences, acquisitions, problems = [], [], [], []
    for task, rows in _tasks(metrics.with_absolute_barrier_errors(runs.rows), units):
        references, acquired = _references(rows, against), list(_acquisitions(rows))
        for metric, cells in _cells(rows, problems):
            labels = task | metric
            summary += _means(labels, cells)
            if metric["target"] == "cost":
                continue  # on machines that do other things as well: no statistics of the method
            for method, cell in cells.items():
                reference = cells.get(references.get(method))
                if reference is not None and reference is not cell and cell.values.overlaps(reference.values):
                    columns = _columns(_difference(labels, cell, reference))
                    differences.append(labels | _named(method) | {"against": against} | columns)
            for method, other, sides in acquired:
                if method in cells and other in cells and cells[method].repeats(cells[other]):
                    columns = _columns(_difference(labels, cells[method], cells[other], by_seed=True))
                    acquisitions.append(labels | _named(method) | sides | columns)
    tables = [pd.DataFrame(records) for records in (summary, differences, acquisitions)]
    return Comparison(*tables, list(missing_runs(runs.rows)), problems)


def _tasks(rows: pd.DataFrame, units: str) -> Iterator[tuple[Labels, pd.DataFrame]]:
    """Yield each task with its rows; the ideal value and the factor of the change of units are columns."""
    converted = metrics.convert_units(rows, units)
    # Bootstrap values are kept in the units of the program.
    factor = np.where(converted["unit"] == rows["unit"], 1.0, metrics.EV_IN_KCAL_MOL)
    converted = converted.assign(factor=factor)
    for task, group in converted.groupby(TASK, sort=False, dropna=False):
        ideal = group["metric"].str.endswith(IDEAL)
        keys = ["path", *METRIC]
        beside = group[ideal].assign(metric=group.loc[ideal, "metric"].str.removesuffix(IDEAL))[[*keys, "value"]]
        beside = beside.rename(columns={"value": "ideal"})
        labels = {key: None if pd.isna(value) else value for key, value in zip(TASK, task, strict=True)}
        yield labels, group[~ideal].merge(beside, on=keys, how="left")


@dataclasses.dataclass(frozen=True, eq=False)
class _Cell:
    """One metric of one method: its values, and which rows of the columns of its task they are."""

    values: Values
    index: np.ndarray
    columns: Mapping[str, np.ndarray]

    def column(self, name: str) -> np.ndarray:
        return self.columns[name][self.index]

    def first(self, name: str) -> Any:
        return self.columns[name][self.index[0]]

    @property
    def repetitions(self) -> list[tuple[int, str]]:
        """Seed and frames of each run."""
        return list(zip(self.column("seed").tolist(), self.values.frames, strict=True))

    def repeats(self, other: _Cell) -> bool:
        """Whether some run of it has the seed of one of the other."""
        return bool(set(self.repetitions) & set(other.repetitions))

    def minus(self, other: _Cell) -> Values:
        """Differences between runs of the same seed, which started from the same model, where scored alike."""
        theirs = {key: (value, samples) for key, value, samples in other._runs()}
        values, frames, samples = [], [], []
        for key, value, sample in self._runs():
            if key in theirs:
                subtracted, resampled = theirs[key]
                alike = sample is not None and resampled is not None and len(sample) == len(resampled)
                values.append(value - subtracted)
                frames.append(key[1])
                samples.append(sample - resampled if alike else None)
        return Values(values, frames, samples)

    def _runs(self) -> Iterator[tuple[tuple[int, str], float, np.ndarray | None]]:
        return zip(self.repetitions, self.values.values, self.values.samples, strict=True)


def _cells(rows: pd.DataFrame, problems: list[str]) -> Iterator[tuple[Labels, dict[Method, _Cell]]]:
    """Yield each metric of a task with the cell of every method."""
    columns = {name: rows[name].to_numpy() for name in ("ideal", "n", "ci_low", "ci_high", *CARRIED)}
    columns |= {name: rows[name].to_numpy(object) for name in ("frames", "source", "unit")}
    columns |= {"seed": rows["seed"].to_numpy(int)}
    columns |= {name: rows[name].to_numpy(float) for name in ("value", "factor")}
    samples = _samples(rows, problems)
    cells: dict[tuple, dict[Method, _Cell]] = {}
    for key, index in rows.groupby([*METRIC, *METHOD], sort=False).indices.items():
        metric, method = key[: len(METRIC)], key[len(METRIC) :]
        resampled: list[np.ndarray | None] = [None] * len(index)
        if samples:
            factor = columns["factor"][index[0]]
            stored = [samples.get(source, {}).get(metric) for source in columns["source"][index]]
            resampled = [None if sample is None else factor * sample for sample in stored]
        values = Values(columns["value"][index].tolist(), columns["frames"][index].tolist(), resampled)
        cells.setdefault(metric, {})[method] = _Cell(values, index, columns)
    for metric, by_method in cells.items():
        unit = str(next(iter(by_method.values())).first("unit"))
        yield dict(zip(METRIC, metric, strict=True)) | {"unit": unit}, by_method


def _samples(rows: pd.DataFrame, problems: list[str]) -> dict[str, Samples]:
    """Bootstrap values of the runs of a task, by folder; none where nothing would be learned from them."""
    sets = rows.groupby(METHOD)["frames"].nunique()
    # Between several sets of frames the chance of the structures shows without resampling.
    if not (sets == 1).any() and not rows["generation"].notna().any():
        return {}
    samples = {}
    for source in dict.fromkeys(rows["source"]):
        try:
            samples[source] = read_samples(source)
        except DataError as error:
            problems.append(str(error))
    return samples


def _references(rows: pd.DataFrame, against: str) -> dict[Method, Method]:
    """For each method, the variant of `against` under the same conditions, or else its only one."""
    methods = rows[[*METHOD, "shared"]].drop_duplicates(METHOD).astype(str)
    others = methods[methods["uq"] == against]
    references = {}
    for uq, variant, shared in methods.itertuples(index=False, name=None):
        alike = others[others["shared"] == shared]
        chosen = alike if len(alike) else others
        if len(chosen) == 1:
            references[uq, variant] = tuple(chosen[METHOD].iloc[0])
    return references


def _acquisitions(rows: pd.DataFrame) -> Iterator[tuple[Method, Method, Labels]]:
    """Yield pairs that differ in the acquisition alone, each against the simpler ones, and what both sides are."""
    methods = rows[[*METHOD, "unacquired", "acquisition"]].drop_duplicates(METHOD).astype(str)
    for (_, unacquired), group in methods.groupby(["uq", "unacquired"], sort=False):
        pairs = itertools.permutations(zip(group["uq"], group["variant"], group["acquisition"], strict=True), 2)
        for (*method, acquisition), (*other, against) in pairs:
            if acquisition == metrics.PROPOSED != against:
                sides = {"acquisition": acquisition, "against": against, "unacquired": unacquired}
                yield tuple(method), tuple(other), sides


def _means(labels: Labels, cells: dict[Method, _Cell]) -> Iterator[dict[str, Any]]:
    """Yield a row of the summary for each method."""
    best = set() if labels["target"] == "cost" else _best(labels["metric"], cells)
    for method, cell in cells.items():
        ideals = cell.column("ideal")
        known = ideals[np.isfinite(ideals)]
        extra = {"ideal": float(known.mean()) if len(known) else NAN, "best": method in best}
        extra |= {"values": cell.values.values}
        extra |= {name: cell.first(name) for name in CARRIED}
        yield labels | _named(method) | _columns(_mean(labels, cell), *range_of(labels["metric"])) | extra


def _mean(labels: Labels, cell: _Cell) -> Estimate:
    if (labels["target"], labels["metric"]) in metrics.SHARES:
        trials = cell.column("n").astype(float)
        return share(np.rint(np.asarray(cell.values.values) * trials), trials)
    mean = estimate(cell.values)
    if labels["target"] == "cost":
        return dataclasses.replace(mean, low=NAN, high=NAN)
    if len(cell.index) == 1 and np.isnan(mean.low):  # what the run itself says of its spread
        return dataclasses.replace(mean, low=float(cell.first("ci_low")), high=float(cell.first("ci_high")))
    return mean


def _difference(labels: Labels, one: _Cell, other: _Cell, *, by_seed: bool = False) -> Estimate:
    if (labels["target"], labels["metric"]) in metrics.SHARES:
        return share_difference(_mean(labels, one), _mean(labels, other))
    return estimate(one.minus(other)) if by_seed else difference(one.values, other.values)


def _best(metric: str, cells: dict[Method, _Cell]) -> set[Method]:
    """The methods that no other one beats beyond chance; none where there is nothing to compare."""
    defined = {method: cell.values for method, cell in cells.items() if np.all(np.isfinite(cell.values.values))}
    if len(defined) < 2 or metrics.badness(metric, []) is None:
        return set()
    bad = {method: values.map(lambda array: metrics.badness(metric, array)) for method, values in defined.items()}
    leader = min(bad, key=lambda method: np.mean(bad[method].values))
    rivals = {method: values for method, values in bad.items() if method != leader and values.overlaps(bad[leader])}
    return {leader} | {method for method, values in rivals.items() if not difference(values, bad[leader]).low > 0}


def _named(method: Method) -> dict[str, str]:
    return dict(zip(METHOD, method, strict=True))


def _columns(numbers: Estimate, lowest: float = -np.inf, highest: float = np.inf) -> dict[str, float]:
    return {
        "mean": numbers.mean,
        "ci_low": float(np.maximum(numbers.low, lowest)),
        "ci_high": float(np.minimum(numbers.high, highest)),
        "runs": numbers.runs,
        "seeds_sd": numbers.seeds,
    }
