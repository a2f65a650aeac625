"""Deep evidential regression: a head predicts a normal-inverse-gamma distribution (Amini et al. 2020)."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from uqbench.config.annotations import UnitInterval
from uqbench.data.graph import Batch
from uqbench.uq.base import KCAL_PER_MOL, BuildPotential, Prediction, mean_over_atoms
from uqbench.uq.likelihoods import HEAD, Likelihood, LikelihoodMethod, nig_nll

# Keeps the gradient of a length finite at zero, as in the point loss `norm`; (kcal/mol/Å)².
TINY = 1e-12


class Evidential(LikelihoodMethod):
    """One potential that predicts, for each atom, the evidence for its force.

    nu = softplus + floor, alpha = 1 + softplus + floor, beta = (softplus + floor) · scale², the last in (eV/Å)², so
    that labels × c give standard deviations × c. Per component, the epistemic variance is beta / (nu (alpha - 1)) and
    the aleatoric one beta / (alpha - 1); the predictive one, their sum, is the variance of the Student's t that the
    likelihood compares with the error. The energies have no variance; their score is the mean over the atoms.

    Args:
        build_potential: makes the potential.
        likelihood: `vector`, the sum over the components of the force with shared parameters; `norm` (the study), that
            of the error's length, whose parameter is 3 beta: a length varies three times as much as a component.
        regularisation: lambda, the weight of |e| (2 nu + alpha), with e in kcal/mol/Å as in the likelihood.
        uncertainty: which variance is the method's variance and its score.
        warmup: fraction of the epochs in which the potential follows the point loss alone.
        floor: smallest value of the softplus terms.
    """

    family = "single"

    def __init__(
        self,
        build_potential: BuildPotential,
        *,
        likelihood: Likelihood,
        regularisation: NonNegativeFloat,
        uncertainty: Literal["epistemic", "aleatoric", "predictive"],
        warmup: UnitInterval,
        floor: PositiveFloat,
    ) -> None:
        super().__init__(build_potential, channels=3, likelihood=likelihood, warmup=warmup, floor=floor)
        self.regularisation, self.uncertainty = regularisation, uncertainty

    def parameters_of(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return nu, alpha - 1 and beta in (eV/Å)², each (N,), from the head's output (N, 3).

        alpha - 1 instead of alpha: the variances divide by it, and single precision would not give it back.
        """
        nu, excess, beta = self.positive(raw).unbind(-1)
        return nu, excess, beta * self.potential.scale.square()

    def variances(self, raw: Tensor) -> dict[str, Tensor]:
        """Return the epistemic, aleatoric and predictive variances per component (N,) in (eV/Å)²."""
        nu, excess, beta = self.parameters_of(raw)
        aleatoric = beta / excess
        epistemic = aleatoric / nu
        return {"epistemic": epistemic, "aleatoric": aleatoric, "predictive": epistemic + aleatoric}

    def negative_log_likelihood(self, raw: Tensor, residual: Tensor) -> Tensor:
        nu, excess, beta = (x.unsqueeze(-1) for x in self.parameters_of(raw))
        alpha, beta = 1 + excess, beta / KCAL_PER_MOL**2
        if self.likelihood == "norm":
            beta, square = 3 * beta, residual.square().sum(-1, keepdim=True)
            error = (square + TINY).sqrt()
        else:
            square, error = residual.square(), residual.abs()
        return (nig_nll(square, nu, alpha, beta) + self.regularisation * error * (2 * nu + alpha)).sum(-1)

    def predict(self, batch: Batch, *, create_graph: bool = False, stress: bool = False) -> Prediction:
        output = self.potential(batch, create_graph=create_graph, stress=stress)
        variance = self.variances(output.heads[HEAD])[self.uncertainty]
        return Prediction(
            energy=output.energy,
            forces=output.forces,
            energy_variance=None,
            force_variance=variance,
            score=variance,
            energy_score=mean_over_atoms(variance, batch),
            stress=output.stress,
        )
