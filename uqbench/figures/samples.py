"""Errors and uncertainties of forces and of energies, as they are drawn."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uqbench.metrics.accuracy import rmse, squared_norm
from uqbench.metrics.kernels import Array

if TYPE_CHECKING:
    from uqbench.evaluation import Calibration
    from uqbench.predictions import Predictions

RAW, CALIBRATED = "raw", "calibrated"


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Errors of forces or energies, with what the method said of their size.

    Attributes:
        title, item, component, symbol: what is looked at, for headings and labels.
        unit: of what is drawn. scale: from eV or eV/Å to that unit.
        errors: (n, D). owner: (n,), the structure of each item. structures: their number.
        score: (n,). variances: (n,) per component and positive, by name: RAW where the method has one, and CALIBRATED.
        undefined: variances left out because some are zero: how many, by name.
        bins: along the variance.
    """

    title: str
    item: str
    component: str
    symbol: str
    unit: str
    scale: float
    errors: Array
    owner: NDArray[np.integer]
    structures: int
    score: Array
    variances: dict[str, Array]
    undefined: dict[str, int]
    bins: int

    @property
    def sizes(self) -> Array:
        """|error| of each item (n,), in the unit drawn."""
        return self.scale * np.sqrt(squared_norm(self.errors))

    def sigma(self, name: str) -> Array:
        """Standard deviation per component (n,), in the unit drawn."""
        return self.scale * np.sqrt(self.variances[name])


def samples(predictions: Predictions, calibration: Calibration, bins: int) -> dict[str, Sample]:
    """Take errors and uncertainties from predictions and a calibration; bins along the variance, by target."""
    s = predictions.structures
    force_errors, energy_errors = predictions.forces - s.forces, (predictions.energy - s.energies)[:, None]
    unit, scale = drawing_unit(force_errors, "eV/Å")
    raw, calibrated = predictions.force_variance, calibration.forces.variance(predictions.score)
    forces = Sample(
        title="Forces",
        item="atom",
        component="a force component",
        symbol="|ΔF|",
        unit=unit,
        scale=scale,
        errors=force_errors,
        owner=np.repeat(np.arange(len(s)), s.n_atoms),
        structures=len(s),
        score=predictions.score,
        bins=bins,
        **_variances(raw, calibrated),
    )
    unit, scale = drawing_unit(energy_errors, "eV")
    raw, calibrated = predictions.energy_variance, calibration.energy.variance(predictions.energy_score)
    energy = Sample(
        title="Energies",
        item="structure",
        component="the energy",
        symbol="|ΔE|",
        unit=unit,
        scale=scale,
        errors=energy_errors,
        owner=np.arange(len(s)),
        structures=len(s),
        score=predictions.energy_score,
        bins=bins,
        **_variances(raw, calibrated),
    )
    return {"forces": forces, "energy": energy}


def _variances(raw: Array | None, calibrated: Array) -> dict[str, dict]:
    """Sort the variances into those that can be drawn and those that hold zeros."""
    given = {name: v for name, v in ((RAW, raw), (CALIBRATED, calibrated)) if v is not None}
    zeros = {name: int(np.count_nonzero(v == 0)) for name, v in given.items()}
    return {
        "variances": {name: v for name, v in given.items() if not zeros[name]},
        "undefined": {name: count for name, count in zeros.items() if count},
    }


def drawing_unit(errors: Array, unit: str) -> tuple[str, float]:
    """Unit to draw errors in, and the factor to it: thousandths of `unit` where the RMSE is below 0.1."""
    return (f"m{unit}", 1e3) if rmse(errors) < 0.1 else (unit, 1.0)
