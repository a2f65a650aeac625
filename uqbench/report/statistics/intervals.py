"""Means over repeated runs and differences between methods, with intervals that know both kinds of chance.

A value changes with the structures that happened to be scored, which the bootstrap shows, and with the seed of the
training, which only repeated runs show. Both variances are added, and the degrees of freedom follow Welch and
Satterthwaite: two seeds give wide intervals, as they must. Where one of two methods has a single run, its seeds are
taken to vary as those of the other do.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from uqbench.metrics.bootstrap import LEVEL

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over runs with its interval.

    runs: behind it; of a difference, on the side that has fewer. seeds: standard deviation between runs on the same
    frames, NaN for a single one. low and high are NaN where nothing is known of the spread.
    """

    mean: float
    low: float
    high: float
    runs: int
    seeds: float


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """One metric of repeated runs.

    values (k,); frames: by run, equal where the same structures were scored; samples: by run (B,) bootstrap values, or
    None where there are none. Samples of runs on the same frames belong to the same resamples.
    """

    values: Sequence[float]
    frames: Sequence[str]
    samples: Sequence[Array | None]

    @functools.cached_property
    def groups(self) -> dict[str, _Group]:
        """The runs on each set of frames."""
        members, of_run = _members(tuple(self.frames))
        values, counts = np.asarray(self.values, float), np.bincount(of_run)
        means = np.bincount(of_run, values) / counts
        with np.errstate(divide="ignore", invalid="ignore"):
            variances = np.bincount(of_run, (values - means[of_run]) ** 2) / (counts - 1)
        plain = zip(members.items(), means.tolist(), variances.tolist(), strict=True)
        return {name: _Group(len(found), mean, v, self.samples, found) for (name, found), mean, v in plain}


def estimate(one: Values) -> Estimate:
    """Mean over runs; over frames first by seeds, then over the sets of frames, where there are several."""
    return _combine(one.groups, None)


def difference(one: Values, other: Values, level: float = LEVEL) -> Estimate:
    """Mean of one method minus that of another, paired over the structures that both were scored on.

    Sets of frames that only one of them has are left out. Raises ValueError where none is left.
    """
    mine, theirs = one.groups, other.groups
    shared = [name for name in mine if name in theirs]
    if not shared:
        raise ValueError("no structures in common")
    return _combine({name: mine[name] for name in shared}, {name: theirs[name] for name in shared}, level)


def stratified(one: Values, other: Values, level: float = LEVEL) -> Estimate:
    """Mean difference of two methods over these sets of frames, by the chance within each: structures and seeds.

    Unlike that of `difference`, its interval is of these sets alone, and needs repeated runs on each: it is NaN
    where a set has one run of either method. Raises ValueError where there is no set in common.
    """
    mine, theirs = one.groups, other.groups
    shared = [name for name in mine if name in theirs]
    if not shared:
        raise ValueError("no structures in common")
    mean = sum(mine[name].mean - theirs[name].mean for name in shared) / len(shared)
    runs = min(sum(side[name].n for name in shared) for side in (mine, theirs))
    parts: list[tuple[float, float]] = []
    for name in shared:
        pair = mine[name], theirs[name]
        if any(group.n < 2 for group in pair):
            return Estimate(mean, math.nan, math.nan, runs, math.nan)
        parts += [_structures(*pair), *_between_runs(list(pair))]
    return _interval(mean, [(variance / len(shared) ** 2, freedom) for variance, freedom in parts], runs, level)


def share(counts: Sequence[int], trials: Sequence[int]) -> Estimate:
    """Share of all trials that succeeded, in runs with `counts` of `trials` each, with a binomial interval.

    Trials of one run share its model and are not independent: their number is divided by the design effect, the
    variance between runs over the binomial one, where that is above 1, and corrected for the few runs that it is known
    from. One run alone says nothing of others: its interval is of this run. Source: Korn and Graubard, Survey
    Methodology 24, 193 (1998); Clopper and Pearson, Biometrika 26, 404 (1934).
    """
    counts, trials = np.asarray(counts, float), np.asarray(trials, float)
    n, runs = trials.sum(), len(trials)
    p = float(counts.sum() / n)
    shares = counts / trials
    spread = float(shares.std(ddof=1)) if runs > 1 else float("nan")
    effective = n
    if runs > 1:
        between = runs / (runs - 1) * float((((counts - p * trials) / n) ** 2).sum())
        effect = max(between / (p * (1 - p) / n), 1.0) if 0 < p < 1 else 1.0
        reach = special.stdtrit([n - 1, runs - 1], 0.5 + LEVEL / 2)
        effective = n / effect * float(reach[0] / reach[1]) ** 2
    x, tail = p * effective, (1 - LEVEL) / 2
    low = float(special.betaincinv(x, effective - x + 1, tail)) if x > 0 else 0.0
    high = float(special.betaincinv(x + 1, effective - x, 1 - tail)) if x < effective else 1.0
    return Estimate(p, low, high, runs, spread)


