"""Proper scoring rules of the Gaussian predictive distribution N(F_pred, v), per component."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from uqbench.metrics.kernels import Array, as_errors, weighted_mean


def gaussian_nll(errors: ArrayLike, variance: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean negative log likelihood per component of an isotropic Gaussian, in nat.

    Population: items (atoms with D = 3, structures with D = 1). Mean over items of
    1/D * [D/2 ln(2 pi v) + |e|^2 / (2 v)]: divided by D, so that forces and energies compare. errors (n,) or (n, D),
    variance (n,) per component in the squared unit of the errors; its logarithm is that of v in (eV/A)^2 or eV^2, hence
    another unit shifts the value by a constant. NaN where any variance is zero. With calibrated variances this is the
    cNLL. Source: docs/metrics.md; Hirschfeld et al., J. Chem. Inf. Model. 60, 3770 (2020), eq. 10.

    Example:
        >>> from uqbench.metrics.likelihood import gaussian_nll
        >>> round(gaussian_nll(errors=[0.0, 2.0], variance=[1.0, 4.0]), 4)  # ln(2 pi)/2 + (0 + ln 4/2 + 1/2)/2
        1.5155
    """
    return weighted_mean(nll_terms(*as_errors(errors, variance)), weights)


def gaussian_crps(errors: ArrayLike, variance: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean continuous ranked probability score per component, in the unit of the errors.

    Population: components of items (atoms with D = 3, structures with D = 1). errors (n,) or (n, D), variance (n,).
    A zero variance gives the absolute error, its limit.
    Source: Gneiting and Raftery, J. Am. Stat. Assoc. 102, 359 (2007), section 4.2, sign turned.

    Example:
        >>> from uqbench.metrics.likelihood import gaussian_crps
        >>> gaussian_crps(errors=[0.5, -1.5], variance=[0.0, 0.0])  # the mean absolute error
        1.0
    """
    return weighted_mean(crps_terms(*as_errors(errors, variance)), weights)


def nll_terms(errors: Array, variance: Array) -> Array:
    """Negative log likelihood per component of each item (n,) from errors (n, D) and variances (n,); NaN at v = 0."""
    terms = np.full(len(variance), np.nan)
    sure = variance > 0
    v = variance[sure]
    terms[sure] = 0.5 * (np.log(2 * np.pi * v) + np.square(errors[sure]).mean(axis=1) / v)
    return terms


def crps_terms(errors: Array, variance: Array) -> Array:
    """Ranked probability score of each item (n,), averaged over components, from errors (n, D) and variances (n,)."""
    sigma = np.sqrt(variance)[:, None]
    z = np.divide(errors, sigma, out=np.zeros_like(errors), where=sigma > 0)
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    spread = sigma * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))
    return np.where(sigma > 0, spread, np.abs(errors)).mean(axis=1)
