"""Do the errors follow the Gaussian that the variances promise? Distribution, second moment, intervals and bins."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad
from scipy.special import chdtr, ndtr, ndtri

from uqbench.metrics.accuracy import squared_norm
from uqbench.metrics.kernels import Array, Ordering, Values, Weighting, as_counts, as_errors, finite, weighted_mean

CHUNK = 32768  # items per pass of the exact area: temporaries stay in the cache


def _norm_floor() -> float:
    """Area between the distribution of chi_3 / sqrt(3) and the half-normal one, over the half-normal probability."""

    def difference(r: float) -> float:
        return abs(chdtr(3, 3 * r * r) - (2 * ndtr(r) - 1)) * np.sqrt(2 / np.pi) * np.exp(-r * r / 2)

    return quad(difference, 0, 12, limit=200)[0]


NORM_FLOOR = _norm_floor()
"""`miscalibration_area_norm` of a perfectly calibrated isotropic 3-D Gaussian, 0.126: |dF| is not half-normal."""


def miscalibration_area(errors: ArrayLike, variance: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Miscalibration area of the components: integral over p of |p_obs(p) - p|.

    Population: components of items (3 per atom, or 1 per structure), z = e_c / sqrt(v), p_obs(p) = share of z below
    the Gaussian p-quantile. errors (n,) or (n, D), variance (n,) per component; weights (n,). Exact integral over the
    step function. In [0, 1/2]; 0 for perfect calibration, NaN where any variance is zero. For symmetric errors it is
    half of the area of central intervals (`prop_type="interval"` of uncertainty-toolbox).
    Source: docs/metrics.md, ``component``; Kuleshov et al., ICML 2018 (arXiv:1807.00263).
    """
    errors, variance = as_errors(errors, variance)
    return _area(gaussian_probabilities(errors, variance), errors.shape[1], weights)


