"""From predictions to metric rows: every metric, its bootstrap interval and its value for a perfect model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqbench.metrics import likelihood, reliability
from uqbench.metrics.accuracy import absolute_terms, per_atom, squared_norm
from uqbench.metrics.bootstrap import bootstrap, evaluate, interval
from uqbench.metrics.confidence import OracleConfidence, ProbabilisticConfidence
from uqbench.metrics.kernels import Array, Kernel, Means, Ordering, Values, as_errors, finite, percent
from uqbench.metrics.ranges import CALIBRATED, range_of
from uqbench.metrics.ranking import Ranking
from uqbench.metrics.reliability import NORM_FLOOR, Bins, simulate_errors

IDEAL = "_ideal"
# The others, width, sharpness and dispersion, do not look at the errors.
WITH_IDEAL = ("spearman", "roc_auc", "ause", "nll", "cnll", "crps", "zms", "coverage", "ence", "miscalibration_area")
Row = dict[str, object]


@dataclass(frozen=True)
class MetricSettings:
    """What the metrics leave open.

    quantiles: of the squared error, above which an item counts as badly predicted (ROC-AUC). levels: of the central
    intervals. bins: of RMSE against RMV, in ENCE. bootstrap: resamples of the structures. ideal_items: simulated for
    the values of a perfect model, in as many draws of the whole set as that takes, but ideal_draws at most.
    """

    quantiles: tuple[float, ...]
    levels: tuple[float, ...]
    bins: int
    bootstrap: int
    ideal_items: int
    ideal_draws: int


@dataclass(frozen=True)
class Summary:
    """Metrics of one population.

    n: items (atoms for forces, structures for energies). values: by metric name, with ``_ideal`` for the value that a
    perfectly calibrated model with the same variances would reach. samples (B,): bootstrap values by metric name,
    aligned between summaries made with equal generators; for ``_ideal`` the values of the simulated draws.
    """

    target: str
    population: str
    n: int
    unit: str
    values: Values
    samples: dict[str, Array] = field(repr=False)

    def rows(self) -> list[Row]:
        """One dict per metric: target, population, metric, value, unit, n, ci_low, ci_high (95 %)."""
        return [self._row(name, value) for name, value in self.values.items()]

    def _row(self, name: str, value: float) -> Row:
        low, high = interval(value, self.samples.get(name, np.empty(0)), ends=range_of(name))
        return {
            "target": self.target,
            "population": self.population,
            "metric": name,
            "value": float(value),
            "unit": _unit(name, self.unit),
            "n": self.n,
            "ci_low": low,
            "ci_high": high,
        }


class MetricKernels:
    """Builds kernels for errors (n, D) of items that belong to structures, owner (n,) ascending in [0, structures).

    Sorting dominates the cost, and scores and variances often sort alike: orderings are shared between kernels, and by
    the list `orderings` between those of the same items.
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


