"""Calibration on the validation set: what turns a score into a variance, or into an interval.

No object here sees the test set, nor changes how a score ranks. All are plain numbers, saved with the run.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]
# ln of slope times range over intercept that is searched: from a variance constant to 1e-8 to one that spans 1e8. The
# upper end bounds what a single item without error, to which no variance is too small, can do.
SEARCH = np.log(10.0) * np.linspace(-8.0, 8.0, 97)


@dataclass(frozen=True)
class LinearCalibration:
    """Variance v = a U + b of a score U, never below the variance of the lowest score seen in validation.

    a >= 0 and b in squared units of the error (b may be negative), floor > 0: the variance given to scores under the
    validation range, which keeps v > 0 there; the claim that such items are surer still is not supported by any data.
    Source: Hirschfeld et al., J. Chem. Inf. Model. 60, 3770 (2020), eqs 10-12.
    """

    a: float
    b: float
    floor: float

    @classmethod
    def fit(cls, score: ArrayLike, squared_error: ArrayLike, *, components: int) -> "LinearCalibration":
        """Minimise the Gaussian negative log likelihood over a >= 0, a U + b > 0 on validation data.

        score (n,) any unit and sign; squared_error (n,): |dF_i|^2 with components=3 for forces (v is per component),
        squared energy error with components=1. A score that does not help gives a = 0 and b = the mean
        squared component. Raises ValueError for no data, non-finite or negative values, or no error at all.

        With x = U - min U the constraint is a >= 0 and v(0) > 0, and for a given ratio of slope to intercept the best
        scale is a mean in closed form: what is left to search is that one ratio. Its likelihood may have several
        minima, so all of those on a grid over 16 decades are refined.
        Source: Hirschfeld et al., J. Chem. Inf. Model. 60, 3770 (2020), eqs 10-12.
        """
        score, squared_error = _checked(score, squared_error)
        if components < 1:
            raise ValueError(f"components: expected a number >= 1, got {components}")
        square = squared_error / components
        # The mean as unit keeps the search independent of units, even where squares of tiny errors leave the range.
        unit = float(square.mean())
        if not unit > 0:
            raise ValueError("squared_error: all errors are zero, there is nothing to calibrate")
        lowest = float(score.min())
        # Halves, because the range of finite scores may be no finite number.
        span = 2 * (float(score.max()) / 2 - lowest / 2)
        if not 0 < span < np.inf:
            return cls(a=0.0, b=unit, floor=unit)
        x, s = (score - lowest) / span, square / unit

        def profile(log_ratio: float) -> float:
            shape = 1 + np.exp(log_ratio) * x
            return float(np.log(shape).mean() + np.log((s / shape).mean()))

        constant = 0.0  # profile of a = 0, where the mean of s is one
        values = np.array([profile(ratio) for ratio in SEARCH])
        best = (constant, -np.inf)
        for k in _minima(values):
            low, high = SEARCH[max(k - 1, 0)], SEARCH[min(k + 1, len(SEARCH) - 1)]
            minimum = minimize_scalar(profile, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
            best = min(best, (float(minimum.fun), float(minimum.x)), (float(values[k]), float(SEARCH[k])))
        ratio = np.exp(best[1])
        floor = unit * float((s / (1 + ratio * x)).mean())
        slope = floor * float(ratio) / span
        return cls(a=slope, b=floor - slope * lowest, floor=floor)

    def variance(self, score: ArrayLike) -> Array:
        """Variance per component (...) for scores (...), in squared units of the error; at least `floor`."""
        return np.maximum(self.a * np.asarray(score, dtype=np.float64) + self.b, self.floor)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for a checkpoint or JSON."""
        return {"kind": "linear", "a": self.a, "b": self.b, "floor": self.floor}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LinearCalibration":
        """Inverse of `to_dict`; ValueError for other content."""
        _expect(values, "linear", {"a", "b", "floor"})
        return cls(a=float(values["a"]), b=float(values["b"]), floor=float(values["floor"]))


class Calibrator(abc.ABC):
    """How validation data turn a score into a variance, one for each conf/calibration/*.yaml."""

    @abc.abstractmethod
    def fit(self, score: ArrayLike, squared_error: ArrayLike, *, components: int) -> LinearCalibration:
        """Fit to validation data; arguments and errors as in `LinearCalibration.fit`."""


class Affine(Calibrator):
    """v = a U + b with a >= 0 and the best Gaussian likelihood: the study's calibration."""

    def fit(self, score: ArrayLike, squared_error: ArrayLike, *, components: int) -> LinearCalibration:
        return LinearCalibration.fit(score, squared_error, components=components)


class Scale(Calibrator):
    """v = a U with the best Gaussian likelihood, a = mean of e²/U per component; for positive scores only."""

    def fit(self, score: ArrayLike, squared_error: ArrayLike, *, components: int) -> LinearCalibration:
        score, squared_error = _checked(score, squared_error)
        if not score.min() > 0:
            raise ValueError("score: calibration=scale needs scores > 0; take calibration=affine")
        a = float(np.mean(squared_error / score)) / components
        if not a > 0:
            raise ValueError("squared_error: all errors are zero, there is nothing to calibrate")
        return LinearCalibration(a=a, b=0.0, floor=a * float(score.min()))


