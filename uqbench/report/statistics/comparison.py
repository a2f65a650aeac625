"""From collected runs to estimates per method and paired differences between methods."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from uqbench.errors import DataError
from uqbench.report.load.missing import gaps
from uqbench.report.load.runs import Collected, Samples, samples
from uqbench.report.places import METHOD, PLACE, WHAT, plain
from uqbench.report.statistics.intervals import Estimate, Values, difference, estimate, share, share_difference
from uqbench.report.statistics.metrics import PROPOSED, SHARES, badness, bounds
from uqbench.report.units import EV_IN_KCAL_MOL, convert_units
from uqbench.runs.tables import IDEAL

CARRIED = ("acquisition", "unacquired", "shared", "domain", "trained_on")  # columns that the summary takes over
ENDS = ("ci_low", "ci_high")
NAN = float("nan")

Method = tuple[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side.

    Attributes:
        summary: one row per place, method and metric: PLACE, METHOD, WHAT, unit, mean, ci_low, ci_high, runs, seeds_sd,
            ideal, `best`: whether no method is better beyond chance, `values` of the single runs, and CARRIED as in
            `Collected`.
        differences: one row per place, method and metric: the method minus the one compared against.
        acquisitions: the same of runs of active learning that differ in the acquisition, seed by seed: `acquisition`
            minus `against`; `unacquired` as in `Collected`.
        gaps: seeds that some method of a place lacks although another has them, one line each.
        problems: bootstrap values that could not be used, one line each.
    """

    summary: pd.DataFrame
    differences: pd.DataFrame
    acquisitions: pd.DataFrame
    gaps: list[str]
    problems: list[str]


def compare(collected: Collected, *, against: str, units: str) -> Comparison:
    """Compare all methods found at each place (data set, backbone, ...), and each with the method `against`.

    units: `eV` or `kcal/mol`. Intervals are at 95 % and cover both structures and seeds, see `statistics`. Methods are
    compared with `against` under the same conditions; where it was not run under them, with its only other variant.
    """
    summary, differences, acquisitions, problems = [], [], [], []
    for place, rows in _places(_with_sizes(collected.rows), units):
        here = _Place(rows, problems)
        names = _Names(rows)
        for what, cells in here.metrics():
            label = place | what
            summary += _means(label, cells)
            if what["target"] == "cost":
                continue  # on machines that do other things as well: no statistics of the method
            for method, cell in cells.items():
                reference = cells.get(names.reference(method, against))
                if reference is not None and reference is not cell and _shared(cell.values, reference.values):
                    gap = _columns(_gap(what, cell, reference))
                    differences.append(label | _named(method) | {"against": against} | gap)
            for method, other, sides in names.acquisitions:
                if method in cells and other in cells and cells[method].repeats(cells[other]):
                    gap = _columns(_gap(what, cells[method], cells[other], by_seed=True))
                    acquisitions.append(label | _named(method) | sides | gap)
    tables = [pd.DataFrame(found) for found in (summary, differences, acquisitions)]
    return Comparison(*tables, list(gaps(collected.rows)), problems)


def _with_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the size of each signed barrier error: errors of different sign must not cancel in a mean."""
    signed = rows[(rows["target"] == "neb") & (rows["metric"] == "barrier_error")]
    sizes = signed.assign(metric="barrier_abs_error", value=signed["value"].abs())
    return pd.concat([rows, sizes], ignore_index=True) if len(sizes) else rows


def _places(rows: pd.DataFrame, units: str) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each place with its rows; the ideal value and the factor of the change of units are columns."""
    converted = convert_units(rows, units)
    # Bootstrap values are kept in the units of the program.
    factor = np.where(converted["unit"] == rows["unit"], 1.0, EV_IN_KCAL_MOL)
    converted = converted.assign(factor=factor)
    for place, group in converted.groupby(PLACE, sort=False, dropna=False):
        ideal = group["metric"].str.endswith(IDEAL)
        keys = ["path", *WHAT]
        beside = group[ideal].assign(metric=group.loc[ideal, "metric"].str.removesuffix(IDEAL))[[*keys, "value"]]
        beside = beside.rename(columns={"value": "ideal"})
        yield dict(zip(PLACE, plain(place), strict=True)), group[~ideal].merge(beside, on=keys, how="left")


