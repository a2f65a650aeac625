"""Errors that a perfectly calibrated model with given variances would make."""

import numpy as np
from numpy.typing import ArrayLike

from uqbench.metrics.kernels import Array, finite


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