@dataclass(frozen=True)
class ConformalCalibration:
    """Split-conformal radii: q(level) times an uncertainty covers a new error with at least that probability.

    quantiles: q by level, without unit if the uncertainty is in units of the error; infinite where the validation set
    is too small for the level. The guarantee holds for items exchangeable with the validation ones, on average over
    them. Source: Lei et al., J. Am. Stat. Assoc. 113, 1094 (2018), section 5.2; Hu et al. 2022 (arXiv:2208.08337).
    """

    quantiles: Mapping[float, float]

    @classmethod
    def fit(
        cls, uncertainty: ArrayLike, squared_error: ArrayLike, *, levels: Sequence[float]
    ) -> "ConformalCalibration":
        """Take the ceil((n + 1) level)-th smallest of |e_i| / u_i on validation data for each level.

        uncertainty (n,) > 0: a standard deviation or another positive score, for a score that can be negative the root
        of its calibrated variance; squared_error (n,), |dF_i|^2 for forces, whose radius then bounds the norm.
        Raises ValueError for other values, or levels outside (0, 1).
        """
        uncertainty, squared_error = _checked(uncertainty, squared_error)
        _positive(uncertainty)
        n = len(uncertainty)
        ratios = np.append(np.sort(np.sqrt(squared_error) / uncertainty), np.inf)
        quantiles = {}
        for level in levels:
            if not 0 < level < 1:
                raise ValueError(f"levels: expected numbers between 0 and 1, got {level}")
            # Rounded before ceil: (n + 1) level is a whole number more often than floating point admits.
            rank = int(np.ceil(np.round((n + 1) * level, 9)))
            quantiles[float(level)] = float(ratios[min(rank, n + 1) - 1])
        return cls(quantiles)

    def radius(self, uncertainty: ArrayLike, level: float) -> Array:
        """Radius (...) around the prediction for uncertainties (...) > 0; ValueError for a level not fitted."""
        if level not in self.quantiles:
            raise ValueError(f"level {level} was not fitted; there are {', '.join(map(str, sorted(self.quantiles)))}")
        uncertainty = np.asarray(uncertainty, dtype=np.float64)
        _positive(uncertainty)
        return self.quantiles[level] * uncertainty

    def to_dict(self) -> dict[str, Any]:
        """Plain types for a checkpoint or JSON, an infinite quantile as None."""
        pairs = [[level, q if np.isfinite(q) else None] for level, q in sorted(self.quantiles.items())]
        return {"kind": "conformal", "quantiles": pairs}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ConformalCalibration":
        """Inverse of `to_dict`; ValueError for other content."""
        _expect(values, "conformal", {"quantiles"})
        return cls({float(level): float("inf") if q is None else float(q) for level, q in values["quantiles"]})


@dataclass(frozen=True)
class ScoreCalibration:
    """What validation data say of a score: the variance that it stands for, and radii that bound the error.

    The radii are multiples of the standard deviation of the linear map, so that scores of any unit and sign have them.
    The map's two numbers come from the same validation data, a dependence that the conformal guarantee neglects.
    """

    linear: LinearCalibration
    conformal: ConformalCalibration

    @classmethod
    def fit(
        cls,
        score: ArrayLike,
        squared_error: ArrayLike,
        *,
        components: int,
        levels: Sequence[float],
        calibrator: Calibrator | None = None,
    ) -> "ScoreCalibration":
        """Fit both on validation data; arguments and errors as in `Calibrator` and `ConformalCalibration`.

        calibrator: None for `Affine`.
        """
        linear = (calibrator or Affine()).fit(score, squared_error, components=components)
        sigma = np.sqrt(linear.variance(score))
        return cls(linear, ConformalCalibration.fit(sigma, squared_error, levels=levels))

    def variance(self, score: ArrayLike) -> Array:
        """Variance per component (...) for scores (...), in squared units of the error."""
        return self.linear.variance(score)

    def radii(self, score: ArrayLike) -> dict[float, Array]:
        """Radius (...) of |error| for scores (...) by level; levels too high for the validation set are left out."""
        sigma = np.sqrt(self.linear.variance(score))
        levels = [level for level, q in sorted(self.conformal.quantiles.items()) if np.isfinite(q)]
        return {level: self.conformal.radius(sigma, level) for level in levels}

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"linear": self.linear.to_dict(), "conformal": self.conformal.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ScoreCalibration":
        """Inverse of `to_dict`; ValueError for other content."""
        if not isinstance(values, Mapping) or set(values) != {"linear", "conformal"}:
            raise ValueError("calibration: expected a linear and a conformal part")
        return cls(LinearCalibration.from_dict(values["linear"]), ConformalCalibration.from_dict(values["conformal"]))


def _minima(values: Array) -> NDArray[np.int64]:
    """Indices of the local minima of values (K,), ends included."""
    padded = np.concatenate(([np.inf], values, [np.inf]))
    return np.flatnonzero((values <= padded[:-2]) & (values <= padded[2:]))


def _checked(score: ArrayLike, squared_error: ArrayLike) -> tuple[Array, Array]:
    score, squared_error = (np.asarray(a, dtype=np.float64) for a in (score, squared_error))
    if score.ndim != 1 or score.shape != squared_error.shape or score.size == 0:
        raise ValueError(f"score {score.shape} and squared_error {squared_error.shape}: expected two equal (n,), n > 0")
    if not (np.all(np.isfinite(score)) and np.all(np.isfinite(squared_error))):
        raise ValueError("score and squared_error: values that are not finite")
    if np.any(squared_error < 0):
        raise ValueError("squared_error: negative values")
    return score, squared_error


def _positive(uncertainty: Array) -> None:
    if not np.all(uncertainty > 0):
        raise ValueError(
            "uncertainty: expected numbers > 0; calibrate a score that can be negative to a variance first"
        )


def _expect(values: Mapping[str, Any], kind: str, keys: set[str]) -> None:
    if not isinstance(values, Mapping) or values.get("kind") != kind or set(values) != keys | {"kind"}:
        raise ValueError(f"calibration: expected kind {kind!r} with {', '.join(sorted(keys))}, got {values!r}")
