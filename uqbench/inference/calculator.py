"""A trained run as an ASE calculator that knows how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from uqbench.data.structures import Systems
from uqbench.data.verlet import DynamicGraph
from uqbench.inference.calibration import Calibration
from uqbench.inference.prediction_set import PredictionSet, to_numpy
from uqbench.uq.base import UQMethod

SKIN = 0.5  # Å


class Model(Protocol):
    """What the calculator needs of a model; `TrainedModel` has it."""

    method: UQMethod
    calibration: Calibration | None
    device: str

    @property
    def cutoff(self) -> float:
        """Å."""

    @property
    def dtype(self) -> torch.dtype:
        """Of positions and forces."""


class UQCalculator(Calculator):
    """Energy, forces, stress and their uncertainties of a trained model, for everything in ASE that takes a calculator.

    Properties, reached by `atoms.calc.get_property(name, atoms)` and, after any of them, by `atoms.calc.results`:

    - energy, free_energy: eV; they are the same.
    - forces: (N, 3) eV/Å, without constraints (ASE applies those of the atoms).
    - stress: (6,) eV/Å³ in ASE's sign and order xx, yy, zz, yz, xz, xy; PropertyNotImplementedError for atoms that are
      not periodic or whose cell has no volume.
    - energy_std: eV, and forces_std: (N,) eV/Å for each Cartesian component of the force on an atom: the standard
      deviations of `uqbench.inference.prediction_set.PredictionSet`, calibrated where `calibrated` says so;
      PropertyNotImplementedError where the method has none.
    - score: (N,) what the method ranks atoms by; bigger = less sure, any unit.

    Raises DataError for no atoms, an element that the model has not seen, coordinates that are not finite and
    coincident atoms.

    Args:
        model: what `uqbench.load` returns.
        skin: Å; how far beyond the cutoff neighbours are looked for, so that they are searched anew only when an atom
            has moved by half of it. Changes the speed, not the numbers.
    """

    name = "uqbench"
    implemented_properties = ["energy", "free_energy", "forces", "stress", "energy_std", "forces_std", "score"]

    def __init__(self, model: Model, *, skin: float = SKIN) -> None:
        super().__init__()
        self.model = model
        self._graph = DynamicGraph(model.cutoff, skin=skin, dtype=model.dtype, device=model.device)

    @property
    def calibrated(self) -> bool:
        """Whether the standard deviations are calibrated on the run's validation frames."""
        return self.model.calibration is not None

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Return what has changed since the last calculation, of what matters to a potential; exactly, without `tol`.

        ASE's own comparison costs as much as a tenth of a small network's evaluation, and is made for every property.
        """
        old = self.atoms
        if old is None:
            return list(all_changes)
        pairs = {
            "positions": (old.positions, atoms.positions),
            "numbers": (old.numbers, atoms.numbers),
            "cell": (old.cell.array, atoms.cell.array),
            "pbc": (old.pbc, atoms.pbc),
        }
        return [name for name, (a, b) in pairs.items() if a.shape != b.shape or not (a == b).all()]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything at once; ASE calls this when a property is asked for that is not known yet."""
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        # The stress is a by-product of the forces, so that cell optimisers need not call the model twice.
        stressed = bool(atoms.pbc.any()) and atoms.cell.rank == 3
        if "stress" in properties and not stressed:
            raise PropertyNotImplementedError("stress: the atoms are not periodic, or their cell has no volume")
        ptr = np.array([0, len(atoms)])
        systems = {"cells": atoms.cell.array[None], "pbc": atoms.pbc[None], "ptr": ptr}
        batch = self._graph.batch(atoms.numbers, atoms.positions, **systems)
        with torch.no_grad():
            prediction = self.model.method.predict(batch, stress=stressed)
        alone = Systems(numbers=atoms.numbers, ptr=ptr, ids=np.zeros(1, np.int64), origin="the atoms")
        values = PredictionSet.of([prediction], alone, calibration=self.model.calibration)
        energy, energy_std, forces_std = float(values.energy[0]), values.energy_std, values.forces_std
        results: dict[str, Any] = {"energy": energy, "free_energy": energy, "forces": values.forces}
        if stressed:
            results["stress"] = full_3x3_to_voigt_6_stress(to_numpy(prediction.stress[0]))
        if energy_std is not None:
            results["energy_std"] = float(energy_std[0])
        if forces_std is not None:
            results["forces_std"] = forces_std
        self.results = results | {"score": values.score}
