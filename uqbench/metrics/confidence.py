"""Confidence curves: the error that is left when the least certain items are set aside."""

import numpy as np
from numpy.typing import ArrayLike

from uqbench.metrics.accuracy import squared_norm
from uqbench.metrics.kernels import Array, Ordering, Values, Weighting, as_counts, as_errors, finite

FRACTIONS = np.arange(100) / 100
"""Fractions set aside, (100,): 0 to 99 %."""


def confidence_curve(key: ArrayLike, squared: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Root mean of `squared` over the items left when the fractions FRACTIONS with the largest key are set aside.

    Population: items (atoms, or structures). key, squared (n,); weights (n,) multiplicities. Relative to the value with
    nothing set aside, so it begins at 1. The model's curve has its score as key; the oracle's has the squared error
    itself; the probabilistic reference has the variance both as key and, being its expected value, as squared error.
    Ties in the key are set aside in proportion. NaN where all of `squared` is zero.
    Source: docs/metrics.md; Pernot (2022), arXiv:2206.15272.
    """
    key, squared = finite("key", key), finite("squared", squared)
    if key.ndim != 1 or key.shape != squared.shape or key.size == 0:
        raise ValueError(f"key {key.shape} and squared {squared.shape}: expected two equal (n,), n > 0")
    ordering = Ordering(key)
    return _curve(Weighting(as_counts(weights, len(key))), ordering, squared[ordering.order])


def ause(score: ArrayLike, squared_error: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area between the confidence curve of the score and the oracle's; 0 where the score orders the errors perfectly.

    Population: items (atoms, or structures). score, squared_error (n,); weights (n,). Unit 1 (relative RMSE times
    fraction). NaN for a constant score or no error at all. Source: docs/metrics.md; Ilg et al., ECCV 2018
    (arXiv:1802.07095).

    Example:
        >>> from uqbench.metrics.confidence import ause
        >>> ause(score=[1, 2, 3], squared_error=[0.1, 0.2, 0.3])
        0.0
        >>> ause(score=[3, 2, 1], squared_error=[0.1, 0.2, 0.3]) > 0
        True
    """
    score, squared_error = finite("score", score), finite("squared_error", squared_error)
    if score.ndim != 1 or score.shape != squared_error.shape or score.size == 0:
        raise ValueError(f"score {score.shape} and squared_error {squared_error.shape}: expected two equal (n,), n > 0")
    by_score, by_error = Ordering(score), Ordering(squared_error)
    kernel = OracleConfidence(by_score, by_error, squared_error[by_score.order], squared_error[by_error.order])
    return kernel(Weighting(as_counts(weights, len(score))))["ause"]


def ause_probabilistic(errors: ArrayLike, variance: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area between the confidence curve of the variance and its probabilistic reference, absolute distance.

    Population: items (atoms, or structures). errors (n,) or (n, D), variance (n,) per component; weights (n,). The
    reference is the curve of errors drawn from N(0, v), in its limit of many draws: the root mean variance of the items
    left. 0 for calibrated variances, whatever their spread. Unit 1. NaN where all variances or all errors are zero.
    Source: docs/metrics.md; Pernot (2022), arXiv:2206.15272.
    """
    errors, variance = as_errors(errors, variance)
    ordering = Ordering(variance)
    kernel = ProbabilisticConfidence(ordering, squared_norm(errors)[ordering.order], variance[ordering.order])
    return kernel(Weighting(as_counts(weights, len(variance))))["ause_probabilistic"]


class OracleConfidence:
    """Kernel giving ``ause`` from the orderings by score and by squared error, and the squared errors (n,) in each."""

    def __init__(self, by_score: Ordering, by_error: Ordering, in_score_order: Array, in_error_order: Array) -> None:
        self._by_score, self._by_error = by_score, by_error
        self._in_score_order, self._in_error_order = in_score_order, in_error_order

    def __call__(self, weighting: Weighting) -> Values:
        below = weighting.below(self._by_score)
        if np.searchsorted(below, below[-1], side="left") <= np.searchsorted(below, 0.0, side="right"):
            return {"ause": float("nan")}  # all weight lies in one group: a constant score
        model = _curve(weighting, self._by_score, self._in_score_order)
        oracle = _curve(weighting, self._by_error, self._in_error_order)
        return {"ause": float(np.trapezoid(model - oracle, FRACTIONS))}


class ProbabilisticConfidence:
    """Kernel giving ``ause_probabilistic`` (with a prefix) from the ordering by variance.

    squared_error and variance (n,) are given in that order; only their proportions matter.
    """

    def __init__(self, by_variance: Ordering, squared_error: Array, variance: Array, prefix: str = "") -> None:
        self._ordering, self._name = by_variance, f"{prefix}ause_probabilistic"
        self._squared_error, self._variance = squared_error, variance

    def __call__(self, weighting: Weighting) -> Values:
        model = _curve(weighting, self._ordering, self._squared_error)
        reference = _curve(weighting, self._ordering, self._variance)
        return {self._name: float(np.trapezoid(np.abs(model - reference), FRACTIONS))}


def _curve(weighting: Weighting, ordering: Ordering, column: Array) -> Array:
    """Relative root mean (100,) of a column (n,) given in the order of the key."""
    left = (1 - FRACTIONS) * weighting.below(ordering)[-1]
    sums = weighting.sums_at(ordering, left, column)
    if not sums[0] > 0:
        return np.full(len(FRACTIONS), np.nan)
    return np.sqrt(np.maximum(sums / left, 0.0) / (sums[0] / left[0]))
