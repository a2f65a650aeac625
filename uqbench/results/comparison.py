"""From collected runs to estimates per method and paired differences between methods."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from uqbench.errors import DataError
from uqbench.results.catalogue import SHARES, badness, bounds
from uqbench.results.collect import Collected, Samples, samples
from uqbench.results.statistics import Estimate, Values, difference, estimate, share, share_difference
from uqbench.results.tables import IDEAL, convert_units

PLACE = ["command", "dataset", "subset", "split", "generation", "backbone", "setting"]
METHOD = ["uq", "variant"]
WHAT = ["target", "population", "metric"]
PROPOSED = "adversarial"  # the acquisition that the others are baselines of


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side.

    Attributes:
        summary: one row per place, method and metric: PLACE, METHOD, WHAT, unit, mean, ci_low, ci_high, runs, seeds_sd,
            ideal, `best`: whether no method is better beyond chance, `values` of the single runs, and acquisition and
            unacquired as in `Collected`.
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
    plain = _with_sizes(collected.rows)
    rows = convert_units(plain, units)
    scale = _scales(plain, rows)
    summary, differences, acquisitions, problems = [], [], [], []
    for place, found in _groups(rows):
        resamples = _resamples(found["source"].unique(), problems)
        names = _Names(found)
        for what, group in found.groupby(WHAT, sort=False):
            what = place | dict(zip(WHAT, what, strict=True))
            methods = dict(list(group.groupby(METHOD, sort=False)))
            values = {method: _values(rows, what, resamples, scale) for method, rows in methods.items()}
            label = what | {"unit": group["unit"].iloc[0]}
            summary += _means(label, methods, values)
            if what["target"] == "cost":
                continue  # on machines that do other things as well: no statistics of the method
            for method, one in values.items():
                reference = names.reference(method, against)
                if reference in values and reference != method and _shared(one, values[reference]):
                    gap = _columns(_gap(what, methods, values, method, reference))
                    differences.append(label | _named(method) | {"against": against} | gap)
            for method, other, sides in names.acquisitions():
                if method in values and other in values and _repeated(methods[method], methods[other]):
                    gap = _gap(what, methods, values, method, other, by_seed=True)
                    acquisitions.append(label | _named(method) | sides | _columns(gap))
    tables = [pd.DataFrame(rows) for rows in (summary, differences, acquisitions)]
    return Comparison(*tables, list(_gaps(rows)), problems)


def _with_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the size of each signed barrier error: errors of different sign must not cancel in a mean."""
    signed = rows[(rows["target"] == "neb") & (rows["metric"] == "barrier_error")]
    sizes = signed.assign(metric="barrier_abs_error", value=signed["value"].abs())
    return pd.concat([rows, sizes], ignore_index=True) if len(sizes) else rows


