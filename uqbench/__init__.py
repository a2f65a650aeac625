"""Uncertainty quantification of neural-network interatomic potentials: use of trained runs from Python.

Example, with a folder made by `uqbench train`:
    >>> import uqbench
    >>> from ase.build import molecule
    >>> model = uqbench.load("outputs/train/quickstart-ethanol/painn_small/ensemble/seed0-cdb97305")
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = model.calculator()  # for everything in ASE
    >>> energy, forces = atoms.get_potential_energy(), atoms.get_forces()  # eV, eV/Å
    >>> atoms.calc.get_property("forces_std", atoms).shape  # eV/Å per component, calibrated
    (9,)
    >>> predictions = model.predict([atoms] * 2)  # many frames at once: Atoms, a list, Structures
    >>> predictions.energy_std.shape, predictions.score.shape
    ((2,), (18,))
    >>> predictions.write("predictions.extxyz")  # or .parquet, .csv; PredictionSet.read reads them

`uqbench.inference.prediction_set.PredictionSet` lists what is predicted, with shapes and units,
`uqbench.inference.calculator.UQCalculator` the ASE properties. Errors are subclasses of
`uqbench.errors.UqbenchError` with a message of one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    import torch

    from uqbench.inference.trained_model import TrainedModel

__all__ = ["load"]


def load(run: str | os.PathLike, *, device: str = "cpu", dtype: str | torch.dtype | None = None) -> TrainedModel:
    """Load a finished training run for predictions and ASE calculations.

    Args:
        run: its folder.
        device: `cpu`, `cuda`, `cuda:1`, …
        dtype: `float32` or `float64`; by default the precision of the training. Long simulations that must conserve
            energy need `float64`.

    Raises DataError for a folder that is not a finished run or has lost files, CheckpointError for weights that are
    damaged or do not fit, ConfigError for a device or dtype that cannot be used.

    Example:
        >>> import uqbench
        >>> run = "outputs/train/quickstart-ethanol/painn_small/ensemble/seed0-cdb97305"
        >>> model = uqbench.load(run, dtype="float64")
        >>> model.elements, model.cutoff
        (['H', 'C', 'O'], 5.0)
    """
    # Imported here: torch takes seconds, and the command line must answer at once.
    from uqbench.inference.trained_model import TrainedModel

    return TrainedModel.from_run(run, device=device, dtype=dtype)
