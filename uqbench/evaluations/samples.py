"""From predictions to the samples of errors and uncertainties that are drawn."""

from __future__ import annotations

import numpy as np

from uqbench.figures.samples import CALIBRATED, RAW, Sample, drawing_unit
from uqbench.inference.calibration import Calibration
from uqbench.inference.prediction_set import PredictionSet
from uqbench.metrics.kernels import Array


def samples(predictions: PredictionSet, calibration: Calibration, bins: int) -> dict[str, Sample]:
    """Take errors and uncertainties from predictions and a calibration; bins along the variance, by target."""
    s = predictions.structures.require_labels()
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
