"""What the backbones share: parameters with a member axis, linear layers, radial bases, the cutoff.

Features have atoms or pairs on axis -2 and channels on axis -1. With `members` set, every parameter and feature has a
leading member axis, so that one module computes a whole ensemble in batched matrix products.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn

from uqbench.data.graph import COINCIDENT, Batch
from uqbench.errors import DataError
from uqbench.models.compiled import Pairs, Wanted
from uqbench.models.compiled.activation import ACTIVATIONS
from uqbench.runs import memory
from uqbench.seeding import torch_generator

LARGE = 2**26  # bytes of weights that are looked at before they are drawn


class Initialiser:
    """Draws initial parameters, one named random stream per ensemble member.

    Member m of an ensemble draws the same numbers as a single model built with `first_member=m`.

    Args:
        seed: the run's seed.
        members: length of the leading member axis, or None for a single model without that axis.
        first_member: number of the first member's stream.
    """

    def __init__(self, seed: int, members: int | None, first_member: int = 0) -> None:
        self.members = members
        count = 1 if members is None else members
        self._generators = [torch_generator(seed, "init", first_member + m) for m in range(count)]

    def uniform(self, shape: tuple[int, ...], bound: float) -> nn.Parameter:
        """Return a parameter ([members,] *shape) drawn from U(-bound, bound); MemoryError where it does not fit."""
        self._require_memory(shape)
        return self._stack([(torch.rand(shape, generator=g) * 2 - 1) * bound for g in self._generators])

    def normal(self, shape: tuple[int, ...], std: float) -> nn.Parameter:
        """Return a parameter ([members,] *shape) drawn from N(0, std²); MemoryError where it does not fit."""
        self._require_memory(shape)
        return self._stack([torch.randn(shape, generator=g) * std for g in self._generators])

    def zeros(self, shape: tuple[int, ...]) -> nn.Parameter:
        """Return a parameter ([members,] *shape) of zeros."""
        return self._stack([torch.zeros(shape) for _ in self._generators])

    def seeds(self) -> list[int]:
        """Draw one integer per member from its stream, for libraries that seed generators of their own."""
        return [int(torch.randint(2**62, (), generator=g)) for g in self._generators]

    def _require_memory(self, shape: tuple[int, ...]) -> None:
        # Systems promise more memory than there is, and kill who uses it.
        size = math.prod(shape) * len(self._generators) * torch.get_default_dtype().itemsize
        available = memory.available() if size > LARGE else None
        if available is not None and 2 * size > available.bytes:  # the draws of the members, and what they become
            raise MemoryError(f"weights of {memory.readable(size)}, {memory.readable(available.bytes)} are available")

    def _stack(self, draws: list[Tensor]) -> nn.Parameter:
        return nn.Parameter(draws[0] if self.members is None else torch.stack(draws))


class Linear(nn.Module):
    """Affine map on the last axis, (..., N, n_in) -> (..., N, n_out), Glorot-uniform with zero bias."""

    repeated_by_compiled_code = True

    def __init__(self, n_in: int, n_out: int, init: Initialiser, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = init.uniform((n_in, n_out), math.sqrt(6 / (n_in + n_out)))
        self.bias = init.zeros((n_out,)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x @ self.weight
        if self.weight.dim() == 2:
            return F.linear(x, self.weight.mT, self.bias)
        return torch.baddbmm(self.bias.unsqueeze(-2), x, self.weight)


class MLP(nn.Module):
    """Linear layers with the activation between them, (..., N, widths[0]) -> (..., N, widths[-1])."""

    repeated_by_compiled_code = True

    def __init__(self, widths: list[int], activation: Callable[[Tensor], Tensor], init: Initialiser) -> None:
        super().__init__()
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList([Linear(n_in, n_out, init) for n_in, n_out in pairs])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[-1](self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """Return the last hidden layer after its activation, (..., N, widths[-2])."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return x

    def weights(self) -> list[Tensor]:
        """Return weight and bias of each layer."""
        return [tensor for layer in self.layers for tensor in (layer.weight, layer.bias)]


class Embedding(nn.Module):
    """One trainable vector per element, (N,) species index -> ([members,] N, features)."""

    repeated_by_compiled_code = True

    def __init__(self, n_species: int, features: int, init: Initialiser) -> None:
        super().__init__()
        self.weight = init.normal((n_species, features), 1.0)

    def forward(self, species: Tensor) -> Tensor:
        return self.weight.index_select(-2, species)


