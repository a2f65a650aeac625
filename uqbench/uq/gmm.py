"""Density of the latents: how unlike the training atoms is an atom, by a Gaussian mixture (Zhu et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from uqbench.config.annotations import Different
from uqbench.data.graph import Batch
from uqbench.data.structures import Structures
from uqbench.errors import CheckpointError, TrainingError
from uqbench.models.potential import Output, Potential
from uqbench.seeding import derive
from uqbench.uq.layer import FittedBuffers, Layer

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

# Numbers held at once while a density is evaluated: 24 MiB in float64, less than what glibc maps afresh at every use.
CHUNK = 3 * 2**20
# Latent features whitened at once: large enough for an efficient matrix product, and small enough to skip most of the
# zeros of a triangular matrix.
BLOCK = 32


class GMM(Layer):
    """A full-covariance Gaussian mixture of the latents of a potential's training atoms.

    The score is the negative log density of an atom's latents, in nats; it may be negative and is no variance: units
    come by calibration alone. The score of a structure is the mean over its atoms. Source: Zhu, Batzner, Musaelian,
    Kozinsky, J. Chem. Phys. 158, 164111 (2023); docs/methods.md.

    Args:
        potential: a single model.
        components: of the mixture; of a list, the number with the lowest Bayesian information criterion.
        per_element: one mixture for each element; an atom is then compared with those of its own.
        reg_covar: added to the diagonals of the covariances, in squared units of the latents.
        n_init, max_iter, tol: of scikit-learn's expectation maximisation.
    """

    family = "layer"
    score_scale = "log"

    def __init__(
        self,
        potential: Potential,
        *,
        components: PositiveInt | Different[PositiveInt],
        per_element: bool,
        reg_covar: NonNegativeFloat,
        n_init: PositiveInt,
        max_iter: PositiveInt,
        tol: NonNegativeFloat,
    ) -> None:
        super().__init__(potential)
        choices = [components] if isinstance(components, int) else list(components)
        self.choices, self.per_element = choices, per_element
        self.options = {"reg_covar": reg_covar, "n_init": n_init, "max_iter": max_iter, "tol": tol}
        groups = len(self.potential.references) if per_element else 1
        self.mixtures = Mixtures(groups, self.potential.backbone.features)

    def fit(self, training: Structures, *, batch_size: int, seed: int) -> None:
        """Fit the mixtures to the latents of the training atoms; raises TrainingError where that is impossible."""
        latents, species = (tensor.numpy() for tensor in self.training_latents(training, batch_size))
        group = species if self.per_element else np.zeros_like(species)
        self.mixtures.take_mixtures(
            [self.fit_mixture(latents[group == g], g, seed) for g in range(self.mixtures.groups)]
        )

    def fit_mixture(self, latents: np.ndarray, group: int, seed: int) -> GaussianMixture:
        """Return the mixture of one group's latents (n, F), with the number of components that the BIC prefers."""
        from sklearn.mixture import GaussianMixture

        if not np.isfinite(latents).all():
            raise TrainingError("the latents of the training atoms are not finite; the training has diverged")
        candidates = []
        for k in self.choices:
            state = derive(seed, "gmm", group, k) % 2**32
            try:
                candidates.append(GaussianMixture(k, random_state=state, **self.options).fit(latents))
            except ValueError as error:
                raise TrainingError(
                    f"no mixture of {k} components can be fitted to {len(latents)} atoms with {latents.shape[1]} "
                    f"latent features ({str(error).splitlines()[0]}); lower uq.components or raise uq.reg_covar"
                ) from error
        return candidates[0] if len(candidates) == 1 else min(candidates, key=lambda mixture: mixture.bic(latents))

    def score(self, output: Output, batch: Batch) -> Tensor:
        species = self.species(batch)
        return -self.mixtures(output.latents, species if self.per_element else torch.zeros_like(species))