def force_summary(
    reference: ArrayLike,
    predicted: ArrayLike,
    score: ArrayLike,
    variance: ArrayLike | None,
    calibrated_variance: ArrayLike | None,
    ptr: ArrayLike,
    *,
    settings: MetricSettings,
    generator: np.random.Generator,
    radii: Mapping[float, ArrayLike] | None = None,
    population: str = "all",
    mask: ArrayLike | None = None,
) -> Summary | None:
    """All metrics of forces, per atom; None where the mask holds no atom.

    Population: the atoms of the mask (N,), or all. reference, predicted (N, 3) eV/A; score (N,) any unit; variances
    (N,) per component in (eV/A)^2, or None where the method has none: metrics that need them are then left out; ptr
    (S+1,) where each structure's atoms begin; radii (N,) eV/A by level, which bound |dF| with that probability.
    Bootstrap intervals are NaN for 0 resamples or a single structure. Undefined values are NaN. Raises ValueError for
    non-finite input, wrong shapes, negative variances, quantiles outside (0, 1). Source: docs/metrics.md.
    """
    reference, predicted = finite("reference", reference), finite("predicted", predicted)
    if reference.ndim != 2 or reference.shape[1] != 3 or reference.shape != predicted.shape:
        raise ValueError(f"reference {reference.shape} and predicted {predicted.shape}: expected two equal (N, 3)")
    owner, structures = _owner(ptr, len(reference))
    chosen = np.ones(len(reference), dtype=bool) if mask is None else np.asarray(mask)
    if chosen.dtype != bool or chosen.shape != (len(reference),):
        raise ValueError(f"mask: expected {len(reference)} booleans, got {chosen.dtype} {chosen.shape}")
    if not chosen.any():
        return None
    score, variances = _uncertainties(score, variance, calibrated_variance, len(reference))
    metrics = MetricKernels((predicted - reference)[chosen], owner[chosen], structures)
    kernels = metrics.accuracy() + metrics.ranking(score[chosen], settings.quantiles)
    variances = {prefix: v[chosen] for prefix, v in variances.items()}
    labels = {"target": "forces", "population": population, "unit": "eV/Å"}
    return _summary(labels, metrics, kernels, variances, _radii(radii, chosen), settings, generator)


def energy_summary(
    reference: ArrayLike,
    predicted: ArrayLike,
    score: ArrayLike,
    variance: ArrayLike | None,
    calibrated_variance: ArrayLike | None,
    n_atoms: ArrayLike,
    *,
    settings: MetricSettings,
    generator: np.random.Generator,
    radii: Mapping[float, ArrayLike] | None = None,
    population: str = "all",
    mask: ArrayLike | None = None,
) -> Summary | None:
    """All metrics of energies, per structure; None where the mask holds no structure.

    Population: the structures of the mask (S,), or all. reference, predicted (S,) eV; score (S,) any unit; variances
    (S,) in eV^2, or None where the method has none: metrics that need them are then left out; n_atoms (S,), for the
    errors per atom; radii (S,) eV by level. Intervals, undefined values and errors as in `force_summary`.
    Source: docs/metrics.md.
    """
    reference, predicted = finite("reference", reference), finite("predicted", predicted)
    if reference.ndim != 1 or reference.size == 0 or reference.shape != predicted.shape:
        raise ValueError(f"reference {reference.shape} and predicted {predicted.shape}: expected two equal (S,), S > 0")
    chosen = np.ones(len(reference), dtype=bool) if mask is None else np.asarray(mask)
    if chosen.dtype != bool or chosen.shape != reference.shape:
        raise ValueError(f"mask: expected {len(reference)} booleans, got {chosen.dtype} {chosen.shape}")
    if not chosen.any():
        return None
    score, variances = _uncertainties(score, variance, calibrated_variance, len(reference))
    errors = (predicted - reference)[:, None]
    metrics = MetricKernels(errors[chosen], np.flatnonzero(chosen), len(reference))
    kernels = metrics.accuracy() + metrics.accuracy(per_atom(errors[:, 0], n_atoms)[chosen, None], "_per_atom")
    kernels += metrics.ranking(score[chosen], settings.quantiles)
    variances = {prefix: v[chosen] for prefix, v in variances.items()}
    labels = {"target": "energy", "population": population, "unit": "eV"}
    return _summary(labels, metrics, kernels, variances, _radii(radii, chosen), settings, generator)


