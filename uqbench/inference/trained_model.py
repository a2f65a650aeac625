"""A trained run as an object that predicts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from ase import Atoms
from ase.data import chemical_symbols

from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError
from uqbench.inference.calculator import SKIN, UQCalculator
from uqbench.inference.calibration import CALIBRATION, Calibration
from uqbench.inference.prediction_set import PredictionSet, predict
from uqbench.runs import run_dir
from uqbench.runs.checkpoints import BEST
from uqbench.uq.base import UQMethod
from uqbench.uq.io import load_method

if TYPE_CHECKING:
    from uqbench.inference.torchsim import TorchSimModel

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A potential with uncertainties, ready to predict; what `uqbench.load` returns.

    Attributes:
        method: the network and its uncertainty method.
        calibration: from scores to standard deviations; None gives the method's own.
        device: where it computes.
    """

    method: UQMethod
    calibration: Calibration | None
    device: str

    @classmethod
    def from_run(
        cls, run: str | os.PathLike, *, device: str = "cpu", dtype: str | torch.dtype | None = None
    ) -> TrainedModel:
        """Load a finished run; arguments and errors as in `uqbench.load`."""
        precision = None if dtype is None else PRECISIONS.get(str(dtype).removeprefix("torch."))
        if dtype is not None and precision is None:
            raise ConfigError(f"dtype: expected {' or '.join(PRECISIONS)}, got {dtype}")
        opened = run_dir.read(run)
        if "source" in opened.info and not (opened.path / BEST).exists():
            raise DataError(f"{run}: an evaluation, which holds no model; load {opened.info['source']}")
        method = load_method(opened)
        try:
            method = method.to(device=device, dtype=precision)
        except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
            raise ConfigError(f"device: '{device}' cannot be used ({str(error).splitlines()[0]})") from error
        calibration = Calibration.load(opened) if (opened.path / CALIBRATION).exists() else None
        return cls(method, calibration, device)

    @property
    def cutoff(self) -> float:
        """Distance in Å within which atoms are neighbours."""
        return self.method.potential.backbone.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the network computes."""
        return self.method.potential.scale.dtype

    @property
    def elements(self) -> list[str]:
        """Symbols of the elements that the model knows."""
        known = self.method.potential.species_of_element.ge(0).nonzero().flatten()
        return [chemical_symbols[z] for z in known.tolist()]

    def predict(self, frames: Atoms | Iterable[Atoms] | Structures, *, batch_size: int = 64) -> PredictionSet:
        """Predict frames in batches; `batch_size` frames are in memory at a time and do not change the numbers.

        Of ASE frames nothing counts but the geometry: neither constraints nor the results of a calculator. Raises
        DataError for frames that cannot be predicted: no atoms, coordinates that are not finite, overlapping atoms, an
        unknown element; TrainingError when a prediction is not finite.

        Example:
            >>> import uqbench
            >>> from ase.build import molecule
            >>> model = uqbench.load("outputs/train/quickstart-ethanol/painn_small/ensemble/seed0-cdb97305")
            >>> predictions = model.predict([molecule("CH3CH2OH"), molecule("H2O")])
            >>> predictions.energy.shape, predictions.forces.shape, predictions.score.shape
            ((2,), (12, 3), (12,))
            >>> predictions.calibrated, bool((predictions.forces_std > 0).all())
            (True, True)
        """
        if not isinstance(frames, Structures):
            frames = [frames] if isinstance(frames, Atoms) else list(frames)
            if not frames or not all(isinstance(atoms, Atoms) for atoms in frames):
                raise DataError("expected an ASE Atoms object, several of them, or Structures")
            frames = Structures.from_atoms(frames, origin="frames to predict", labels="none")
        once = {"calibration": self.calibration, "timed": False}
        return predict(self.method, frames, batch_size=batch_size, device=self.device, **once)

    def calculator(self, *, skin: float = SKIN) -> UQCalculator:
        """Return a new ASE calculator; all calculators of a model share its weights.

        Example:
            >>> import uqbench
            >>> from ase.build import molecule
            >>> model = uqbench.load("outputs/train/quickstart-ethanol/painn_small/ensemble/seed0-cdb97305")
            >>> atoms = molecule("CH3CH2OH")
            >>> atoms.calc = model.calculator()
            >>> atoms.get_forces().shape, atoms.calc.get_property("forces_std", atoms).shape
            ((9, 3), (9,))
        """
        return UQCalculator(self, skin=skin)

    def torchsim(self, *, stress: bool = False, skin: float = SKIN) -> TorchSimModel:
        """Return a new model for torch-sim, with stresses on request; ConfigError where that is not installed."""
        from uqbench.inference.torchsim import TorchSimModel

        return TorchSimModel(self, stress=stress, skin=skin)
