"""From collected runs to estimates per method and paired differences between methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from uqbench.results.catalogue import badness, bounds
from uqbench.results.collect import Collected
from uqbench.results.statistics import Estimate, Values, difference, estimate
from uqbench.results.tables import IDEAL, convert_units

PLACE = ["command", "dataset", "subset", "split", "generation", "backbone"]
METHOD = ["uq", "variant"]
WHAT = ["target", "population", "metric"]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side.

    Attributes:
        summary: one row per place, method and metric: PLACE, METHOD, WHAT, unit, mean, ci_low, ci_high, runs, seeds_sd,
            ideal, `best`: whether no method is better beyond chance, and `values` of the single runs.
        differences: one row per place, method and metric: the method minus the one compared against.
        gaps: seeds that some method of a place lacks although another has them, one line each.
    """

    summary: pd.DataFrame
    differences: pd.DataFrame
    gaps: list[str]


def compare(collected: Collected, *, against: str, units: str) -> Comparison:
    """Compare all methods found at each place (data set, backbone, ...), and each with the method `against`.

    units: `eV` or `kcal/mol`. Intervals are at 95 % and cover both structures and seeds, see `statistics`.
    """
    rows = convert_units(collected.rows, units)
    scale = _scales(collected.rows, rows)
    summary, differences = [], []
    for what, methods in _groups(rows):
        metric = what["metric"]
        values = {method: _values(found, what, collected, scale) for method, found in methods.items()}
        measured = what["target"] == "cost"  # on machines that do other things as well: no statistics of the method
        best = set() if measured else _best(metric, {method: v for method, v in values.items() if _defined(v)})
        for method, found in methods.items():
            label = what | dict(zip(METHOD, method, strict=True)) | {"unit": found["unit"].iloc[0]}
            ideal = found["ideal"].mean() if found["ideal"].notna().any() else float("nan")
            mean = estimate(values[method])
            if measured:
                mean = dataclasses.replace(mean, low=float("nan"), high=float("nan"))
            extra = {"ideal": ideal, "best": method in best, "values": values[method].values}
            summary.append(label | _columns(mean, *bounds(metric)) | extra)
            reference = next((other for other in methods if other == (against, "")), None)
            if (
                not measured
                and reference is not None
                and method != reference
                and _shared(values[method], values[reference])
            ):
                gap = difference(values[method], values[reference])
                differences.append(label | {"against": against} | _columns(gap))
    return Comparison(pd.DataFrame(summary), pd.DataFrame(differences), list(_gaps(rows)))


def _groups(rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], dict[tuple[str, str], pd.DataFrame]]]:
    """Yield each metric of each place with the rows of every method; the ideal value is a column."""
    ideal = rows["metric"].str.endswith(IDEAL)
    keys = ["path", *WHAT]
    beside = rows[ideal].assign(metric=rows["metric"].str.removesuffix(IDEAL))[[*keys, "value"]]
    plain = rows[~ideal].merge(beside.rename(columns={"value": "ideal"}), on=keys, how="left")
    for what, group in plain.groupby([*PLACE, *WHAT], sort=False, dropna=False):
        named = {key: None if pd.isna(value) else value for key, value in zip([*PLACE, *WHAT], what, strict=True)}
        yield named, dict(list(group.groupby(METHOD, sort=False)))


def _values(found: pd.DataFrame, what: dict[str, Any], collected: Collected, scale: dict[tuple, float]) -> Values:
    key = what["target"], what["population"], what["metric"]
    samples = [collected.resamples.get((path, *key)) for path in found["path"]]
    factor = scale.get((what["target"], what["metric"]), 1.0)
    samples = [None if one is None else factor * one for one in samples]
    return Values(found["value"].tolist(), found["frames"].tolist(), samples)


def _scales(before: pd.DataFrame, after: pd.DataFrame) -> dict[tuple, float]:
    """Factor of the change of units by target and metric; bootstrap values are kept in the units of the program."""
    changed = before["unit"] != after["unit"]
    found = {}
    for (target, metric), rows in before[changed & (before["value"].abs() > 0)].groupby(["target", "metric"]):
        found[target, metric] = float(after.loc[rows.index[0], "value"] / rows["value"].iloc[0])
    return found


def _best(metric: str, values: dict[tuple, Values]) -> set[tuple]:
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


def _defined(one: Values) -> bool:
    return bool(np.all(np.isfinite(one.values)))


def _shared(one: Values, other: Values) -> bool:
    return bool(set(one.frames) & set(other.frames))


def _columns(found: Estimate, lowest: float = -np.inf, highest: float = np.inf) -> dict[str, float]:
    return {
        "mean": found.mean,
        "ci_low": float(np.maximum(found.low, lowest)),
        "ci_high": float(np.minimum(found.high, highest)),
        "runs": found.runs,
        "seeds_sd": found.seeds,
    }


def _gaps(rows: pd.DataFrame) -> Iterator[str]:
    runs = rows.drop_duplicates("path")
    for place, group in runs.groupby(PLACE, sort=False, dropna=False):
        cells = {method: set(zip(g["frames"], g["seed"], strict=True)) for method, g in group.groupby(METHOD)}
        every = set().union(*cells.values())
        name = ", ".join(str(part) for part in place if not pd.isna(part))
        for method, present in cells.items():
            missing = sorted({seed for _, seed in every - present})
            if missing:
                yield f"{name}: {', '.join(filter(None, method))} lacks seed {', '.join(map(str, missing))}"