def _summary(
    labels: dict[str, str],
    metrics: MetricKernels,
    kernels: list[Kernel],
    variances: dict[str, Array],
    radii: dict[float, Array],
    settings: MetricSettings,
    generator: np.random.Generator,
) -> Summary:
    # Resampling has a stream of its own, so that the resamples are equal whatever else the methods need.
    resampling, simulating = (np.random.default_rng(seed) for seed in generator.integers(2**63, size=2))
    for prefix, variance in variances.items():
        kernels = kernels + metrics.distribution(variance, settings.bins, settings.levels, prefix)
    kernels = kernels + metrics.intervals(radii)
    values = evaluate(kernels, np.ones(metrics.structures))
    # One structure resampled is always itself: an interval of width zero would be made up.
    several = metrics.owner[0] != metrics.owner[-1]
    samples = bootstrap(kernels, metrics.structures, settings.bootstrap, resampling) if several else {}
    ideal = _ideal(metrics, variances, settings, simulating)
    ideal |= {f"conformal_coverage_{percent(level)}{IDEAL}": np.array([level]) for level in radii}
    paired: Values = {}
    for name, value in values.items():
        paired[name] = value
        if name + IDEAL in ideal:
            paired[name + IDEAL] = float(ideal[name + IDEAL].mean())
    return Summary(**labels, n=len(metrics.errors), values=paired, samples=samples | ideal)


def _ideal(
    metrics: MetricKernels,
    variances: dict[str, Array],
    settings: MetricSettings,
    generator: np.random.Generator,
) -> dict[str, Array]:
    """Values that perfect models with the given variances reach: the simulated draws by name with ``_ideal``."""
    n, components = metrics.errors.shape
    samples: dict[str, Array] = {}
    for prefix, variance in variances.items():
        draws = []
        for _ in range(min(max(settings.ideal_items // n, 1), settings.ideal_draws)):
            errors = simulate_errors(variance, components, generator)
            perfect = MetricKernels(errors, metrics.owner, metrics.structures, metrics.orderings)
            kernels = perfect.distribution(variance, settings.bins, settings.levels, prefix)
            if prefix == min(variances):  # the ranking is judged by the method's own variance where it has one
                kernels += perfect.ranking(variance, settings.quantiles)
            draws.append(evaluate(kernels, np.ones(metrics.structures)))
        names = [name for name in draws[0] if name.removeprefix(CALIBRATED).startswith(WITH_IDEAL)]
        samples |= {name + IDEAL: np.array([draw[name] for draw in draws]) for name in names}
        if components > 1:
            samples[f"{prefix}miscalibration_area_norm{IDEAL}"] = np.array([NORM_FLOOR])
    return samples


def _uncertainties(
    score: ArrayLike, variance: ArrayLike | None, calibrated: ArrayLike | None, n: int
) -> tuple[Array, dict[str, Array]]:
    score = finite("score", score)
    if score.shape != (n,):
        raise ValueError(f"score: expected shape ({n},), got {score.shape}")
    given = {"": variance, CALIBRATED: calibrated}
    return score, {prefix: as_errors(np.zeros(n), v)[1] for prefix, v in given.items() if v is not None}


def _radii(radii: Mapping[float, ArrayLike] | None, chosen: NDArray[np.bool_]) -> dict[float, Array]:
    given = {level: finite("radii", radius) for level, radius in (radii or {}).items()}
    for level, radius in given.items():
        if radius.shape != chosen.shape or np.any(radius < 0):
            raise ValueError(f"radii at level {level}: expected {len(chosen)} numbers >= 0, got shape {radius.shape}")
    return {level: radius[chosen] for level, radius in given.items()}


def _owner(ptr: ArrayLike, n: int) -> tuple[NDArray[np.int64], int]:
    ptr = np.asarray(ptr)
    sizes = np.diff(ptr)
    if ptr.ndim != 1 or len(ptr) < 2 or ptr[0] != 0 or ptr[-1] != n or np.any(sizes < 0):
        raise ValueError(f"ptr: expected ascending integers from 0 to {n}")
    return np.repeat(np.arange(len(sizes)), sizes), len(sizes)


def _unit(metric: str, unit: str) -> str:
    base = metric.removeprefix(CALIBRATED).removesuffix(IDEAL)
    if base.endswith("_per_atom"):
        return f"{unit}/atom"
    in_unit = base in ("mae", "rmse", "crps", "sharpness") or base.startswith(("width", "conformal_radius"))
    return unit if in_unit else "1"
