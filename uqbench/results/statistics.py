"""Means over repeated runs and differences between methods, with intervals that know both kinds of chance.

A value changes with the structures that happened to be scored, which the bootstrap shows, and with the seed of the
training, which only repeated runs show. Both variances are added, and the degrees of freedom follow Welch and
Satterthwaite: two seeds give wide intervals, as they must. Where one of two methods has a single run, its seeds are
taken to vary as those of the other do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

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


def estimate(one: Values) -> Estimate:
    """Mean over runs; over frames first by seeds, then over the sets of frames, where there are several."""
    return _combine(_by_frames(one), None)


def difference(one: Values, other: Values) -> Estimate:
    """Mean of one method minus that of another, paired over the structures that both were scored on.

    Sets of frames that only one of them has are left out. Raises ValueError where none is left.
    """
    mine, theirs = _by_frames(one), _by_frames(other)
    shared = [name for name in mine if name in theirs]
    if not shared:
        raise ValueError("no structures in common")
    return _combine({name: mine[name] for name in shared}, {name: theirs[name] for name in shared})


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
        reach = stats.t.ppf(0.5 + LEVEL / 2, [n - 1, runs - 1])
        effective = n / effect * float(reach[0] / reach[1]) ** 2
    x, tail = p * effective, (1 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, x, effective - x + 1)) if x > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, x + 1, effective - x)) if x < effective else 1.0
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
    """Runs on the same frames: values (k,), samples of their mean (B,) or None."""

    values: Array
    samples: Array | None


def _by_frames(one: Values) -> dict[str, _Group]:
    groups = {}
    for name in dict.fromkeys(one.frames):
        members = [k for k, frames in enumerate(one.frames) if frames == name]
        samples = [one.samples[k] for k in members]
        known = all(s is not None and len(s) == len(samples[0]) for s in samples)
        groups[name] = _Group(np.array([one.values[k] for k in members]), np.mean(samples, axis=0) if known else None)
    return groups


def _combine(mine: dict[str, _Group], theirs: dict[str, _Group] | None) -> Estimate:
    means = np.array([g.values.mean() - (theirs[name].values.mean() if theirs else 0.0) for name, g in mine.items()])
    runs = min(sum(len(g.values) for g in side.values()) for side in (mine, theirs or mine))
    seeds = _seed_variance(mine)
    mean = float(means.mean())
    if len(means) > 1:
        # Between independent sets of frames both kinds of chance show at once.
        parts = [(float(means.var(ddof=1)) / len(means), len(means) - 1)]
    else:
        ((name, group),) = mine.items()
        parts = [_structures(group, theirs[name] if theirs else None)]
        parts += _between_runs([group] + ([theirs[name]] if theirs else []))
    parts = [(variance, freedom) for variance, freedom in parts if np.isfinite(variance)]
    total = sum(variance for variance, _ in parts)
    # Equal values of a few runs are no proof that there is no chance.
    if not total > 0 or not np.isfinite(mean):
        return Estimate(mean, float("nan"), float("nan"), runs, seeds)
    freedom = total**2 / sum(v**2 / f for v, f in parts)
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt(total))
    return Estimate(mean, mean - reach, mean + reach, runs, seeds)


def _between_runs(groups: list[_Group]) -> list[tuple[float, float]]:
    """Variance of each mean over the seeds, and its degrees of freedom; a single run is given that of the others."""
    known = [g for g in groups if len(g.values) > 1]
    if not known:
        return []
    freedom = sum(len(g.values) - 1 for g in known)
    pooled = sum((len(g.values) - 1) * float(g.values.var(ddof=1)) for g in known) / freedom
    return [
        (float(g.values.var(ddof=1)) / len(g.values), len(g.values) - 1) if len(g.values) > 1 else (pooled, freedom)
        for g in groups
    ]


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


def _seed_variance(groups: dict[str, _Group]) -> float:
    """Standard deviation between runs on the same frames, pooled over the sets of frames."""
    repeated = [g.values for g in groups.values() if len(g.values) > 1]
    if not repeated:
        return float("nan")
    freedom = sum(len(v) - 1 for v in repeated)
    return float(np.sqrt(sum((len(v) - 1) * v.var(ddof=1) for v in repeated) / freedom))
