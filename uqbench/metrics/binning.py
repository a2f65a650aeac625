"""Root mean squared error against root mean variance in bins of equal population along the variance."""

import numpy as np
from numpy.typing import ArrayLike

from uqbench.metrics.accuracy import squared_norm
from uqbench.metrics.kernels import Array, Ordering, Values, Weighting, as_counts, as_errors


def rmse_rmv(
    errors: ArrayLike, variance: ArrayLike, bins: int, weights: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Root mean variance and RMSE per component (bins,) in bins of equal population along the variance.

    Population: items (atoms, or structures). errors (n,) or (n, D), variance (n,) per component; weights (n,)
    multiplicities. Items on a bin's edge, and items of equal variance, are shared between bins in proportion, so that
    the result depends on no order. Unit of the errors. Raises ValueError for bins < 1.
    Source: docs/metrics.md; Levi et al., Sensors 22, 5540 (2022).
    """
    errors, variance = as_errors(errors, variance)
    ordering = Ordering(variance)
    mean_square = squared_norm(errors) / errors.shape[1]
    kernel = Bins(ordering, mean_square[ordering.order], variance[ordering.order], bins)
    return kernel.curve(Weighting(as_counts(weights, len(variance))))


def ence(errors: ArrayLike, variance: ArrayLike, bins: int, weights: ArrayLike | None = None) -> float:
    """Expected normalised calibration error: mean over bins of |RMV - RMSE| / RMV.

    Population, arguments and bins as `rmse_rmv`. 0 for perfect calibration and infinite data; for finite data it grows
    with the number of bins (Pernot, arXiv:2305.11905), so compare it with the simulated value. NaN where a bin has no
    variance. Source: docs/metrics.md; Levi et al., Sensors 22, 5540 (2022).
    """
    return ence_of_bins(*rmse_rmv(errors, variance, bins, weights))


def ence_of_bins(rmv: Array, rmse: Array) -> float:
    """Mean over bins of |RMV - RMSE| / RMV; NaN where a bin is empty or has no variance."""
    if not np.all(rmv > 0):
        return float("nan")
    return float(np.mean(np.abs(rmv - rmse) / rmv))


class Bins:
    """Kernel giving ``ence`` (with a prefix) from the ordering by variance; `curve` gives the bins themselves.

    mean_square (mean squared component) and variance (n,) are given in that order.
    """

    def __init__(self, by_variance: Ordering, mean_square: Array, variance: Array, bins: int, prefix: str = "") -> None:
        if bins < 1:
            raise ValueError(f"bins: expected a number >= 1, got {bins}")
        self._ordering, self._bins, self._name = by_variance, bins, f"{prefix}ence"
        self._columns = (variance, mean_square)

    def __call__(self, weighting: Weighting) -> Values:
        return {self._name: ence_of_bins(*self.curve(weighting))}

    def curve(self, weighting: Weighting) -> tuple[Array, Array]:
        """Root mean variance and RMSE per component, each (bins,)."""
        total = weighting.below(self._ordering)[-1]
        if not total > 0:
            return np.full(self._bins, np.nan), np.full(self._bins, np.nan)
        edges = np.linspace(0.0, total, self._bins + 1)
        parts = [np.diff(weighting.sums_at(self._ordering, edges, column)) for column in self._columns]
        # Differences of running sums can fall below zero by rounding.
        rmv, rmse = (np.sqrt(np.maximum(part, 0.0) * self._bins / total) for part in parts)
        return rmv, rmse