# Å: below it no two atoms are neighbours, above it nothing fits into memory.
Cutoff = Annotated[float, Interval(ge=0.1, le=100)]
Activation = Literal[tuple(ACTIVATIONS)]


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation of that name."""
    return ACTIVATIONS[name]


def cosine_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """Return (1 + cos(π r / r_c)) / 2 inside the cutoff and 0 outside."""
    return 0.5 * (torch.cos(distance * (math.pi / cutoff)) + 1.0) * (distance < cutoff)


class BesselBasis(nn.Module):
    """sin(n π r / r_c) / r for n = 1..size, (..., P) -> (..., P, size).

    Source: Gasteiger, Groß, Günnemann, ICLR 2020 (arXiv:2003.03123), eq. 7, without its constant prefactor, as in
    Schütt, Unke, Gastegger 2021.
    """

    repeated_by_compiled_code = True

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.size, self.cutoff = size, cutoff

    def forward(self, distance: Tensor) -> Tensor:
        # Made here, not kept as a buffer: a buffer would carry single precision into a double-precision model.
        frequencies = torch.arange(1, self.size + 1, dtype=distance.dtype, device=distance.device)
        frequencies = frequencies * (math.pi / self.cutoff)
        return torch.sin(distance.unsqueeze(-1) * frequencies) / distance.unsqueeze(-1)


class GaussianBasis(nn.Module):
    """exp(-(r - r_k)² / (2 Δ²)) with `size` centres r_k spaced by Δ from 0 to the cutoff, (..., P) -> (..., P, size).

    Source: Schütt et al., J. Chem. Phys. 148, 241722 (2018).
    """

    repeated_by_compiled_code = True

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.size, self.cutoff = size, cutoff
        self.exponent = -0.5 * ((size - 1) / cutoff) ** 2

    def forward(self, distance: Tensor) -> Tensor:
        centres = torch.linspace(0, self.cutoff, self.size, dtype=distance.dtype, device=distance.device)
        return torch.exp(self.exponent * (distance.unsqueeze(-1) - centres).square())


RADIAL_BASES: dict[str, type[nn.Module]] = {"bessel": BesselBasis, "gaussian": GaussianBasis}
RadialBasis = Literal[tuple(RADIAL_BASES)]


def radial_basis(name: str, size: int, cutoff: float) -> nn.Module:
    """Return the radial basis of that name, of two functions or more."""
    return RADIAL_BASES[name](size, cutoff)


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """Geometry of a batch's pairs of neighbours, with the leading member axis where the model has one.

    Attributes:
        distances: ([M,] P) Å.
        directions: ([M,] P, 3) unit vectors from the first to the second atom.
        species: (N,) index of each atom's element in the model's list.
        pairs: the atoms of each pair, for all members.
        wanted: what the running backward pass differentiates by.
    """

    distances: Tensor
    directions: Tensor
    species: Tensor
    pairs: Pairs
    wanted: Wanted

    @classmethod
    def of(cls, batch: Batch, vectors: Tensor, species: Tensor, members: int) -> Geometry:
        """Return the geometry of pair vectors ([M,] P, 3), Å; raises DataError for coincident atoms."""
        distances = torch.linalg.vector_norm(vectors, dim=-1)
        if len(batch.first):
            require_apart(float(distances.detach().min()))
        pairs = Pairs(batch.first, batch.second, len(batch.numbers), members)
        return cls(distances, vectors / distances.unsqueeze(-1), species, pairs, Wanted())


def require_apart(closest: float) -> None:
    """Raise DataError if this, the shortest distance between two atoms in Å, is that of coincident ones."""
    # The direction between coincident atoms is 0/0: one pair would turn every number of its frame into NaN.
    if closest < COINCIDENT:
        raise DataError(f"two atoms of a frame are closer than {COINCIDENT:g} Å: no force is defined there")


class Backbone(nn.Module, abc.ABC):
    """A network from geometries to latent features of atoms, one for each conf/backbone/*.yaml.

    Attributes:
        features: F.
        cutoff: Å.
    """

    features: int
    cutoff: float

    @abc.abstractmethod
    def forward(self, geometry: Geometry) -> Tensor:
        """Return the latent features of each atom, ([members,] N, features)."""


class FilterBasis(nn.Module):
    """Radial basis times cutoff with a last column for the bias, (..., P) -> (..., P, size + 1).

    A linear filter network f(r) = (W·basis(r) + b)·f_c(r) is then one matrix product with the stacked [W; b].
    """

    repeated_by_compiled_code = True

    def __init__(self, name: str, size: int, cutoff: float) -> None:
        super().__init__()
        self.basis = radial_basis(name, size, cutoff)
        self.cutoff = cutoff

    def forward(self, distance: Tensor) -> Tensor:
        envelope = cosine_cutoff(distance, self.cutoff).unsqueeze(-1)
        return torch.cat([self.basis(distance) * envelope, envelope], dim=-1)


class LinearFilter(nn.Module):
    """Weights of filters linear in the radial basis, one block of `features` channels for each kind of message.

    Returns ([members,] blocks, size + 1, features), which times FilterBasis (..., P, size + 1) gives the filters.
    """

    repeated_by_compiled_code = True

    def __init__(self, size: int, blocks: int, features: int, init: Initialiser) -> None:
        super().__init__()
        n_out = blocks * features
        self.weight = init.uniform((size, n_out), math.sqrt(6 / (size + n_out)))
        self.bias = init.zeros((n_out,))
        self.blocks = blocks

    def forward(self) -> Tensor:
        stacked = torch.cat([self.weight, self.bias.unsqueeze(-2)], dim=-2)
        return stacked.unflatten(-1, (self.blocks, -1)).movedim(-2, -3)
