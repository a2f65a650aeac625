"""Errors and uncertainties of forces and of energies, as they are drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from uqbench.metrics.accuracy import rmse, squared_norm
from uqbench.metrics.kernels import Array

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


def drawing_unit(errors: Array, unit: str) -> tuple[str, float]:
    """Unit to draw errors in, and the factor to it: thousandths of `unit` where the RMSE is below 0.1."""
    return (f"m{unit}", 1e3) if rmse(errors) < 0.1 else (unit, 1.0)
