"""What the validation split of a run says of its scores, kept in the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from uqbench.data.structures import Systems
from uqbench.errors import DataError
from uqbench.runs.run_dir import Run, RunDir
from uqbench.uq.calibration import Calibrator, ScoreCalibration

CALIBRATION = "calibration.json"


class Predicted(Protocol):
    """What is needed of predictions; `PredictionSet` has it."""

    structures: Systems
    energy: NDArray[np.float64]
    forces: NDArray[np.float64]
    energy_score: NDArray[np.float64]
    score: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the validation split says of the scores: of forces per atom, of energies per structure."""

    forces: ScoreCalibration
    energy: ScoreCalibration

    @classmethod
    def fit(cls, validation: Predicted, levels: Sequence[float], calibrator: Calibrator | None = None) -> Calibration:
        """Fit both on the predictions of the validation split; calibrator: None for `Affine`.

        Raises DataError for frames without labels, or when the errors cannot calibrate anything.

        Example:
            >>> from uqbench.inference.calibration import Calibration
            >>> from uqbench.inference.prediction_set import PredictionSet
            >>> run = "outputs/train/quickstart-ethanol/painn_small/ensemble/seed0-cdb97305"
            >>> validation = PredictionSet.read(f"{run}/predictions_validation.parquet")
            >>> calibration = Calibration.fit(validation, levels=(0.9,))
            >>> variance = calibration.forces.variance(validation.score)  # (eV/Å)², one for each atom
            >>> error = ((validation.forces - validation.structures.forces) ** 2).mean()
            >>> bool(0.5 < variance.mean() / error < 2)
            True
        """
        given = {"levels": levels, "calibrator": calibrator}
        s = validation.structures.require_labels()
        force_error = ((validation.forces - s.forces) ** 2).sum(-1)
        energy_error = (validation.energy - s.energies) ** 2
        try:
            return cls(
                forces=ScoreCalibration.fit(validation.score, force_error, components=3, **given),
                energy=ScoreCalibration.fit(validation.energy_score, energy_error, components=1, **given),
            )
        except ValueError as error:
            raise DataError(f"the validation split cannot calibrate the uncertainties: {error}") from error

    def save(self, run: RunDir) -> None:
        """Write calibration.json of a run."""
        run.write_json(CALIBRATION, self.to_dict())

    @classmethod
    def load(cls, run: Run) -> Calibration:
        """Read calibration.json of a run; raises DataError when it is missing, damaged or of another version."""
        values = run.read_json(CALIBRATION)
        try:
            return cls.from_dict(values)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{run.path / CALIBRATION} is damaged or of another version of uqbench ({error}); train this run again"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"forces": self.forces.to_dict(), "energy": self.energy.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_dict`; KeyError, TypeError or ValueError for other content."""
        return cls(**{name: ScoreCalibration.from_dict(values[name]) for name in ("forces", "energy")})
