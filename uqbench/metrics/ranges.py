"""Between which values a metric must lie, and the line on which an interval cannot leave them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
Range = tuple[float, float]

CALIBRATED = "calibrated_"  # before the names of metrics of the calibrated variances; their NLL is called cnll
UNBOUNDED: Range = (-np.inf, np.inf)
# Signed distances from a reference.
SIGNED = ("barrier_error", "reverse_barrier_error", "energy_drift", "rdf_peak_shift_", "closest_shift_")
# By the beginning of the name; all others begin at zero and have no end.
RANGES: dict[str, Range] = {
    "spearman": (-1.0, 1.0),
    "miscalibration_area": (0.0, 0.5),
    **dict.fromkeys(("roc_auc", "coverage", "conformal_coverage"), (0.0, 1.0)),
    **dict.fromkeys(("survival", "above_random", "converged", "warning_auc"), (0.0, 1.0)),
    **dict.fromkeys(("nll", "cnll", "score_", *SIGNED), UNBOUNDED),
}


def range_of(metric: str) -> Range:
    """Return the lowest and the highest value that a metric can have.

    Example:
        >>> from uqbench.metrics.ranges import range_of
        >>> range_of("calibrated_coverage_90"), range_of("mae")
        ((0.0, 1.0), (0.0, inf))
    """
    base = metric.removeprefix(CALIBRATED)
    return next((ends for start, ends in RANGES.items() if base.startswith(start)), (0.0, np.inf))


def to_line(values: ArrayLike, ends: Range) -> Array:
    """Map a range onto the whole line: logit between two ends, logarithm above one; an end itself is infinite.

    For a correlation this is twice Fisher's z. Raises ValueError for a range with an upper end alone.
    """
    low, high = ends
    values = np.asarray(values, np.float64)
    if np.isfinite(low) and np.isfinite(high):
        return special.logit((values - low) / (high - low))
    if np.isfinite(high):
        raise ValueError(f"range {ends}: expected a lower end too")
    if not np.isfinite(low):
        return values
    with np.errstate(divide="ignore"):
        return np.log(values - low)


def from_line(values: ArrayLike, ends: Range) -> Array:
    """Map the line back onto a range, see `to_line`."""
    low, high = ends
    values = np.asarray(values, np.float64)
    if np.isfinite(high):
        return low + (high - low) * special.expit(values)
    return low + np.exp(values) if np.isfinite(low) else values