class Mixtures(FittedBuffers):
    """Gaussian mixtures of latents, one for each group of atoms; float64 whatever the precision of the model.

    Buffers, with K the largest number of components of any group: log_weights (G, K), -inf where a group has fewer;
    means (G, K, F); precision_cholesky (G, K, F, F), P with P Pᵀ the inverse covariance. K is 0 before the fit, and
    what a checkpoint holds after loading it.

    A density takes one matrix product per BLOCK of features, for all components at once: y = [1, x] [-μᵀP; P] is
    standard normal within a component, and as P is upper triangular, no y_j depends on an x_i with i > j.
    """

    def __init__(self, groups: int, features: int) -> None:
        super().__init__()
        self.groups, self.features = groups, features
        for name, shape in self._shapes(0).items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.prepare()

    def _shapes(self, components: int) -> dict[str, Sequence[int]]:
        means = (self.groups, components, self.features)
        return {"log_weights": means[:2], "means": means, "precision_cholesky": (*means, self.features)}

    def take_mixtures(self, fitted: Sequence[GaussianMixture]) -> None:
        """Take over the parameters of one scikit-learn mixture per group."""
        arrays = {name: np.zeros(shape) for name, shape in self._shapes(max(m.n_components for m in fitted)).items()}
        arrays["log_weights"][:] = -np.inf
        arrays["precision_cholesky"][:] = np.eye(self.features)
        for group, mixture in enumerate(fitted):
            k = slice(mixture.n_components)
            arrays["log_weights"][group, k] = np.log(mixture.weights_)
            arrays["means"][group, k] = mixture.means_
            arrays["precision_cholesky"][group, k] = mixture.precisions_cholesky_
        self.take(**{name: torch.as_tensor(array) for name, array in arrays.items()})

    def prepare(self) -> None:
        cholesky = self.precision_cholesky
        log_determinants = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        # ln of weight times density at the mean, (G, K).
        self._peaks = self.log_weights + log_determinants - 0.5 * self.features * math.log(2 * math.pi)
        affine = torch.cat([-self.means.unsqueeze(2) @ cholesky, cholesky], dim=2)  # (G, K, 1 + F, F)
        starts = range(0, self.features, BLOCK)
        # For each block (G, 1 + rows, K * columns), without the rows that are zero.
        self._maps = [
            affine[:, :, : 1 + j + BLOCK, j : j + BLOCK].transpose(1, 2).flatten(2).contiguous() for j in starts
        ]

    def forward(self, latents: Tensor, group: Tensor) -> Tensor:
        """Return the log density (N,) of latents (N, F), each under the mixture of its group (N,), in float64."""
        k = self.means.shape[1]
        if k == 0:
            raise CheckpointError("no mixture has been fitted to this model's latents yet; let its training run finish")
        size = max(1, CHUNK // (k * min(BLOCK, self.features)))
        if self.groups == 1:
            return torch.cat([self._log_density(x, 0) for x in latents.split(size)])
        chunks = [(g, atoms) for g in range(self.groups) for atoms in (group == g).nonzero().flatten().split(size)]
        values = [self._log_density(latents[atoms], g) for g, atoms in chunks]
        return torch.cat(values)[torch.cat([atoms for _, atoms in chunks]).argsort()]

    def _log_density(self, x: Tensor, g: int) -> Tensor:
        x, peaks = nn.functional.pad(x.double(), (1, 0), value=1.0), self._peaks[g]
        squares = torch.zeros_like(peaks)
        for maps in self._maps:
            y = x[:, : maps.shape[1]] @ maps[g]  # (n, K * columns)
            squares = squares + SquaredNorm.apply(y.view(len(x), len(peaks), y.shape[1] // len(peaks)))
        return torch.logsumexp(peaks - 0.5 * squares, dim=1)


class SquaredNorm(torch.autograd.Function):
    """Σ_j y_j² along the last axis in one pass over y, where y.square().sum(-1) takes three; differentiable twice."""

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return torch.linalg.vector_norm(y, dim=-1).square()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 2 * gradient.unsqueeze(-1) * y
