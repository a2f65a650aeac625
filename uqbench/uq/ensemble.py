"""Deep ensemble: several potentials that differ by their random initialisation (Lakshminarayanan et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from annotated_types import Ge
from pydantic import NonNegativeInt
from torch import Tensor

from uqbench.data.graph import Batch
from uqbench.seeding import numpy_generator
from uqbench.uq.base import (
    BuildPotential,
    Losses,
    Method,
    PointLoss,
    Prediction,
    absolute_errors,
    force_trace_variance,
    residuals,
)


class Ensemble(Method):
    """M potentials trained side by side on the same batches; the variance is that of their predictions.

    Args:
        build_potential: makes the potential with a leading member axis.
        members: M, at least 2.
        ddof: delta degrees of freedom of the variance: 1 is the unbiased estimate over M - 1.
        bootstrap: train each member on its own resample of the training frames (drawn with replacement).
    """

    family = "ensemble"

    def __init__(
        self, build_potential: BuildPotential, *, members: Annotated[int, Ge(2)], ddof: NonNegativeInt, bootstrap: bool
    ) -> None:
        super().__init__()
        self.potential = build_potential(members, {})
        self.members, self.ddof, self.bootstrap = members, ddof, bootstrap
        # (M, training frames): how often each member sees each frame.
        self.register_buffer("weights", None, persistent=False)  # drawn anew from the seed

    @staticmethod
    def contradictions(*, members: int, ddof: int, **_: Any) -> Iterator[str]:
        """Yield what is wrong between arguments that are each right alone."""
        if ddof >= members:
            yield f"ddof: expected an integer < members ({members}), got {ddof}"

    def begin(self, n_train: int, seed: int) -> None:
        if self.bootstrap:
            draws = [numpy_generator(seed, "bootstrap", m).integers(n_train, size=n_train) for m in range(self.members)]
            counts = torch.stack([torch.bincount(torch.as_tensor(draw), minlength=n_train) for draw in draws])
            self.weights = counts.to(self.potential.scale)

    def losses(self, batch: Batch, point_loss: PointLoss) -> Losses:
        output = self.potential(batch, create_graph=torch.is_grad_enabled())
        energy, forces = residuals(output, batch)
        energy_loss, force_loss = energy.abs(), point_loss(forces)
        if self.bootstrap and self.training:
            weights = self.weights[:, batch.index]
            energy_loss, force_loss = energy_loss * weights, force_loss * weights[:, batch.system]
        errors = absolute_errors(output.energy.mean(0), output.forces.mean(0), batch)
        return Losses(energy_loss, force_loss, *errors)

    def predict(self, batch: Batch, *, create_graph: bool = False, stress: bool = False) -> Prediction:
        output = self.potential(batch, create_graph=create_graph, stress=stress)
        energy_variance: Tensor = torch.var(output.energy, dim=0, correction=self.ddof)
        force_variance = force_trace_variance(output.forces, self.ddof)
        return Prediction(
            energy=output.energy.mean(0),
            forces=output.forces.mean(0),
            energy_variance=energy_variance,
            force_variance=force_variance,
            score=force_variance,
            energy_score=energy_variance,
            stress=None if output.stress is None else output.stress.mean(0),
        )
