"""What the methods share that train a distribution's parameters, predicted by a head, by maximum likelihood."""

from __future__ import annotations

import abc
import math
from typing import Literal

import torch
from torch import Tensor

from uqbench.data.graph import Batch
from uqbench.uq.base import BuildPotential, Losses, Method, PointLoss, absolute_errors, residuals

Likelihood = Literal["vector", "norm"]
# Above it the Stirling series of the ratio of gamma functions is exact to float64, below it lgamma has digits to spare.
STIRLING = 30.0
HEAD = "distribution"


class LikelihoodMethod(Method):
    """One potential with a head that predicts the distribution of its force errors, atom by atom.

    The force loss is a negative log likelihood, the energy loss stays the absolute error (docs/methods.md). During
    the warm-up, the first part of the training, the potential follows the point loss alone; the head learns along by
    its likelihood but hands no gradient on (the split of Stirn et al. 2023, arXiv:2212.09184). So the mean comes first
    and the head is sensible when the likelihood takes over. In evaluation mode the loss is always the likelihood.

    Args:
        build_potential: makes the potential.
        channels: parameters of the distribution.
        likelihood: `vector` for the three components of the force, `norm` for the length of the error.
        warmup: fraction of the epochs.
        floor: least value of what `positive` returns.
    """

    def __init__(
        self, build_potential: BuildPotential, *, channels: int, likelihood: Likelihood, warmup: float, floor: float
    ) -> None:
        super().__init__()
        self.potential = build_potential(None, {HEAD: channels})
        self.likelihood, self.warmup, self.floor = likelihood, warmup, floor
        self.warming = False

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.warming = epoch < self.warmup * epochs

    def losses(self, batch: Batch, point_loss: PointLoss) -> Losses:
        output = self.potential(batch, create_graph=torch.is_grad_enabled())
        energy, forces = residuals(output, batch)
        if self.training and self.warming:
            raw = self.potential.heads[HEAD](output.latents.detach())
            force_loss = point_loss(forces) + self.negative_log_likelihood(raw, forces.detach())
        else:
            force_loss = self.negative_log_likelihood(output.heads[HEAD], forces)
        return Losses(energy.abs(), force_loss, *absolute_errors(output.energy, output.forces, batch))

    @abc.abstractmethod
    def negative_log_likelihood(self, raw: Tensor, residual: Tensor) -> Tensor:
        """Return the loss of atoms (N,) from the head's output (N, channels) and residuals (N, 3) in kcal/mol/Å."""

    def positive(self, raw: Tensor) -> Tensor:
        """Return softplus(raw) + floor, dimensionless."""
        return torch.nn.functional.softplus(raw) + self.floor


def gaussian_nll(residual: Tensor, variance: Tensor, likelihood: Likelihood) -> Tensor:
    """Return the Gaussian negative log likelihood of force residuals (N, 3), (N,).

    variance (N,) per component, in squared units of the residual. `vector`: an isotropic Gaussian in three
    dimensions; `norm`: a Gaussian of the length of the residual with variance 3 v. Source: docs/methods.md.
    """
    square = residual.square().sum(-1)
    if likelihood == "norm":
        variance, dimensions = 3 * variance, 1
    else:
        dimensions = 3
    return 0.5 * (dimensions * (math.log(2 * math.pi) + variance.log()) + square / variance)


def nig_nll(square: Tensor, nu: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return the negative log of the marginal of a normal-inverse-gamma distribution, broadcast over all arguments.

    square: squared error of one variable; nu > 0, alpha > 1, beta > 0 in units of square. The marginal is Student's t
    with 2 alpha degrees of freedom and squared scale beta (1 + nu) / (nu alpha). Written without the differences of
    large numbers of the published form, so that alpha and nu may grow without bound.
    Source: Amini et al., NeurIPS 2020 (arXiv:1910.02600).
    """
    inverse = 1 / nu
    z = square / (2 * beta * (1 + inverse))  # nu e² / Omega
    log_scale = 0.5 * ((2 * math.pi * beta).log() + inverse.log1p())  # ½ ln(pi / nu) + ½ ln Omega
    return log_scale + (alpha + 0.5) * z.log1p() - log_gamma_half_step(alpha)


def log_gamma_half_step(x: Tensor) -> Tensor:
    """Return ln Γ(x + ½) - ln Γ(x) for x >= 1, with full relative precision also where both are huge."""
    small, large = x.clamp(max=STIRLING), x.clamp(min=STIRLING)
    inverse = 1 / large
    s = inverse.square()
    series = 0.5 * large.log() - inverse * (1 / 8 - s * (1 / 192 - s * (1 / 640 - s * 17 / 14336)))
    return torch.where(x > STIRLING, series, torch.lgamma(small + 0.5) - torch.lgamma(small))
