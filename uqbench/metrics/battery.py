"""The full set of kernels for one population: which metric exists, and under which name."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from uqbench.metrics import likelihood, reliability
from uqbench.metrics.accuracy import absolute_terms, squared_norm
from uqbench.metrics.binning import Bins
from uqbench.metrics.confidence import OracleConfidence, ProbabilisticConfidence
from uqbench.metrics.kernels import Array, Kernel, Means, Ordering, Values, percent
from uqbench.metrics.ranking import Ranking

CALIBRATED = "calibrated_"  # before the names of metrics of the calibrated variances; their NLL is called cnll


class Battery:
    """Builds kernels for errors (n, D) of items that belong to structures, owner (n,) ascending in [0, structures).

    Sorting dominates the cost, and scores and variances often sort alike: orderings are shared between kernels, and by
    the list `orderings` between batteries of the same items.
    """

    def __init__(
        self, errors: Array, owner: NDArray[np.integer], structures: int, orderings: list[Ordering] | None = None
    ) -> None:
        self.errors, self.owner, self.structures = errors, owner, structures
        self.orderings = [] if orderings is None else orderings
        self._squared = squared_norm(errors)
        self._columns: dict[Ordering, Array] = {}

    def accuracy(self, errors: Array | None = None, suffix: str = "") -> list[Kernel]:
        """Kernel for mae and rmse, with a suffix on the names, of the errors (n, D), or of others of the same items."""
        errors = self.errors if errors is None else errors
        columns = {"absolute": absolute_terms(errors), "square": squared_norm(errors) / errors.shape[1]}

        def derive(mean: Values) -> Values:
            return {f"mae{suffix}": mean["absolute"], f"rmse{suffix}": float(np.sqrt(mean["square"]))}

        return [Means(columns, self.owner, self.structures, derive)]

    def ranking(self, score: Array, quantiles: tuple[float, ...]) -> list[Kernel]:
        """Kernels for spearman, roc_auc_* and ause of a score (n,) against the squared errors."""
        by_score, by_error = self._ordering(score), Ordering(self._squared, self.owner)
        return [
            Ranking(by_score, by_error, quantiles),
            OracleConfidence(by_score, by_error, self._mean_square(by_score), self._mean_square(by_error)),
        ]

    def intervals(self, radii: Mapping[float, Array]) -> list[Kernel]:
        """Kernel for conformal_coverage_* and conformal_radius_*: radii (n,) around the predictions by level."""
        sizes = np.sqrt(self._squared)
        columns = {}
        for level, radius in radii.items():
            columns[f"conformal_coverage_{percent(level)}"] = (sizes <= radius).astype(np.float64)
            columns[f"conformal_radius_{percent(level)}"] = radius
        return [Means(columns, self.owner, self.structures, dict)] if columns else []

    def distribution(self, variance: Array, bins: int, levels: Sequence[float], prefix: str = "") -> list[Kernel]:
        """Kernels for all metrics that need a variance (n,) per component, with a prefix on the names.

        nll (cnll with the prefix CALIBRATED), crps, zms, coverage_*, width_*, sharpness, dispersion, ence,
        ause_probabilistic, miscalibration_area and, where errors have several components, its norm variant.
        """
        ordering, components = self._ordering(variance), self.errors.shape[1]
        columns = self._mean_square(ordering), variance[ordering.order]
        probabilities = reliability.gaussian_probabilities(self.errors, variance)
        area = f"{prefix}miscalibration_area"
        kernels: list[Kernel] = [
            self._moments(variance, levels, prefix),
            Bins(ordering, *columns, bins, prefix),
            ProbabilisticConfidence(ordering, *columns, prefix),
            reliability.Miscalibration(area, probabilities, np.repeat(self.owner, components)),
        ]
        if components > 1:
            probabilities = reliability.norm_probabilities(self.errors, variance)
            kernels.append(reliability.Miscalibration(f"{area}_norm", probabilities, self.owner))
        return kernels

    def _ordering(self, key: Array) -> Ordering:
        for ordering in self.orderings:
            if ordering.fits(key):
                return ordering
        self.orderings.append(Ordering(key, self.owner))
        return self.orderings[-1]

    def _mean_square(self, ordering: Ordering) -> Array:
        if ordering not in self._columns:
            self._columns[ordering] = self._squared[ordering.order] / self.errors.shape[1]
        return self._columns[ordering]

    def _moments(self, variance: Array, levels: Sequence[float], prefix: str) -> Kernel:
        scale = float(variance.mean()) or 1.0  # keeps the squares of tiny variances in range
        columns = {
            "nll": likelihood.nll_terms(self.errors, variance),
            "crps": likelihood.crps_terms(self.errors, variance),
            "zms": reliability.squared_z_terms(self.errors, variance),
            "sigma": np.sqrt(variance),
            "variance": variance / scale,
            "variance_square": (variance / scale) ** 2,
        }
        for level in levels:
            columns[f"coverage_{percent(level)}"] = reliability.coverage_terms(self.errors, variance, level)

        def derive(mean: Values) -> Values:
            spread = np.sqrt(max(mean["variance_square"] - mean["variance"] ** 2, 0.0))
            values = {"crps": mean["crps"], "zms": mean["zms"]}
            for level in levels:
                values[f"coverage_{percent(level)}"] = mean[f"coverage_{percent(level)}"]
                values[f"width_{percent(level)}"] = 2 * reliability.half_width(level) * mean["sigma"]
            values["sharpness"] = float(np.sqrt(mean["variance"] * scale))
            values["dispersion"] = float(spread / mean["variance"]) if mean["variance"] > 0 else float("nan")
            return {"cnll" if prefix else "nll": mean["nll"]} | {prefix + name: values[name] for name in values}

        return Means(columns, self.owner, self.structures, derive)