def _groups(rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each place with its rows; the ideal value is a column."""
    ideal = rows["metric"].str.endswith(IDEAL)
    keys = ["path", "split", "generation", *WHAT]
    beside = rows[ideal].assign(metric=rows["metric"].str.removesuffix(IDEAL))[[*keys, "value"]]
    plain = rows[~ideal].merge(beside.rename(columns={"value": "ideal"}), on=keys, how="left")
    for place, group in plain.groupby(PLACE, sort=False, dropna=False):
        yield {key: None if pd.isna(value) else value for key, value in zip(PLACE, place, strict=True)}, group


class _Names:
    """Which methods of a place are compared with which."""

    def __init__(self, rows: pd.DataFrame) -> None:
        columns = [*METHOD, "shared", "unacquired", "acquisition"]
        self.methods = rows[columns].drop_duplicates(METHOD).set_index(METHOD)

    def reference(self, method: tuple[str, str], against: str) -> tuple[str, str] | None:
        """The variant of `against` under the conditions of a method, or else its only one."""
        others = self.methods[self.methods.index.get_level_values("uq") == against]
        alike = others[others["shared"] == self.methods.loc[method, "shared"]]
        chosen = alike if len(alike) else others
        return chosen.index[0] if len(chosen) == 1 else None

    def acquisitions(self) -> Iterator[tuple[tuple[str, str], tuple[str, str], dict[str, str]]]:
        """Yield pairs that differ in the acquisition alone, each against the simpler ones, and what both sides are."""
        for _, group in self.methods.groupby(["uq", "unacquired"], sort=False):
            for one, other in itertools.permutations(group.index, 2):
                mine, theirs = group.loc[one], group.loc[other]
                if mine["acquisition"] == PROPOSED != theirs["acquisition"]:
                    sides = {"acquisition": PROPOSED, "against": theirs["acquisition"]}
                    yield one, other, sides | {"unacquired": mine["unacquired"]}


def _means(label: dict[str, Any], methods: dict, values: dict[tuple, Values]) -> list[dict[str, Any]]:
    measured = label["target"] == "cost"
    best = set() if measured else _best(label["metric"], {m: v for m, v in values.items() if _defined(v)})
    found = []
    for method, rows in methods.items():
        ideal = rows["ideal"].mean() if rows["ideal"].notna().any() else float("nan")
        mean = _mean(label, rows, values[method])
        extra = {"ideal": ideal, "best": method in best, "values": values[method].values}
        extra |= rows[["acquisition", "unacquired"]].iloc[0].to_dict()
        found.append(label | _named(method) | _columns(mean, *bounds(label["metric"])) | extra)
    return found


def _gap(
    what: dict[str, Any], methods: dict, values: dict, method: tuple, other: tuple, *, by_seed: bool = False
) -> Estimate:
    if (what["target"], what["metric"]) in SHARES:
        return share_difference(*(_mean(what, methods[m], values[m]) for m in (method, other)))
    if by_seed:
        return estimate(_by_seed(methods[method], values[method], methods[other], values[other]))
    return difference(values[method], values[other])


def _mean(label: dict[str, Any], rows: pd.DataFrame, values: Values) -> Estimate:
    if (label["target"], label["metric"]) in SHARES:
        return share(np.rint(rows["value"] * rows["n"].astype(float)), rows["n"].astype(float))
    mean = estimate(values)
    if label["target"] == "cost":
        return dataclasses.replace(mean, low=float("nan"), high=float("nan"))
    if len(rows) == 1 and np.isnan(mean.low):  # what the run itself says of its spread
        return dataclasses.replace(mean, low=rows["ci_low"].iloc[0], high=rows["ci_high"].iloc[0])
    return mean


def _named(method: tuple[str, str]) -> dict[str, str]:
    return dict(zip(METHOD, method, strict=True))


def _resamples(sources: Iterable[str], problems: list[str]) -> dict[str, Samples]:
    found = {}
    for source in sources:
        try:
            found[source] = samples(source)
        except DataError as error:
            problems.append(str(error))
    return found


def _values(
    found: pd.DataFrame, what: dict[str, Any], resamples: dict[str, Samples], scale: dict[tuple, float]
) -> Values:
    key = what["target"], what["population"], what["metric"]
    own = [resamples.get(source, {}).get(key) for source in found["source"]]
    factor = scale.get((what["target"], what["metric"]), 1.0)
    own = [None if one is None else factor * one for one in own]
    return Values(found["value"].tolist(), found["frames"].tolist(), own)


def _repeated(mine: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    return len(mine.merge(theirs, on=["seed", "frames"])) > 0


def _by_seed(mine: pd.DataFrame, one: Values, theirs: pd.DataFrame, other: Values) -> Values:
    """Differences between runs of the same seed, which started from the same model, where they were scored alike."""
    places = {key: k for k, key in enumerate(zip(theirs["seed"], other.frames, strict=True))}
    values, frames, samples = [], [], []
    for k, key in enumerate(zip(mine["seed"], one.frames, strict=True)):
        if key not in places:
            continue
        a, b = one.samples[k], other.samples[places[key]]
        values.append(one.values[k] - other.values[places[key]])
        frames.append(one.frames[k])
        samples.append(a - b if a is not None and b is not None and len(a) == len(b) else None)
    return Values(values, frames, samples)


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
    """Say which cells of a sweep are missing: seeds, on the same frames, that another method of the place has."""
    where = [key for key in PLACE if key not in ("split", "generation")]
    runs = rows[rows["source"] != ""].drop_duplicates(["path", "source"])
    for place, around in runs.groupby(where, sort=False, dropna=False):
        name = ", ".join(str(part) for part in place if not pd.isna(part))
        names = around[["uq", "shared"]].drop_duplicates()
        run = set(map(tuple, names.to_numpy()))
        for uq, shared in itertools.product(names["uq"].unique(), names["shared"].unique()):
            if (uq, shared) not in run:
                yield f"{name}: {uq} was not run, or not to its end, with {shared}"
        found: dict[str, list[str]] = {}
        parts = list(around.groupby(["split", "generation"], sort=False, dropna=False))
        for (split, generation), group in parts:
            cells = {method: set(zip(g["frames"], g["seed"], strict=True)) for method, g in group.groupby(METHOD)}
            cells = {method: cells.get(method, set()) for method in dict(list(around.groupby(METHOD)))}
            every = set().union(*cells.values())
            for method, present in cells.items():
                missing = sorted({int(seed) for _, seed in every - present})
                if missing:
                    line = f"{', '.join(filter(None, method))} lacks seed {', '.join(map(str, missing))}"
                    detail = str(split) if pd.isna(generation) else f"{split} of generation {generation}"
                    found.setdefault(line, []).append(detail)
        for line, details in found.items():
            everywhere = len(details) == len(parts)
            yield f"{name}: {line}" + ("" if everywhere else f" ({'; '.join(details)})")
