"""From a trained method to predictions, calibration and metric rows."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from uqbench.errors import ConfigError, DataError, TrainingError
from uqbench.graph import GraphSet
from uqbench.metrics.summary import energy_rows, force_rows
from uqbench.provenance import peak_memory_mb
from uqbench.rundir import RunDir
from uqbench.seeding import numpy_generator
from uqbench.structures import Structures
from uqbench.uq.base import UQMethod
from uqbench.uq.calibration import LinearCalibration

CALIBRATION = "calibration.json"

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a method predicted for a set of structures, beside the labels; numpy, eV and eV/Å.

    Attributes:
        structures: the labelled frames.
        energy: (S,). forces: (N, 3).
        energy_variance: (S,) or None. force_variance: (N,) per component, or None.
        score: (N,). energy_score: (S,).
        seconds: wall time of the predictions, neighbour lists excluded.
    """

    structures: Structures
    energy: Array
    forces: Array
    energy_variance: Array | None
    force_variance: Array | None
    score: Array
    energy_score: Array
    seconds: float

    def frame(self) -> pd.DataFrame:
        """Return one row per structure; per-atom values are lists, vectors flattened as x1 y1 z1 x2 ..."""
        s = self.structures
        cuts = s.ptr[1:-1]
        columns: dict[str, Any] = {
            "id": s.ids,
            "n_atoms": s.n_atoms,
            "numbers": np.split(s.numbers, cuts),
            "energy_reference": s.energies,
            "energy": self.energy,
            "energy_variance": self.energy_variance,
            "energy_score": self.energy_score,
            "forces_reference": np.split(s.forces.ravel(), 3 * cuts),
            "forces": np.split(self.forces.ravel(), 3 * cuts),
            "force_variance": None if self.force_variance is None else np.split(self.force_variance, cuts),
            "score": np.split(self.score, cuts),
        }
        return pd.DataFrame({name: list(values) for name, values in columns.items() if values is not None})


def predict(method: UQMethod, structures: Structures, *, batch_size: int, device: str | torch.device) -> Predictions:
    """Predict all structures in batches; raises TrainingError when a prediction is not finite."""
    method = method.to(device).eval()
    graphs = GraphSet(structures, method.potential.backbone.cutoff, dtype=method.potential.scale.dtype, device=device)
    batches = graphs.batches(batch_size)
    with torch.no_grad():
        method.predict(batches[0])  # warms up caches and kernels, so that the time below is that of the work
        _synchronise(device)
        start = time.perf_counter()
        parts = [method.predict(batch) for batch in batches]
        _synchronise(device)
        seconds = time.perf_counter() - start

    def join(name: str) -> Array | None:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        array = torch.cat(values).double().cpu().numpy()
        if not np.isfinite(array).all():
            raise TrainingError(f"the model predicts non-finite values ({name}) on {structures.origin}")
        return array

    names = ("energy", "forces", "energy_variance", "force_variance", "score", "energy_score")
    return Predictions(structures, **{name: join(name) for name in names}, seconds=seconds)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Linear maps from score to variance, fitted on the validation split: forces per component, energies."""

    forces: LinearCalibration
    energy: LinearCalibration

    @classmethod
    def fit(cls, validation: Predictions) -> Calibration:
        """Fit both maps on the predictions of the validation split; raises DataError when they cannot be fitted."""
        s = validation.structures
        force_error = ((validation.forces - s.forces) ** 2).sum(-1)
        energy_error = (validation.energy - s.energies) ** 2
        try:
            return cls(
                forces=LinearCalibration.fit(validation.score, force_error, components=3),
                energy=LinearCalibration.fit(validation.energy_score, energy_error, components=1),
            )
        except ValueError as error:
            raise DataError(f"the validation split cannot calibrate the uncertainties: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for calibration.json."""
        return {"forces": self.forces.to_dict(), "energy": self.energy.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Restore what `to_dict` returned."""
        return cls(**{name: LinearCalibration.from_dict(values[name]) for name in ("forces", "energy")})


class Metrics:
    """Scores predictions against labels: every metric of forces per atom and of energies per structure.

    Args:
        quantiles: of the squared error, above which an atom counts as badly predicted (ROC-AUC).
        bootstrap: resamples of structures behind each confidence interval; 0 for none.
        batch_size: structures per prediction batch.
    """

    def __init__(self, *, quantiles: list[float], bootstrap: int, batch_size: int) -> None:
        if not quantiles or not all(0 < q < 1 for q in quantiles):
            raise ConfigError(f"evaluation.quantiles: must lie between 0 and 1, got {list(quantiles)}")
        if bootstrap < 0 or batch_size < 1:
            raise ConfigError("evaluation.bootstrap must be >= 0 and evaluation.batch_size >= 1")
        self.quantiles, self.bootstrap, self.batch_size = tuple(quantiles), bootstrap, batch_size

    def calibrate(
        self, run: RunDir, method: UQMethod, validation: Structures, device: str | torch.device
    ) -> Calibration:
        """Fit the calibration on the validation split, and keep its predictions in the run."""
        predictions = predict(method, validation, batch_size=self.batch_size, device=device)
        run.write_parquet("predictions_validation.parquet", predictions.frame())
        return Calibration.fit(predictions)

    def run(
        self,
        run: RunDir,
        method: UQMethod,
        structures: Structures,
        split: str,
        calibration: Calibration,
        device: str | torch.device,
    ) -> tuple[Predictions, list[dict[str, Any]]]:
        """Predict a split, keep the predictions in the run, and return them with their metric and cost rows."""
        predictions = predict(method, structures, batch_size=self.batch_size, device=device)
        run.write_parquet(f"predictions_{split}.parquet", predictions.frame())
        costs = cost_rows(
            inference_time=(1e3 * predictions.seconds / len(structures), "ms/structure"),
            peak_memory=(max(peak_memory_mb().values(), default=float("nan")), "MB"),
        )
        return predictions, self.rows(predictions, calibration, seed=0) + costs

    def rows(self, predictions: Predictions, calibration: Calibration, seed: int) -> list[dict[str, Any]]:
        """Return the metric rows of some predictions; the same seed resamples the same structures for every method."""
        s = predictions.structures
        generator = numpy_generator(seed, "bootstrap-intervals")
        options = {"quantiles": self.quantiles, "bootstrap": self.bootstrap}
        forces = force_rows(
            s.forces,
            predictions.forces,
            predictions.score,
            predictions.force_variance,
            calibration.forces.variance(predictions.score),
            s.ptr,
            generator=generator,
            **options,
        )
        energy = energy_rows(
            s.energies,
            predictions.energy,
            predictions.energy_score,
            predictions.energy_variance,
            calibration.energy.variance(predictions.energy_score),
            s.n_atoms,
            generator=generator,
            **options,
        )
        return forces + energy


def cost_rows(**costs: tuple[float, str]) -> list[dict[str, Any]]:
    """Return one metric row per cost, given as name=(value, unit)."""
    return [
        {"target": "cost", "population": "run", "metric": name, "value": value, "unit": unit}
        | {"n": 1, "ci_low": None, "ci_high": None}
        for name, (value, unit) in costs.items()
    ]


def _synchronise(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
