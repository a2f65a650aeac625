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
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from uqbench.metrics.bootstrap import LEVEL

Array = NDArray[np.float64]
Part = tuple[float, float]
"""A variance and its degrees of freedom."""


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
        numbers = zip(members.items(), means.tolist(), variances.tolist(), strict=True)
        return {frames: _Group(len(runs), mean, v, self.samples, runs) for (frames, runs), mean, v in numbers}

    def map(self, function: Callable[[Array], Array]) -> Values:
        """The same with a function applied to values and samples."""
        samples = [None if sample is None else function(sample) for sample in self.samples]
        return Values(function(np.asarray(self.values, float)).tolist(), self.frames, samples)

    def overlaps(self, other: Values) -> bool:
        """Whether some structures were scored by both."""
        return not self.groups.keys().isdisjoint(other.groups)


def estimate(values: Values) -> Estimate:
    """Mean over runs; over frames first by seeds, then over the sets of frames, where there are several."""
    return _combine([(group,) for group in values.groups.values()], LEVEL)


def difference(one: Values, other: Values, level: float = LEVEL) -> Estimate:
    """Mean of one method minus that of another, paired over the structures that both were scored on.

    Sets of frames that only one of them has are left out. Raises ValueError where none is left.
    """
    return _combine(_pairs(one, other), level)


def stratified(one: Values, other: Values, level: float = LEVEL) -> Estimate:
    """Mean difference of two methods over these sets of frames, by the chance within each: structures and seeds.

    Unlike that of `difference`, its interval is of these sets alone, and needs repeated runs on each: it is NaN
    where a set has one run of either method. Raises ValueError where there is no set in common.
    """
    pairs = _pairs(one, other)
    mean = sum(a.mean - b.mean for a, b in pairs) / len(pairs)
    if any(group.n < 2 for pair in pairs for group in pair):
        return Estimate(mean, math.nan, math.nan, _fewest(pairs), math.nan)
    parts = [part for pair in pairs for part in _within(pair)]
    return _interval(
        mean, [(variance / len(pairs) ** 2, freedom) for variance, freedom in parts], _fewest(pairs), level
    )


def share(counts: Sequence[int], trials: Sequence[int]) -> Estimate:
    """Share of all trials that succeeded, in runs with `counts` of `trials` each, with a binomial interval.

    Trials of one run share its model and are not independent: their number is divided by the design effect, the
    variance between runs over the binomial one, where that is above 1, and corrected for the few runs that it is known
    from. One run alone says nothing of others: its interval is of this run. Source: Korn and Graubard, Survey
    Methodology 24, 193 (1998); Clopper and Pearson, Biometrika 26, 404 (1934).
    """
    counts, trials = np.asarray(counts, float), np.asarray(trials, float)
    n, runs = trials.sum(), len(trials)
    with np.errstate(invalid="ignore"):  # of no trials
        p, shares = float(counts.sum() / n), counts / trials
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
    mean = one.mean - other.mean
    low = mean - float(np.hypot(one.mean - one.low, other.high - other.mean))
    high = mean + float(np.hypot(one.high - one.mean, other.mean - other.low))
    return Estimate(mean, max(low, -1.0), min(high, 1.0), min(one.runs, other.runs), float("nan"))


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


Groups = tuple[_Group, ...]
"""Of one set of frames: the runs of a method, or of a method and of the one that it is compared with."""


@functools.lru_cache(64)  # all metrics of a method are of the same runs
def _members(frames: tuple[str, ...]) -> tuple[dict[str, list[int]], NDArray[np.intp]]:
    """Numbers of the runs on each set of frames, and for each run which of these sets it is."""
    members: dict[str, list[int]] = {}
    for k, name in enumerate(frames):
        members.setdefault(name, []).append(k)
    order = {name: k for k, name in enumerate(members)}
    return members, np.array([order[name] for name in frames], np.intp)


def _pairs(one: Values, other: Values) -> list[Groups]:
    pairs = [(group, other.groups[frames]) for frames, group in one.groups.items() if frames in other.groups]
    if not pairs:
        raise ValueError("no structures in common")
    return pairs


def _combine(sets: list[Groups], level: float) -> Estimate:
    means = [groups[0].mean - (groups[1].mean if len(groups) > 1 else 0.0) for groups in sets]
    mean = sum(means) / len(means)
    if len(sets) > 1:
        # Between independent sets of frames both kinds of chance show at once.
        parts = [(sum((value - mean) ** 2 for value in means) / (len(means) - 1) / len(means), len(means) - 1)]
    else:
        parts = list(_within(sets[0]))
    seeds = math.sqrt(_pooled(groups[0] for groups in sets)[0])
    return _interval(mean, parts, _fewest(sets), level, seeds)


def _fewest(sets: list[Groups]) -> int:
    """Runs on the side that has fewer."""
    return min(sum(group.n for group in side) for side in zip(*sets, strict=True))


def _interval(mean: float, parts: Iterable[Part], runs: int, level: float, seeds: float = math.nan) -> Estimate:
    """Interval from independent variances with their degrees of freedom, those that are known."""
    parts = [(variance, freedom) for variance, freedom in parts if math.isfinite(variance)]
    total = sum(variance for variance, _ in parts)
    # Equal values of a few runs are no proof that there is no chance.
    if not total > 0 or not math.isfinite(mean):
        return Estimate(mean, math.nan, math.nan, runs, seeds)
    freedom = total**2 / sum(v**2 / f for v, f in parts)
    reach = float(special.stdtrit(freedom, 0.5 + level / 2)) * math.sqrt(total)
    return Estimate(mean, mean - reach, mean + reach, runs, seeds)


def _within(groups: Groups) -> Iterator[Part]:
    """Yield the parts of the variance of the mean, or of the difference, on one set of frames."""
    yield _structures(*groups)
    pooled, freedom = _pooled(groups)
    for group in groups if freedom else ():  # a single run is given the seeds of the others
        yield (group.variance / group.n, group.n - 1) if group.n > 1 else (pooled, freedom)


def _structures(group: _Group, other: _Group | None = None) -> Part:
    """Variance of the mean (or of the difference) over resampled structures."""
    samples = group.samples
    if other is not None and samples is not None:
        subtracted = other.samples
        paired = subtracted is not None and len(subtracted) == len(samples)
        samples = samples - subtracted if paired else None
    defined = samples[np.isfinite(samples)] if samples is not None else ()
    return (float(defined.var(ddof=1)), len(defined) - 1) if len(defined) > 1 else (math.nan, 0)


def _pooled(groups: Iterable[_Group]) -> Part:
    """Variance between runs on the same frames, pooled over groups; NaN where none has several."""
    repeated = [group for group in groups if group.n > 1]
    freedom = sum(group.n - 1 for group in repeated)
    return (sum((group.n - 1) * group.variance for group in repeated) / freedom if freedom else math.nan), freedom
