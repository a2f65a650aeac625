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


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What the last layer of the energy acts on; a leading member axis M where the potential has one.

    With w = `Potential.readout` ([M,] p): energy = constant + summed · w, and forces = `feature_gradients` w.

    Attributes:
        latents: ξ ([M,] N, F).
        hidden: h ([M,] N, p), the energy head's last hidden layer after its activation; no unit.
        summed: f = scale · Σ_i h_i over the atoms of each structure, ([M,] S, p) eV, float64.
        constant: Σ_i [ reference(Z_i) + scale · bias of the last layer ], ([M,] S) eV, float64.
    """

    latents: Tensor
    hidden: Tensor
    summed: Tensor
    constant: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class _Trunk:
    positions: Tensor
    geometry: Geometry
    latents: Tensor
    hidden: Tensor


class Potential(nn.Module):
    """Energies, forces and stresses of a batch from a backbone and its heads.

    E = Σ_i [ reference(Z_i) + scale · head(ξ_i) ] and F = -∂E/∂x. A strain ε changes every pair vector r by ε r and
    nothing else: the stress is ∂E/∂ε / V = Σ_pairs (∂E/∂r) rᵀ / V.

    The energy's head ends in a linear layer: `features`, `feature_gradients` and `linear_heads` give what it acts on,
    and energies and forces with other weights in its place. A member axis, where there is one, is on all of them.

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

    @property
    def readout(self) -> Tensor:
        """Weights w of the energy's last layer, ([M,] p), no unit."""
        return self.heads["energy"].layers[-1].weight.squeeze(-1)

    def features(self, batch: Batch, *, latents: Tensor | None = None, create_graph: bool = False) -> Features:
        """Return what the energy's last layer acts on.

        Args:
            batch: the structures.
            latents: of this batch from `forward`, ([M,] N, F), which saves the pass through the backbone.
            create_graph: as in `forward`; given latents bring the graph that they have.
        """
        with torch.set_grad_enabled(create_graph):
            if latents is None:
                latents = self._trunk(batch, create_graph).latents
            return self._features(batch, latents, self.heads["energy"].hidden(latents))

    def feature_gradients(self, batch: Batch, *, create_graph: bool = False) -> Tensor:
        """Return G_i = -∂f/∂x_i, with f of the atom's own structure, ([M,] N, 3, p) eV/Å.

        Σ_i G_i = 0 over a structure. It takes one pass forward and p backward; `create_graph` is as in `forward`.
        """
        with torch.enable_grad():
            trunk = self._trunk(batch, create_graph)
            forces = self._forces(trunk, _unit(self.readout), create_graph).movedim(0, -1)
        return forces if create_graph else forces.detach()

    def linear_heads(
        self, batch: Batch, weights: Tensor, biases: Tensor | None = None, *, create_graph: bool = False
    ) -> Output:
        """Evaluate K energies, each with a last layer of its own on the common features, and the forces of each.

        It takes one pass forward and min(K, p) backward, for each head or for each feature.

        Args:
            batch: the structures.
            weights: (K, [M,] p) in place of `readout`, no unit.
            biases: (K[, M]) of the last layers, no unit; None for that of the model in all of them.
            create_graph: as in `forward`; weights and biases may require a gradient too.

        Returns:
            energy (K, [M,] S) and forces (K, [M,] N, 3); latents and further heads as in `forward`, without the axis K.
        """
        with torch.enable_grad():
            trunk = self._trunk(batch, create_graph)
            features = self._features(batch, trunk.latents, trunk.hidden, biases)
            energy = features.constant + (features.summed @ weights.double().unsqueeze(-1)).squeeze(-1)
            weights = weights.to(trunk.hidden.dtype)
            if len(weights) <= weights.shape[-1]:
                forces = self._forces(trunk, weights, create_graph)
            else:
                gradients = self._forces(trunk, _unit(self.readout), create_graph)
                forces = torch.einsum("p...ax,k...p->k...ax", gradients, weights)
            heads = {name: head(trunk.latents) for name, head in self.heads.items() if name != "energy"}
        output = Output(energy, forces, trunk.latents, heads)
        return output if create_graph else output.detach()

    def _trunk(self, batch: Batch, create_graph: bool) -> _Trunk:
        positions = self._positions(batch, create_graph)
        geometry = self._geometry(batch, pair_vectors(batch, positions))
        latents = self.backbone(geometry)
        # Passes by the positions say so themselves; others come from a loss, as in `forward`.
        geometry.wanted.positions = batch.positions.requires_grad
        return _Trunk(positions, geometry, latents, self.heads["energy"].hidden(latents))

    def _features(self, batch: Batch, latents: Tensor, hidden: Tensor, biases: Tensor | None = None) -> Features:
        biases = self.heads["energy"].layers[-1].bias.squeeze(-1) if biases is None else biases
        scale, references = self.scale.double(), self._per_structure(batch, self._references(batch))
        summed = hidden.new_zeros(*hidden.shape[:-2], len(batch), hidden.shape[-1], dtype=torch.float64)
        summed = summed.index_add(-2, batch.system, hidden.double() * scale)
        constant = references + scale * biases.double().unsqueeze(-1) * batch.n_atoms
        return Features(latents, hidden, summed, constant)

    def _forces(self, trunk: _Trunk, weights: Tensor, create_graph: bool) -> Tensor:
        """Return -∂(scale Σ_i w_k · h_i)/∂x for each of the weights (K, [M,] p): (K, [M,] N, 3)."""
        # One pass after the other: custom functions know no batched cotangents.
        forces = []
        for cotangent in (-self.scale * weights).unsqueeze(-2).unbind(0):
            with trunk.geometry.wanted.only_positions():
                forces += torch.autograd.grad(
                    trunk.hidden,
                    trunk.positions,
                    cotangent.expand_as(trunk.hidden),
                    retain_graph=True,
                    create_graph=create_graph,
                )
        return torch.stack(forces)

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


def _unit(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def per_volume(strain_gradient: Tensor, batch: Batch) -> Tensor:
    """Return the stress ([M,] S, 3, 3), eV/Å³, from the energy's derivative by the strain, of that shape, eV."""
    return strain_gradient / torch.linalg.det(batch.cells).abs()[:, None, None]


def _stress(batch: Batch, vectors: Tensor, gradient: Tensor) -> Tensor:
    """Return the stress ([M,] S, 3, 3) from pair vectors and the energy's gradient by them, both ([M,] P, 3)."""
    strain_gradient = vectors.new_zeros(*vectors.shape[:-2], len(batch), 3, 3)
    outer = gradient.unsqueeze(-1) * vectors.unsqueeze(-2)
    return per_volume(strain_gradient.index_add(-3, batch.system[batch.first], outer), batch)
