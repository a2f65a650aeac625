"""PaiNN: polarizable atom interaction network (Schütt, Unke, Gastegger, ICML 2021, arXiv:2102.03150)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge
from pydantic import PositiveInt
from torch import Tensor, nn

from uqbench.config.annotations import Supplied
from uqbench.models import blocks
from uqbench.models.blocks import (
    MLP,
    Activation,
    Backbone,
    Cutoff,
    Embedding,
    FilterBasis,
    Geometry,
    Initialiser,
    Linear,
    LinearFilter,
    RadialBasis,
)
from uqbench.models.compiled import Wanted, painn_message, painn_mix, painn_norm


class PaiNN(Backbone):
    """Equivariant message passing with scalar features q (N, F) and vector features μ (3, N, F).

    Args:
        features: channels F.
        layers: interaction blocks.
        radial_functions: size of the radial basis.
        radial_basis: `bessel` or `gaussian`.
        cutoff: Å.
        activation: `silu` (the paper) or `shifted_softplus` (the study).
        n_species: number of elements.
        init: source of the initial parameters; sets the member axis.
    """

    repeated_by_compiled_code = True

    def __init__(
        self,
        *,
        features: PositiveInt,
        layers: PositiveInt,
        radial_functions: Annotated[int, Ge(2)],
        radial_basis: RadialBasis,
        cutoff: Cutoff,
        activation: Activation,
        n_species: Supplied[int],
        init: Initialiser,
    ) -> None:
        super().__init__()
        act = blocks.activation(activation)
        self.features, self.cutoff = features, cutoff
        # For the compiled network; see `weights`.
        self.description = {"kind": "painn", "layers": layers, "radial": radial_functions}
        self.description |= {"basis": radial_basis, "activation": activation}
        self.embedding = Embedding(n_species, features, init)
        self.basis = FilterBasis(radial_basis, radial_functions, cutoff)
        self.interactions = nn.ModuleList(
            [Interaction(features, radial_functions, act, init, first=k == 0) for k in range(layers)]
        )
        self.mixings = nn.ModuleList([Mixing(features, act, init, last=k == layers - 1) for k in range(layers)])

    def forward(self, geometry: Geometry) -> Tensor:
        """Return the latent features of each atom, ([members,] N, features)."""
        basis = self.basis(geometry.distances)
        q, mu = self.embedding(geometry.species), None
        for interaction, mixing in zip(self.interactions, self.mixings, strict=True):
            q, mu = interaction(q, mu, basis, geometry)
            q, mu = mixing(q, mu, geometry.wanted)
        return q

    def weights(self) -> list[Tensor]:
        """Return all weights in the order of the compiled network (`PainnWeights`)."""
        tensors = [self.embedding.weight]
        for interaction, mixing in zip(self.interactions, self.mixings, strict=True):
            tensors += [interaction.filters.weight, interaction.filters.bias, *interaction.context.weights()]
            tensors += [mixing.mix.weight, *mixing.context.weights()]
        return tensors


class Interaction(nn.Module):
    """Messages from the neighbours; μ is (..., 3, N, F), or None in the first block where it is zero."""

    repeated_by_compiled_code = True

    def __init__(self, features: int, radial_functions: int, act: Callable, init: Initialiser, *, first: bool) -> None:
        super().__init__()
        # The channels that act on μ have no effect while μ = 0.
        self.blocks = 2 if first else 3
        self.filters = LinearFilter(radial_functions, self.blocks, features, init)
        self.context = MLP([features, features, self.blocks * features], act, init)

    def forward(self, q: Tensor, mu: Tensor | None, basis: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        senders = self.context(q).unflatten(-1, (self.blocks, -1)).movedim(-2, -3)
        scalars, vectors = senders, None
        if mu is not None:
            scalars, weights = senders.split([2, 1], dim=-3)
            vectors = weights * mu
        arguments = geometry.directions, basis, self.filters(), scalars, vectors
        if q.dim() == 2:
            arguments = (None if argument is None else argument.unsqueeze(0) for argument in arguments)
        delta_q, delta_mu = painn_message(geometry.pairs, *arguments, wanted=geometry.wanted)
        if q.dim() == 2:
            delta_q, delta_mu = delta_q.squeeze(0), delta_mu.squeeze(0)
        return q + delta_q, delta_mu if mu is None else mu + delta_mu


class Mixing(nn.Module):
    """Exchange between the scalar and vector features of each atom; the last block leaves out the unused μ update."""

    repeated_by_compiled_code = True

    def __init__(self, features: int, act: Callable, init: Initialiser, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.mix = Linear(features, 2 * features, init, bias=False)
        self.context = MLP([2 * features, features, (2 if last else 3) * features], act, init)

    def forward(self, q: Tensor, mu: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor | None]:
        # Rows of (3·N, F): one matrix product for the channels of all three components.
        v, w = self.mix(mu.flatten(-3, -2)).unflatten(-2, (3, -1)).chunk(2, dim=-1)
        norm = painn_norm(v if q.dim() == 3 else v.unsqueeze(0)).view(q.shape)
        a, b, *d = self.context(torch.cat([q, norm], dim=-1)).split(q.shape[-1], dim=-1)
        arguments = b, v, w, d[0] if d else None
        if q.dim() == 2:
            arguments = (None if argument is None else argument.unsqueeze(0) for argument in arguments)
        delta_q, delta_mu = painn_mix(*arguments, wanted=wanted)
        q = q + a + delta_q.view(q.shape)
        return q, None if self.last else mu + delta_mu.view(mu.shape)
