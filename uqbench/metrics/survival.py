"""Survival: the share of simulations that are still sound after a time, from times some of which are censored."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from uqbench.metrics.ranges import UNBOUNDED, Range

LEVEL = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Survival:
    """Kaplan-Meier estimate of a survival function, a step function that falls at `times` and is 1 before the first.

    times (K,), ascending; share (K,) from each time on, with its pointwise 95 % interval low, high (K,); `start` is the
    interval of the share 1 before the first time.
    """

    times: Array
    share: Array
    low: Array
    high: Array
    start: tuple[float, float]


def kaplan_meier(times: ArrayLike, ended: ArrayLike) -> Survival:
    """Estimate the survival function of n > 0 subjects, of which those with `ended` (n,) failed at their time (n,).

    The others were lost from sight at theirs, still sound. Intervals are of the log-log kind with Greenwood's variance,
    which keeps them within 0 and 1; where the share is 0 or 1 that variance does not exist, and they are those of a
    binomial share (Clopper-Pearson) among the subjects whose state is then known. Source: Kaplan and Meier, J. Am.
    Stat. Assoc. 53, 457 (1958); through scipy.stats.ecdf.
    """
    times, ended = np.asarray(times, np.float64), np.asarray(ended, bool)
    if times.ndim != 1 or times.shape != ended.shape or times.size == 0:
        raise ValueError(f"times {times.shape} and ended {ended.shape}: expected two equal (n,), n > 0")
    function = stats.ecdf(stats.CensoredData(uncensored=times[ended], right=times[~ended])).sf
    steps, share = function.quantiles, function.probabilities
    low, high = np.full((2, len(steps)), np.nan)
    if ended.any():
        inner = (share > 0) & (share < 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that it does not exist where the share is 0 or 1
            ends = function.confidence_interval(LEVEL, method="log-log")
        low[inner], high[inner] = ends.low.probabilities[inner], ends.high.probabilities[inner]
    known = ((times[:, None] >= steps) | ended[:, None]).sum(axis=0)
    for k in np.flatnonzero(np.isnan(low)):
        low[k], high[k] = share_interval(int(share[k]) * int(known[k]), int(known[k]))
    return Survival(steps, share, low, high, share_interval(len(times), len(times)))


def share_interval(count: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of `count` among n > 0: Clopper and Pearson, Biometrika 26, 404 (1934)."""
    interval = stats.binomtest(count, n).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def mean_interval(values: ArrayLike, ends: Range = UNBOUNDED) -> tuple[float, tuple[float, float] | tuple[None, None]]:
    """Mean of n independent values (n,) with its 95 % interval by Student's t; NaN for n = 0, no interval below 2.

    The interval is cut to `ends`, between which the values lie.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    mean = float(values.mean()) if n else float("nan")
    if n < 2:
        return mean, (None, None)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, (max(mean - half, ends[0]), min(mean + half, ends[1]))


def restricted_mean(times: ArrayLike, ended: ArrayLike, horizon: float) -> tuple[float, float, float]:
    """Mean time survived up to a horizon, the area under the Kaplan-Meier curve, with its 95 % interval.

    Arguments as in `kaplan_meier`, `horizon` > 0 within the times seen. The interval is Gaussian with Greenwood's
    variance, cut to 0 and the horizon; it is NaN where nothing failed, because that variance is then 0.
    Source: Klein and Moeschberger, Survival Analysis (2003), eqs 4.5.1 and 4.5.2.
    """
    times, ended = np.asarray(times, np.float64), np.asarray(ended, bool)
    curve = kaplan_meier(times, ended)
    inside = curve.times < horizon
    edges = np.concatenate([[0.0], curve.times[inside], [horizon]])
    share = np.concatenate([[1.0], curve.share[inside]])
    areas = share * np.diff(edges)
    mean = float(areas.sum())
    steps = curve.times[inside]
    at_risk = (times[:, None] >= steps).sum(axis=0)
    failed = ((times[:, None] == steps) & ended[:, None]).sum(axis=0)
    left = np.cumsum(areas[::-1])[::-1][1:]  # area from each step on
    # Where all at risk fail at once nothing is left to the right, and the term is 0.
    counted = at_risk > failed
    terms = left[counted] ** 2 * failed[counted] / (at_risk[counted] * (at_risk - failed)[counted])
    if not failed.any():
        return mean, float("nan"), float("nan")
    half = float(stats.norm.ppf(0.5 + LEVEL / 2) * np.sqrt(terms.sum()))
    return mean, max(mean - half, 0.0), min(mean + half, horizon)
