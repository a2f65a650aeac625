"""Confidence intervals by resampling structures, since the atoms of one structure are correlated."""

from collections.abc import Iterator, Sequence

import numpy as np

from uqbench.metrics.kernels import Array, Kernel, Values, Weighting
from uqbench.metrics.ranges import UNBOUNDED, Range, from_line, to_line

RESAMPLES = "bootstrap.parquet"  # file of a run with the values of every metric in every resample
LEVEL = 0.95
DEFINED = 0.9  # share of resamples that must have a value before an interval is given


def resampled_counts(structures: int, resamples: int, generator: np.random.Generator) -> Iterator[Array]:
    """Yield, for each resample, how often each structure was drawn with replacement: (S,) float64, sum S.

    Equal generators give equal resamples, which is what pairs methods scored on the same structures.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 6.
    """
    for _ in range(resamples):
        drawn = generator.integers(structures, size=structures)
        yield np.bincount(drawn, minlength=structures).astype(np.float64)


def evaluate(kernels: Sequence[Kernel], counts: Array) -> Values:
    """Values of all kernels, by metric name, for one weighting of the structures (S,)."""
    values: Values = {}
    weighting = Weighting(counts)
    for kernel in kernels:
        values |= kernel(weighting)
    return values


def bootstrap(
    kernels: Sequence[Kernel], structures: int, resamples: int, generator: np.random.Generator
) -> dict[str, Array]:
    """Values of all kernels in every resample of the structures, by metric name: (resamples,) each."""
    rows = [evaluate(kernels, counts) for counts in resampled_counts(structures, resamples, generator)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def interval(value: float, samples: Array, level: float = LEVEL, ends: Range = UNBOUNDED) -> tuple[float, float]:
    """Percentile interval of resampled values (B,), shifted so that their median falls on the value itself.

    The shift removes the bias that resampling adds to absolute distances from perfection (miscalibration area, ENCE),
    which would otherwise put the interval above the value; for other metrics it is next to nothing. It is made on the
    line that `ends`, the range of the metric, are mapped to, so that no interval leaves it; where the value or the
    median is an end, nothing is shifted, and the interval reaches to the value. Undefined values are left out. NaN, NaN
    where value is NaN, where there are fewer than two values, or more than 10 % are undefined.
    Source: Efron and Tibshirani (1993), chapters 10 and 13.
    """
    samples = np.asarray(samples, dtype=np.float64)
    defined = samples[np.isfinite(samples)]
    if not np.isfinite(value) or len(defined) < 2 or len(defined) < DEFINED * len(samples):
        return float("nan"), float("nan")
    quantiles = np.quantile(defined, [(1 - level) / 2, 0.5, (1 + level) / 2])
    if not ends[0] < min(value, quantiles[1]) <= max(value, quantiles[1]) < ends[1]:
        return min(float(quantiles[0]), value), max(float(quantiles[2]), value)
    low, middle, high = to_line(quantiles.clip(*ends), ends)
    low, high = from_line(to_line(value, ends) + [low - middle, high - middle], ends)
    return float(low), float(high)
