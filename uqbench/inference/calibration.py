"""What the validation split of a run says of its scores, kept in the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from uqbench.errors import DataError
from uqbench.inference.prediction_set import Predictions
from uqbench.runs.run_dir import Run, RunDir
from uqbench.uq.calibration import Calibrator, ScoreCalibration

CALIBRATION = "calibration.json"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the validation split says of the scores: of forces per atom, of energies per structure."""

    forces: ScoreCalibration
    energy: ScoreCalibration

    @classmethod
    def fit(cls, validation: Predictions, levels: Sequence[float], calibrator: Calibrator | None = None) -> Calibration:
        """Fit both on the predictions of the validation split; raises DataError when they cannot be fitted.

        calibrator: None for `Affine`.
        """
        given = {"levels": levels, "calibrator": calibrator}
        s = validation.structures
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
        run.write_json(CALIBRATION, {"forces": self.forces.to_dict(), "energy": self.energy.to_dict()})

    @classmethod
    def load(cls, run: Run) -> Calibration:
        """Read calibration.json of a run; raises DataError when it is missing, damaged or of another version."""
        values = run.read_json(CALIBRATION)
        try:
            return cls(**{name: ScoreCalibration.from_dict(values[name]) for name in ("forces", "energy")})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{run.path / CALIBRATION} is damaged or of another version of uqbench ({error}); train this run again"
            ) from error
