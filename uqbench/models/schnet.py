"""SchNet: continuous-filter convolutions (Schütt et al., J. Chem. Phys. 148, 241722 (2018))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

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
    Geometry,
    Initialiser,
    Linear,
    RadialBasis,
)
from uqbench.models.compiled import schnet_message


class SchNet(Backbone):
    """Invariant message passing with scalar features (N, F).

    Args:
        features: channels F, also of the filters.
        layers: interaction blocks.
        radial_functions: size of the radial basis.
        radial_basis: `gaussian` (the paper) or `bessel`.
        cutoff: Å.
        activation: `shifted_softplus` (the paper) or `silu`.
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
        self.description = {"kind": "schnet", "layers": layers, "radial": radial_functions}
        self.description |= {"basis": radial_basis, "activation": activation}
        self.embedding = Embedding(n_species, features, init)
        self.basis = blocks.radial_basis(radial_basis, radial_functions, cutoff)
        self.interactions = nn.ModuleList(
            [Interaction(features, radial_functions, act, init, first=k == 0) for k in range(layers)]
        )

    def forward(self, geometry: Geometry) -> Tensor:
        """Return the latent features of each atom, ([members,] N, features)."""
        basis = self.basis(geometry.distances)
        envelope = blocks.cosine_cutoff(geometry.distances, self.cutoff).unsqueeze(-1)
        x = self.embedding(geometry.species)
        for interaction in self.interactions:
            x = x + interaction(x, basis, envelope, geometry)
        return x

    def weights(self) -> list[Tensor]:
        """Return all weights in the order of the compiled network (`SchnetWeights`)."""
        tensors = [self.embedding.weight]
        for interaction in self.interactions:
            tensors += [*interaction.filters.weights(), interaction.to_senders.weight, *interaction.update.weights()]
        return tensors


class Interaction(nn.Module):
    """One continuous-filter convolution with its atom-wise layers."""

    repeated_by_compiled_code = True

    def __init__(self, features: int, radial_functions: int, act: Callable, init: Initialiser, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.filters = MLP([radial_functions, features, features], act, init)
        self.to_senders = Linear(features, features, init, bias=False)
        self.update = MLP([features, features, features], act, init)

    def forward(self, x: Tensor, basis: Tensor, envelope: Tensor, geometry: Geometry) -> Tensor:
        arguments = self.filters(basis) * envelope, self.to_senders(x)
        if x.dim() == 2:
            arguments = (argument.unsqueeze(0) for argument in arguments)
        message = schnet_message(geometry.pairs, *arguments, wanted=geometry.wanted, first=self.first)
        return self.update(message.view(x.shape))
