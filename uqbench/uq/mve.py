"""Mean-variance estimation: a head on the latents predicts the variance of the force errors (Nix and Weigend 1994)."""

from __future__ import annotations

from pydantic import PositiveFloat
from torch import Tensor

from uqbench.config.annotations import UnitInterval
from uqbench.data.graph import Batch
from uqbench.uq.base import KCAL_PER_MOL, BuildPotential, Prediction, mean_over_atoms
from uqbench.uq.likelihoods import HEAD, Likelihood, LikelihoodMethod, gaussian_nll


class MVE(LikelihoodMethod):
    """One potential that predicts, for each atom, a mean force and the variance of its components.

    v = (softplus + floor) · scale², with the normalisation's scale: labels × c give standard deviations × c. The
    energies have no variance; their score is the mean of v over the atoms.

    Args:
        build_potential: makes the potential.
        likelihood: `vector`, an isotropic Gaussian of the force; `norm`, a Gaussian of the error's length (the study).
        beta: in training, each atom's likelihood is weighted by its v^beta, v in (kcal/mol/Å)² and taken as a
            constant: 0 is maximum likelihood, 1 gives the mean the gradient of a squared error
            (Seitzer et al., ICLR 2022, arXiv:2203.09168).
        warmup: fraction of the epochs in which the potential follows the point loss alone.
        floor: smallest v, in units of scale².
    """

    family = "single"

    def __init__(
        self,
        build_potential: BuildPotential,
        *,
        likelihood: Likelihood,
        beta: UnitInterval,
        warmup: UnitInterval,
        floor: PositiveFloat,
    ) -> None:
        super().__init__(build_potential, channels=1, likelihood=likelihood, warmup=warmup, floor=floor)
        self.beta = beta

    def variance(self, raw: Tensor) -> Tensor:
        """Return the variance per component (N,) in (eV/Å)² from the head's output (N, 1)."""
        return self.positive(raw.squeeze(-1)) * self.potential.scale.square()

    def negative_log_likelihood(self, raw: Tensor, residual: Tensor) -> Tensor:
        variance = self.variance(raw) / KCAL_PER_MOL**2
        loss = gaussian_nll(residual, variance, self.likelihood)
        return loss * variance.detach() ** self.beta if self.training else loss

    def predict(self, batch: Batch, *, create_graph: bool = False, stress: bool = False) -> Prediction:
        output = self.potential(batch, create_graph=create_graph, stress=stress)
        variance = self.variance(output.heads[HEAD])
        return Prediction(
            energy=output.energy,
            forces=output.forces,
            energy_variance=None,
            force_variance=variance,
            score=variance,
            energy_score=mean_over_atoms(variance, batch),
            stress=output.stress,
        )
