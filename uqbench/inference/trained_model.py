"""A trained run as an object that predicts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures
from uqbench.errors import ConfigError, DataError, UqbenchError
from uqbench.inference.calculator import SKIN, UQCalculator
from uqbench.inference.calibration import CALIBRATION, Calibration
from uqbench.inference.prediction_set import to_numpy
from uqbench.runs import run_dir
from uqbench.runs.checkpoints import BEST
from uqbench.uq.base import Prediction, UQMethod
from uqbench.uq.io import load_method

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """Energies and forces of S frames with N atoms in all, and how sure the model is of them; numpy, float64.

    A standard deviation is the calibrated one, sqrt(a U + b) of the score U with a and b fitted to the validation
    frames, where the run has a calibration; otherwise the method's own, or None where it has none.

    Attributes:
        energy: (S,) eV.
        forces: (N, 3) eV/Å.
        energy_std: (S,) eV, of the energy of a frame; or None.
        forces_std: (N,) eV/Å, of each Cartesian component of the force on an atom; or None. The root mean square
            length of the force error is sqrt(3) times that.
        energy_score, score: (S,) and (N,), what the method ranks frames and atoms by: bigger = less sure, any unit.
        ptr: (S + 1,) frame s owns the atoms ptr[s]:ptr[s + 1].
        calibrated: whether the standard deviations are calibrated.
        energy_radii, forces_radii: by level, (S,) eV and (N,) eV/Å: split-conformal radii that hold the error of the
            energy, or the length of that of the force, with at least that probability; empty without a calibration.
    """

    energy: Array
    forces: Array
    energy_std: Array | None
    forces_std: Array | None
    energy_score: Array
    score: Array
    ptr: NDArray[np.int64]
    calibrated: bool
    energy_radii: dict[float, Array]
    forces_radii: dict[float, Array]

    def __len__(self) -> int:
        return len(self.energy)


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

    def predict(self, frames: Atoms | Iterable[Atoms] | Structures, *, batch_size: int = 64) -> Estimate:
        """Predict frames in batches; `batch_size` frames are in memory at a time and do not change the numbers.

        Constraints of ASE frames have no influence. Raises DataError for frames that cannot be predicted: no atoms,
        coordinates that are not finite, overlapping atoms, an unknown element.
        """
        if not isinstance(frames, Structures):
            frames = _unlabelled([frames] if isinstance(frames, Atoms) else list(frames))
        graphs = GraphSet(frames, self.cutoff, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            parts = [self.method.predict(batch) for batch in graphs.batches(batch_size)]
        names = ("energy", "forces", "energy_variance", "force_variance", "energy_score", "score")
        joined = {}
        for name in names:
            values = [getattr(part, name) for part in parts]
            joined[name] = None if values[0] is None else torch.cat(values)
        whole = Prediction(**joined)
        energy_radii, forces_radii = {}, {}
        if self.calibration is not None:
            energy_radii = self.calibration.energy.radii(to_numpy(whole.energy_score))
            forces_radii = self.calibration.forces.radii(to_numpy(whole.score))
        return Estimate(
            **self.values(whole),
            ptr=frames.ptr,
            calibrated=self.calibration is not None,
            energy_radii=energy_radii,
            forces_radii=forces_radii,
        )

    def values(self, prediction: Prediction) -> dict[str, Array | None]:
        """Return energies, forces, standard deviations and scores of a prediction, named as in `Estimate`.

        Raises UqbenchError when one is not finite.
        """
        energy_score, score = to_numpy(prediction.energy_score), to_numpy(prediction.score)
        if self.calibration is None:
            variances = prediction.energy_variance, prediction.force_variance
            energy_variance, force_variance = (None if v is None else to_numpy(v) for v in variances)
        else:
            energy_variance = self.calibration.energy.variance(energy_score)
            force_variance = self.calibration.forces.variance(score)
        found = {
            "energy": to_numpy(prediction.energy),
            "forces": to_numpy(prediction.forces),
            "energy_std": None if energy_variance is None else np.sqrt(energy_variance),
            "forces_std": None if force_variance is None else np.sqrt(force_variance),
            "energy_score": energy_score,
            "score": score,
        }
        for name, array in found.items():
            if array is not None and not np.isfinite(array).all():
                raise UqbenchError(f"the model predicts non-finite values ({name}); the frame is far from its data")
        return found

    def calculator(self, *, skin: float = SKIN) -> UQCalculator:
        """Return a new ASE calculator; all calculators of a model share its weights."""
        return UQCalculator(self, skin=skin)


def _unlabelled(frames: list[Atoms]) -> Structures:
    if not frames or not all(isinstance(atoms, Atoms) for atoms in frames):
        raise DataError("expected an ASE Atoms object, several of them, or Structures")
    counts = [len(atoms) for atoms in frames]
    n_atoms = sum(counts)
    return Structures.from_arrays(
        np.concatenate([atoms.numbers for atoms in frames]),
        np.concatenate([atoms.positions for atoms in frames]),
        np.zeros(len(frames)),
        np.zeros((n_atoms, 3)),
        np.concatenate([[0], np.cumsum(counts)]),
        origin="frames to predict",
        cells=np.stack([np.asarray(atoms.cell) for atoms in frames]),
        pbc=np.stack([atoms.pbc for atoms in frames]),
    )