def share_difference(one: Estimate, other: Estimate) -> Estimate:
    """Difference of two shares from their intervals, which need not be symmetric, as if they were independent.

    Source: Newcombe, Stat. Med. 17, 873 (1998), method 10; Zou and Donner, Stat. Med. 27, 1693 (2008).
    """
    gap = one.mean - other.mean
    low = gap - float(np.hypot(one.mean - one.low, other.high - other.mean))
    high = gap + float(np.hypot(one.high - one.mean, other.mean - other.low))
    return Estimate(gap, max(low, -1.0), min(high, 1.0), min(one.runs, other.runs), float("nan"))


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Runs on the same frames: n, mean and variance (NaN for one) of their values; theirs are `members` of `every`."""

    n: int
    mean: float
    variance: float
    every: Sequence[Array | None]
    members: Sequence[int]

    @property
    def samples(self) -> Array | None:
        """(B,) bootstrap values of the mean, or None."""
        first, *others = (self.every[k] for k in self.members)
        if first is None or any(s is None or len(s) != len(first) for s in others):
            return None
        return sum(others, first) / self.n


def _variance(values: list[float], mean: float) -> float:
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1) if len(values) > 1 else math.nan


@functools.lru_cache(64)  # all metrics of a method are of the same runs
def _members(frames: tuple[str, ...]) -> tuple[dict[str, list[int]], NDArray[np.intp]]:
    """Places of the runs on each set of frames, and for each run which of these sets it is."""
    members: dict[str, list[int]] = {}
    for k, name in enumerate(frames):
        members.setdefault(name, []).append(k)
    order = {name: k for k, name in enumerate(members)}
    return members, np.array([order[name] for name in frames], np.intp)


def _combine(mine: dict[str, _Group], theirs: dict[str, _Group] | None, level: float = LEVEL) -> Estimate:
    means = [group.mean - (theirs[name].mean if theirs else 0.0) for name, group in mine.items()]
    runs = min(sum(g.n for g in side.values()) for side in (mine, theirs or mine))
    seeds = _seed_deviation(mine)
    mean = sum(means) / len(means)
    if len(means) > 1:
        # Between independent sets of frames both kinds of chance show at once.
        parts = [(_variance(means, mean) / len(means), len(means) - 1)]
    else:
        ((name, group),) = mine.items()
        parts = [_structures(group, theirs[name] if theirs else None)]
        parts += _between_runs([group] + ([theirs[name]] if theirs else []))
    return dataclasses.replace(_interval(mean, parts, runs, level), seeds=seeds)


def _interval(mean: float, parts: list[tuple[float, float]], runs: int, level: float) -> Estimate:
    """Interval from independent variances with their degrees of freedom, those that are known."""
    parts = [(variance, freedom) for variance, freedom in parts if math.isfinite(variance)]
    total = sum(variance for variance, _ in parts)
    # Equal values of a few runs are no proof that there is no chance.
    if not total > 0 or not math.isfinite(mean):
        return Estimate(mean, math.nan, math.nan, runs, math.nan)
    freedom = total**2 / sum(v**2 / f for v, f in parts)
    reach = float(special.stdtrit(freedom, 0.5 + level / 2)) * math.sqrt(total)
    return Estimate(mean, mean - reach, mean + reach, runs, math.nan)


def _between_runs(groups: list[_Group]) -> list[tuple[float, float]]:
    """Variance of each mean over the seeds, and its degrees of freedom; a single run is given that of the others."""
    known = [g for g in groups if g.n > 1]
    if not known:
        return []
    freedom = sum(g.n - 1 for g in known)
    pooled = sum((g.n - 1) * g.variance for g in known) / freedom
    return [(g.variance / g.n, g.n - 1) if g.n > 1 else (pooled, freedom) for g in groups]


def _structures(group: _Group, other: _Group | None) -> tuple[float, float]:
    """Variance of the mean (or of the difference) over resampled structures, and its degrees of freedom."""
    samples = group.samples
    if other is not None and samples is not None:
        paired = other.samples is not None and len(other.samples) == len(samples)
        samples = samples - other.samples if paired else None
    if samples is None:
        return float("nan"), 0.0
    defined = samples[np.isfinite(samples)]
    if len(defined) < 2:
        return float("nan"), 0.0
    return float(defined.var(ddof=1)), len(defined) - 1


def _seed_deviation(groups: dict[str, _Group]) -> float:
    """Standard deviation between runs on the same frames, pooled over the sets of frames."""
    repeated = [g for g in groups.values() if g.n > 1]
    if not repeated:
        return math.nan
    return math.sqrt(sum((g.n - 1) * g.variance for g in repeated) / sum(g.n - 1 for g in repeated))
