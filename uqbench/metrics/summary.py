"""From predictions to metric rows: every metric, its bootstrap interval and its value for a perfect model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqbench.metrics.accuracy import per_atom
from uqbench.metrics.battery import CALIBRATED, Battery
from uqbench.metrics.bootstrap import bootstrap, evaluate, interval
from uqbench.metrics.kernels import Array, Kernel, Values, as_errors, finite, percent
from uqbench.metrics.reliability import NORM_FLOOR
from uqbench.metrics.simulated import simulate_errors

IDEAL = "_ideal"
# The others, width, sharpness and dispersion, do not look at the errors.
WITH_IDEAL = ("spearman", "roc_auc", "ause", "nll", "cnll", "crps", "zms", "coverage", "ence", "miscalibration_area")
Row = dict[str, object]


@dataclass(frozen=True)
class Settings:
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
        low, high = interval(value, self.samples.get(name, np.empty(0)))
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


def force_summary(
    reference: ArrayLike,
    predicted: ArrayLike,
    score: ArrayLike,
    variance: ArrayLike | None,
    calibrated_variance: ArrayLike | None,
    ptr: ArrayLike,
    *,
    settings: Settings,
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
    battery = Battery((predicted - reference)[chosen], owner[chosen], structures)
    kernels = battery.accuracy() + battery.ranking(score[chosen], settings.quantiles)
    variances = {prefix: v[chosen] for prefix, v in variances.items()}
    labels = {"target": "forces", "population": population, "unit": "eV/Å"}
    return _summary(labels, battery, kernels, variances, _radii(radii, chosen), settings, generator)


def energy_summary(
    reference: ArrayLike,
    predicted: ArrayLike,
    score: ArrayLike,
    variance: ArrayLike | None,
    calibrated_variance: ArrayLike | None,
    n_atoms: ArrayLike,
    *,
    settings: Settings,
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
    battery = Battery(errors[chosen], np.flatnonzero(chosen), len(reference))
    kernels = battery.accuracy() + battery.accuracy(per_atom(errors[:, 0], n_atoms)[chosen, None], "_per_atom")
    kernels += battery.ranking(score[chosen], settings.quantiles)
    variances = {prefix: v[chosen] for prefix, v in variances.items()}
    labels = {"target": "energy", "population": population, "unit": "eV"}
    return _summary(labels, battery, kernels, variances, _radii(radii, chosen), settings, generator)


def _summary(
    labels: dict[str, str],
    battery: Battery,
    kernels: list[Kernel],
    variances: dict[str, Array],
    radii: dict[float, Array],
    settings: Settings,
    generator: np.random.Generator,
) -> Summary:
    # Resampling has a stream of its own, so that the resamples are equal whatever else the methods need.
    resampling, simulating = (np.random.default_rng(seed) for seed in generator.integers(2**63, size=2))
    for prefix, variance in variances.items():
        kernels = kernels + battery.distribution(variance, settings.bins, settings.levels, prefix)
    kernels = kernels + battery.intervals(radii)
    values = evaluate(kernels, np.ones(battery.structures))
    # One structure resampled is always itself: an interval of width zero would be made up.
    several = battery.owner[0] != battery.owner[-1]
    samples = bootstrap(kernels, battery.structures, settings.bootstrap, resampling) if several else {}
    ideal = _ideal(battery, variances, settings, simulating)
    ideal |= {f"conformal_coverage_{percent(level)}{IDEAL}": np.array([level]) for level in radii}
    paired: Values = {}
    for name, value in values.items():
        paired[name] = value
        if name + IDEAL in ideal:
            paired[name + IDEAL] = float(ideal[name + IDEAL].mean())
    return Summary(**labels, n=len(battery.errors), values=paired, samples=samples | ideal)


def _ideal(
    battery: Battery,
    variances: dict[str, Array],
    settings: Settings,
    generator: np.random.Generator,
) -> dict[str, Array]:
    """Values that perfect models with the given variances reach: the simulated draws by name with ``_ideal``."""
    n, components = battery.errors.shape
    found: dict[str, Array] = {}
    for prefix, variance in variances.items():
        draws = []
        for _ in range(min(max(settings.ideal_items // n, 1), settings.ideal_draws)):
            errors = simulate_errors(variance, components, generator)
            perfect = Battery(errors, battery.owner, battery.structures, battery.orderings)
            kernels = perfect.distribution(variance, settings.bins, settings.levels, prefix)
            if prefix == min(variances):  # the ranking is judged by the method's own variance where it has one
                kernels += perfect.ranking(variance, settings.quantiles)
            draws.append(evaluate(kernels, np.ones(battery.structures)))
        names = [name for name in draws[0] if name.removeprefix(CALIBRATED).startswith(WITH_IDEAL)]
        found |= {name + IDEAL: np.array([draw[name] for draw in draws]) for name in names}
        if components > 1:
            found[f"{prefix}miscalibration_area_norm{IDEAL}"] = np.array([NORM_FLOOR])
    return found


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
