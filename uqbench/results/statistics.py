"""Means over repeated runs and differences between methods, with intervals that know both kinds of chance.

A value changes with the structures that happened to be scored, which the bootstrap shows, and with the seed of the
training, which only repeated runs show. Both variances are added, and the degrees of freedom follow Welch and
Satterthwaite: two seeds give wide intervals, as they must.
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

    runs: behind it. seeds: standard deviation between runs on the same frames, NaN for a single one. low and high are
    NaN where nothing is known of the spread.
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
    runs = sum(len(g.values) for g in mine.values())
    seeds = _seed_variance(mine)
    mean = float(means.mean())
    if len(means) > 1:
        # Between independent sets of frames both kinds of chance show at once.
        parts = [(float(means.var(ddof=1)) / len(means), len(means) - 1)]
    else:
        ((name, group),) = mine.items()
        parts = [_structures(group, theirs[name] if theirs else None)]
        for one in (group, theirs[name] if theirs else None):
            if one is not None and len(one.values) > 1:
                parts.append((float(one.values.var(ddof=1)) / len(one.values), len(one.values) - 1))
    parts = [(variance, freedom) for variance, freedom in parts if np.isfinite(variance)]
    total = sum(variance for variance, _ in parts)
    if not parts or not np.isfinite(mean):
        return Estimate(mean, float("nan"), float("nan"), runs, seeds)
    freedom = total**2 / sum(v**2 / f for v, f in parts) if total > 0 else 1.0
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt(total))
    return Estimate(mean, mean - reach, mean + reach, runs, seeds)


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