class _Cell:
    """One metric of one method: its rows as arrays, and its values with their resamples."""

    def __init__(self, place: _Place, index: np.ndarray, key: tuple[str, str, str]) -> None:
        self.place, self.index = place, index
        frames = place.frames[index].tolist()
        own: list[np.ndarray | None] = [None] * len(index)
        if place.samples:
            found = [place.samples.get(source, {}).get(key) for source in place.sources[index]]
            factor = place.factor[index[0]]
            own = [None if one is None else factor * one for one in found]
        self.values = Values(place.value[index].tolist(), frames, own)
        self.unit = str(place.unit[index[0]])

    def column(self, name: str) -> np.ndarray:
        return self.place.columns[name][self.index]

    def first(self, name: str) -> Any:
        return self.place.columns[name][self.index[0]]

    @property
    def pairs(self) -> list[tuple[int, str]]:
        return list(zip(self.place.seed[self.index].tolist(), self.values.frames, strict=True))

    def repeats(self, other: _Cell) -> bool:
        """Whether some run of it has the seed of one of the other."""
        return bool(set(self.pairs) & set(other.pairs))

    def minus(self, other: _Cell) -> Values:
        """Differences between runs of the same seed, which started from the same model, where scored alike."""
        places = {key: k for k, key in enumerate(other.pairs)}
        values, frames, samples = [], [], []
        for k, key in enumerate(self.pairs):
            if key not in places:
                continue
            a, b = self.values.samples[k], other.values.samples[places[key]]
            values.append(self.values.values[k] - other.values.values[places[key]])
            frames.append(key[1])
            samples.append(a - b if a is not None and b is not None and len(a) == len(b) else None)
        return Values(values, frames, samples)


class _Place:
    """The rows of a place as arrays, and the bootstrap values of its runs."""

    def __init__(self, rows: pd.DataFrame, problems: list[str]) -> None:
        self.columns = {name: rows[name].to_numpy() for name in ("ideal", "n", *ENDS, *CARRIED)}
        self.value, self.factor = rows["value"].to_numpy(float), rows["factor"].to_numpy(float)
        self.frames, self.sources = (rows[name].to_numpy(object) for name in ("frames", "source"))
        self.seed, self.unit = rows["seed"].to_numpy(int), rows["unit"].to_numpy(object)
        self.indices = rows.groupby([*WHAT, *METHOD], sort=False).indices
        self.samples: dict[str, Samples] = {}
        sets = rows.groupby(METHOD)["frames"].nunique()
        # Between several sets of frames the chance of the structures shows without resampling.
        if (sets == 1).any() or rows["generation"].notna().any():
            for source in dict.fromkeys(self.sources):
                try:
                    self.samples[source] = samples(source)
                except DataError as error:
                    problems.append(str(error))

    def metrics(self) -> Iterator[tuple[dict[str, Any], dict[Method, _Cell]]]:
        """Yield each metric with the cell of every method."""
        found: dict[tuple, dict[Method, _Cell]] = {}
        for key, index in self.indices.items():
            what, method = key[: len(WHAT)], key[len(WHAT) :]
            found.setdefault(what, {})[method] = _Cell(self, index, what)
        for what, cells in found.items():
            unit = next(iter(cells.values())).unit
            yield dict(zip(WHAT, what, strict=True)) | {"unit": unit}, cells