def miscalibration_area_norm(errors: ArrayLike, variance: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Miscalibration area of the error norms |e| / sqrt(D v) against half-normal quantiles, the study's convention.

    Population: items (one norm per atom). errors (n, D), variance (n,) per component; weights (n,). Exact integral.
    With D = 3 a perfectly calibrated model scores NORM_FLOOR = 0.126, not 0. NaN where any variance is zero.
    Source: docs/metrics.md, ``norm``; Tan et al., npj Comput. Mater. 9, 225 (2023).
    """
    errors, variance = as_errors(errors, variance)
    return _area(norm_probabilities(errors, variance), 1, weights)


def zms(errors: ArrayLike, variance: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean squared z-score <e_c^2 / v>, 1 for calibrated variances.

    Population: components of items (3 per atom, or 1 per structure). errors (n,) or (n, D), variance (n,);
    weights (n,). NaN where any variance is zero. Source: docs/metrics.md; Pernot, APL Mach. Learn. 1, 046121 (2023).
    """
    return weighted_mean(squared_z_terms(*as_errors(errors, variance)), weights)


def coverage(errors: ArrayLike, variance: ArrayLike, level: float, weights: ArrayLike | None = None) -> float:
    """Share of components inside the central Gaussian interval of the given level; equals level when calibrated.

    Population: components of items (3 per atom, or 1 per structure). errors (n,) or (n, D), variance (n,);
    level in (0, 1), else ValueError. Source: docs/metrics.md.

    Example:
        >>> from uqbench.metrics.reliability import coverage
        >>> coverage(errors=[0.5, -1.5, 3.0, 0.1], variance=[1.0, 1.0, 1.0, 1.0], level=0.9)  # within 1.64 sigma
        0.75
    """
    return weighted_mean(coverage_terms(*as_errors(errors, variance), level), weights)


def width(variance: ArrayLike, level: float, weights: ArrayLike | None = None) -> float:
    """Mean full width of the central Gaussian interval of the given level, in the unit of the errors.

    Population: items (atoms, or structures). variance (n,); level in (0, 1), else ValueError.
    Source: docs/metrics.md.
    """
    sigma = np.sqrt(finite("variance", variance))
    return 2 * half_width(level) * weighted_mean(sigma, weights)


def sharpness(variance: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Root mean variance, in the unit of the errors: how narrow the predictive distributions are, calibrated or not.

    Population: items (atoms, or structures). variance (n,). Source: docs/metrics.md; Tran et al., Mach. Learn.: Sci.
    Technol. 1, 025006 (2020).
    """
    return float(np.sqrt(weighted_mean(finite("variance", variance), weights)))


def dispersion(variance: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Spread of the variances over their mean, std(v) / mean(v) with ddof 0; 0 for a constant variance.

    Population: items (atoms, or structures). variance (n,). NaN where all variances are zero.
    Source: docs/metrics.md.
    """
    variance = finite("variance", variance)
    mean = weighted_mean(variance, weights)
    if not mean > 0:
        return float("nan")
    return float(np.sqrt(weighted_mean((variance / mean - 1) ** 2, weights)))


def z_quantiles(errors: ArrayLike, variance: ArrayLike, probabilities: ArrayLike) -> tuple[Array, Array]:
    """Standard normal and observed quantiles of z = e_c / sqrt(v), the two axes of a QQ plot.

    Population: components of items (3 per atom, or 1 per structure). errors (n,) or (n, D), variance (n,);
    probabilities (K,) in (0, 1). Observed quantiles are NaN where any variance is zero. Source: docs/metrics.md.
    """
    errors, variance = as_errors(errors, variance)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    expected = ndtri(probabilities)
    if np.any(variance == 0):
        return expected, np.full(expected.shape, np.nan)
    return expected, np.quantile(errors / np.sqrt(variance)[:, None], probabilities)


def reliability_curve(errors: ArrayLike, variance: ArrayLike, p: ArrayLike, norm: bool = False) -> Array:
    """Observed share p_obs at expected probabilities p (K,), the curve whose distance to the diagonal is the area.

    Population: components of items, or with norm=True one norm per item. errors (n,) or (n, D), variance (n,) positive
    (NaN otherwise). Source: docs/metrics.md; Kuleshov et al. 2018.
    """
    errors, variance = as_errors(errors, variance)
    probabilities = (norm_probabilities if norm else gaussian_probabilities)(errors, variance)
    if np.any(np.isnan(probabilities)):
        return np.full(np.shape(p), np.nan)
    return np.searchsorted(np.sort(probabilities), p, side="right") / len(probabilities)


def half_width(level: float) -> float:
    """Half width of the central interval of a standard Gaussian; ValueError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    return float(ndtri(0.5 + level / 2))


def gaussian_probabilities(errors: Array, variance: Array) -> Array:
    """Gaussian cumulative probability (n*D,) of each component, item by item; NaN where the variance is zero."""
    return ndtr(_scaled(errors, variance).ravel())


def norm_probabilities(errors: Array, variance: Array) -> Array:
    """Half-normal cumulative probability (n,) of |e| / sqrt(D v); NaN where the variance is zero."""
    norms = np.sqrt(np.square(_scaled(errors, variance)).mean(axis=1))
    return 2 * ndtr(norms) - 1


def squared_z_terms(errors: Array, variance: Array) -> Array:
    """Squared z-score of each item (n,), averaged over components; NaN where the variance is zero."""
    return np.square(_scaled(errors, variance)).mean(axis=1)


def coverage_terms(errors: Array, variance: Array, level: float) -> Array:
    """Share of each item's components (n,) inside the central interval of the given level."""
    return (np.abs(errors) <= half_width(level) * np.sqrt(variance)[:, None]).mean(axis=1)


class Miscalibration:
    """Kernel giving the exact area between the step function of probabilities (m,) and the diagonal, under one name.

    owner (m,): the structure of each probability. Integral of |c - p| between neighbouring probabilities, where the
    step function has the constant height c; the antiderivative (p - c)|p - c| / 2 leaves two terms a probability.
    """

    def __init__(self, name: str, probabilities: Array, owner: NDArray[np.integer]) -> None:
        order = np.argsort(probabilities)
        self._name = name
        self._sorted = probabilities[order]
        self._owner = owner[order]
        self._size = np.bincount(owner).astype(np.float64)
        self._defined = not np.any(np.isnan(probabilities))

    def __call__(self, weighting: Weighting) -> Values:
        total = self._size @ weighting.counts[: len(self._size)]
        if not self._defined or not total > 0:
            return {self._name: float("nan")}
        share = weighting.counts / total
        below, area = 0.0, 0.0
        for start in range(0, len(self._sorted), CHUNK):
            weight = share[self._owner[start : start + CHUNK]]
            after = np.cumsum(weight)
            after += below
            below = after[-1]
            right = np.subtract(self._sorted[start : start + CHUNK], after, out=after)
            left = np.add(right, weight, out=weight)
            area += np.dot(left, np.abs(left)) - np.dot(right, np.abs(right))
        return {self._name: float(area / 2)}


def _area(probabilities: Array, components: int, weights: ArrayLike | None) -> float:
    n = len(probabilities) // components
    kernel = Miscalibration("area", probabilities, np.repeat(np.arange(n), components))
    return kernel(Weighting(as_counts(weights, n)))["area"]


def _scaled(errors: Array, variance: Array) -> Array:
    sigma = np.sqrt(variance)[:, None]
    return np.divide(errors, sigma, out=np.full(errors.shape, np.nan), where=sigma > 0)


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

    Example:
        >>> from uqbench.metrics.reliability import ence
        >>> ence(errors=[1.0, -1.0, 2.0, -2.0], variance=[1.0, 1.0, 16.0, 16.0], bins=2)  # (|1 - 1|/1 + |4 - 2|/4) / 2
        0.25
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


def simulate_errors(variance: ArrayLike, components: int, generator: np.random.Generator) -> Array:
    """Draw errors (n, components) from N(0, v), independent between items and components.

    variance (n,) per component. Any metric of these errors against the same variances shows what a perfectly
    calibrated model would reach, which a rank correlation alone does not tell. Raises ValueError for a negative or
    non-finite variance. Source: docs/metrics.md; Rasmussen et al., J. Cheminform. 15, 121 (2023).
    """
    variance = finite("variance", variance)
    if variance.ndim != 1 or np.any(variance < 0):
        raise ValueError("variance: expected shape (n,) and no negative values")
    return generator.standard_normal((len(variance), components)) * np.sqrt(variance)[:, None]
