"""A potential: heads on a backbone's latents give atomic energies, and their gradient the forces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from uqbench.data.graph import Batch
from uqbench.errors import DataError
from uqbench.models.blocks import ACTIVATIONS, MLP, Geometry, Initialiser
from uqbench.models.normalisation import Normalisation


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
    """What a potential computes for a batch; a leading member axis M where the potential has one.

    Attributes:
        energy: ([M,] S) eV, float64.
        forces: ([M,] N, 3) eV/Å.
        latents: ([M,] N, F).
        heads: further head outputs by name, ([M,] N, channels), raw.
        stress: ([M,] S, 3, 3) eV/Å³, or None where it was not asked for; not finite for a cell without a volume.
    """

    energy: Tensor
    forces: Tensor
    latents: Tensor
    heads: dict[str, Tensor]
    stress: Tensor | None = None

    def detach(self) -> Output:
        """Return the same values outside of autograd's graph."""
        heads = {name: value.detach() for name, value in self.heads.items()}
        stress = None if self.stress is None else self.stress.detach()
        return Output(self.energy.detach(), self.forces.detach(), self.latents.detach(), heads, stress)


class Potential(nn.Module):
    """Energies, forces and stresses of a batch from a backbone and its heads.

    E = Σ_i [ reference(Z_i) + scale · head(ξ_i) ] and F = -∂E/∂x. A strain ε changes every pair vector r by ε r and
    nothing else: the stress is ∂E/∂ε / V = Σ_pairs (∂E/∂r) rᵀ / V.

    Args:
        backbone: module that maps a `Geometry` to latents; has `features` and `cutoff`.
        heads: output channels of each further head by name (uncertainty parameters).
        normalisation: constants of the training set.
        activation: of the heads' hidden layer.
        init: source of the initial parameters; sets the member axis.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        heads: Mapping[str, int],
        normalisation: Normalisation,
        activation: str,
        init: Initialiser,
    ) -> None:
        super().__init__()
        self.backbone, self.members, self.activation = backbone, init.members, activation
        width = backbone.features
        self.heads = nn.ModuleDict(
            {
                name: MLP([width, max(width // 2, 1), channels], ACTIVATIONS[activation], init)
                for name, channels in {"energy": 1, **heads}.items()
            }
        )
        species = torch.full((len(chemical_symbols),), -1)
        species[list(normalisation.elements)] = torch.arange(len(normalisation.elements))
        self.register_buffer("species_of_element", species)
        self.register_buffer("references", torch.tensor(normalisation.references, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(normalisation.scale))

    def forward(self, batch: Batch, *, create_graph: bool = False, stress: bool = False) -> Output:
        """Evaluate a batch.

        With `create_graph` the forces stay differentiable: by the parameters (training) and, where
        `batch.positions` requires a gradient, by the positions. Raises DataError for an unknown element and for
        coincident atoms.
        """
        with torch.enable_grad():
            positions = self._positions(batch, create_graph)
            vectors = pair_vectors(batch, positions)
            geometry = self._geometry(batch, vectors)
            latents = self.backbone(geometry)
            atomic = self.heads["energy"](latents).squeeze(-1) * self.scale
            # Every atom's energy depends on its own frame and member only: the gradient of the sum holds all forces.
            by = (positions, vectors) if stress else (positions,)
            with geometry.wanted.only_positions():
                gradient, *by_vectors = torch.autograd.grad(atomic.sum(), by, create_graph=create_graph)
            # Later passes come from a loss on the output; only the caller's own positions are within their reach.
            geometry.wanted.positions = batch.positions.requires_grad
            heads = {name: head(latents) for name, head in self.heads.items() if name != "energy"}
            stresses = _stress(batch, vectors, by_vectors[0]) if stress else None
            energy = self._per_structure(batch, atomic.double() + self._references(batch))
        output = Output(energy, -gradient, latents, heads, stresses)
        return output if create_graph else output.detach()

    def _positions(self, batch: Batch, create_graph: bool) -> Tensor:
        """Return positions ([M,] N, 3) that require a gradient: the caller's own if theirs is wanted, else a copy."""
        positions = batch.positions
        if self.members is not None:
            positions = positions.expand(self.members, *positions.shape)
        if create_graph and positions.requires_grad:
            return positions
        return positions.detach().clone().requires_grad_(True)

    def _geometry(self, batch: Batch, vectors: Tensor) -> Geometry:
        return Geometry.of(batch, vectors, self._species(batch), self.members or 1)

    def _species(self, batch: Batch) -> Tensor:
        species = self.species_of_element[batch.numbers]
        if species.min() < 0:
            unknown = sorted({chemical_symbols[z] for z in batch.numbers[species < 0].tolist()})
            known = [chemical_symbols[z] for z in self.species_of_element.ge(0).nonzero().flatten().tolist()]
            raise DataError(f"the potential was not trained on {', '.join(unknown)}; it knows {', '.join(known)}")
        return species

    def _references(self, batch: Batch) -> Tensor:
        # In float64: the references are thousands of eV, the accuracy wanted is below 1 meV.
        return self.references[self.species_of_element[batch.numbers]]

    def _per_structure(self, batch: Batch, atomic: Tensor) -> Tensor:
        total = atomic.new_zeros(*atomic.shape[:-1], len(batch))
        return total.index_add(-1, batch.system, atomic)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Potential:
        # The references follow the model to another device, but stay in float64 when it becomes float32.
        exact = self.references
        super()._apply(fn, recurse)
        self.references = exact.to(self.references.device)
        return self


def pair_vectors(batch: Batch, positions: Tensor) -> Tensor:
    """Return the vectors (..., P, 3) from the first to the second atom of each pair at positions (..., N, 3), Å."""
    return positions.index_select(-2, batch.second) - positions.index_select(-2, batch.first) + batch.shifts


def per_volume(strain_gradient: Tensor, batch: Batch) -> Tensor:
    """Return the stress ([M,] S, 3, 3), eV/Å³, from the energy's derivative by the strain, of that shape, eV."""
    return strain_gradient / torch.linalg.det(batch.cells).abs()[:, None, None]


def _stress(batch: Batch, vectors: Tensor, gradient: Tensor) -> Tensor:
    """Return the stress ([M,] S, 3, 3) from pair vectors and the energy's gradient by them, both ([M,] P, 3)."""
    strain_gradient = vectors.new_zeros(*vectors.shape[:-2], len(batch), 3, 3)
    outer = gradient.unsqueeze(-1) * vectors.unsqueeze(-2)
    return per_volume(strain_gradient.index_add(-3, batch.system[batch.first], outer), batch)