class _Names:
    """Which methods of a place are compared with which."""

    def __init__(self, rows: pd.DataFrame) -> None:
        columns = [*METHOD, "shared", "unacquired", "acquisition"]
        self.methods = rows[columns].drop_duplicates(METHOD).astype(str).set_index(METHOD)
        self.references: dict[tuple[Method, str], Method | None] = {}
        self.acquisitions = list(self._acquisitions())

    def reference(self, method: Method, against: str) -> Method | None:
        """The variant of `against` under the conditions of a method, or else its only one."""
        if (method, against) not in self.references:
            others = self.methods[self.methods.index.get_level_values("uq") == against]
            alike = others[others["shared"] == self.methods.loc[method, "shared"]]
            chosen = alike if len(alike) else others
            self.references[method, against] = chosen.index[0] if len(chosen) == 1 else None
        return self.references[method, against]

    def _acquisitions(self) -> Iterator[tuple[Method, Method, dict[str, str]]]:
        """Yield pairs that differ in the acquisition alone, each against the simpler ones, and what both sides are."""
        for _, group in self.methods.groupby(["uq", "unacquired"], sort=False):
            for one, other in itertools.permutations(group.index, 2):
                mine, theirs = group.loc[one], group.loc[other]
                if mine["acquisition"] == PROPOSED != theirs["acquisition"]:
                    sides = {"acquisition": PROPOSED, "against": theirs["acquisition"]}
                    yield one, other, sides | {"unacquired": mine["unacquired"]}


def _means(label: dict[str, Any], cells: dict[Method, _Cell]) -> list[dict[str, Any]]:
    measured = label["target"] == "cost"
    values = {method: cell.values for method, cell in cells.items() if np.all(np.isfinite(cell.values.values))}
    best = set() if measured else _best(label["metric"], values)
    found = []
    for method, cell in cells.items():
        ideals = cell.column("ideal")
        known = ideals[np.isfinite(ideals)]
        extra = {"ideal": float(known.mean()) if len(known) else NAN, "best": method in best}
        extra |= {"values": cell.values.values}
        extra |= {name: cell.first(name) for name in CARRIED}
        found.append(label | _named(method) | _columns(_mean(label, cell), *bounds(label["metric"])) | extra)
    return found


def _mean(label: dict[str, Any], cell: _Cell) -> Estimate:
    if (label["target"], label["metric"]) in SHARES:
        trials = cell.column("n").astype(float)
        return share(np.rint(np.asarray(cell.values.values) * trials), trials)
    mean = estimate(cell.values)
    if label["target"] == "cost":
        return dataclasses.replace(mean, low=NAN, high=NAN)
    if len(cell.index) == 1 and np.isnan(mean.low):  # what the run itself says of its spread
        low, high = (float(cell.first(end)) for end in ENDS)
        return dataclasses.replace(mean, low=low, high=high)
    return mean


def _gap(what: dict[str, Any], one: _Cell, other: _Cell, *, by_seed: bool = False) -> Estimate:
    if (what["target"], what["metric"]) in SHARES:
        return share_difference(_mean(what, one), _mean(what, other))
    return estimate(one.minus(other)) if by_seed else difference(one.values, other.values)


def _named(method: Method) -> dict[str, str]:
    return dict(zip(METHOD, method, strict=True))


def _best(metric: str, values: dict[Method, Values]) -> set[Method]:
    """The methods that no other one beats beyond chance; none where there is nothing to compare."""
    bad = {method: _judged(metric, one) for method, one in values.items()}
    if len(bad) < 2 or any(one is None for one in bad.values()):
        return set()
    leader = min(bad, key=lambda method: np.mean(bad[method].values))
    equal = {leader}
    for method, one in bad.items():
        if method != leader and _shared(one, bad[leader]):
            gap = difference(one, bad[leader])
            if not gap.low > 0:
                equal.add(method)
    return equal


def _judged(metric: str, one: Values) -> Values | None:
    values = badness(metric, one.values)
    if values is None:
        return None
    samples = [None if s is None else badness(metric, s) for s in one.samples]
    return Values(values.tolist(), one.frames, samples)


def _shared(one: Values, other: Values) -> bool:
    return not one.groups.keys().isdisjoint(other.groups)


def _columns(found: Estimate, lowest: float = -np.inf, highest: float = np.inf) -> dict[str, float]:
    return {
        "mean": found.mean,
        "ci_low": float(np.maximum(found.low, lowest)),
        "ci_high": float(np.minimum(found.high, highest)),
        "runs": found.runs,
        "seeds_sd": found.seeds,
    }
