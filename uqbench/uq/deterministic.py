"""A single potential with a constant uncertainty: the baseline that every method has to beat."""

from __future__ import annotations

import torch

from uqbench.data.graph import Batch
from uqbench.uq.base import BuildPotential, Losses, Method, PointLoss, Prediction, absolute_errors, residuals


class Deterministic(Method):
    """One potential that is equally sure of everything.

    Its score is 1 everywhere and gets a unit by calibration alone: the calibrated likelihood is that of one variance
    for all atoms, and rankings are undefined.

    Args:
        build_potential: makes the potential.
    """

    family = "baseline"
    informed = False

    def __init__(self, build_potential: BuildPotential) -> None:
        super().__init__()
        self.potential = build_potential(None, {})

    def losses(self, batch: Batch, point_loss: PointLoss) -> Losses:
        output = self.potential(batch, create_graph=torch.is_grad_enabled())
        energy, forces = residuals(output, batch)
        return Losses(energy.abs(), point_loss(forces), *absolute_errors(output.energy, output.forces, batch))

    def predict(self, batch: Batch, *, create_graph: bool = False, stress: bool = False) -> Prediction:
        output = self.potential(batch, create_graph=create_graph, stress=stress)
        return Prediction(
            energy=output.energy,
            forces=output.forces,
            energy_variance=None,
            force_variance=None,
            score=torch.ones_like(output.forces[:, 0]),
            energy_score=torch.ones_like(output.energy),
            stress=output.stress,
        )
