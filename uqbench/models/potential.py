"""A potential: heads on a backbone's latents give atomic energies, and their gradient the forces."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Mapping
from itertools import chain

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from uqbench.data.graph import COINCIDENT, Batch
from uqbench.data.structures import Structures
from uqbench.errors import DataError
from uqbench.models.blocks import ACTIVATIONS, MLP, Geometry, Initialiser
from uqbench.models.compiled import Pairs, Wanted
from uqbench.models.compiled.choice import compiled
from uqbench.models.compiled.computation import Computation
from uqbench.models.compiled.connected import connected
from uqbench.models.compiled.engine import Engine, Evaluation, Sizes
from uqbench.models.compiled.trust import Trust, difference, gradient_difference
from uqbench.models.compiled.watch import Watch

# Compiled networks, and gradients of such, that were compared with autograd in this process.
_evaluations, _gradients = Trust("results"), Trust("gradients")
# Attributes of a potential that are made anew whenever they are needed.
CACHES = frozenset({"_compiled", "_computation"})


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


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Constants fitted on training labels that bring the network's output to unit scale.

    Attributes:
        elements: atomic numbers that the potential knows, ascending.
        references: energy of one atom of each element, eV.
        scale: eV; root mean square of the force components (times 1 Å).
    """

    elements: tuple[int, ...]
    references: tuple[float, ...]
    scale: float

    @classmethod
    def fit(cls, structures: Structures) -> Normalisation:
        """Fit reference energies by least squares on the composition, and the scale from the forces.

        The minimum-norm solution is taken where compositions do not determine the references (a single molecule).
        Raises DataError for frames without labels, or without forces.
        """
        structures.require_labels()
        elements = structures.elements
        species = np.searchsorted(elements, structures.numbers)
        frame = np.repeat(np.arange(len(structures)), structures.n_atoms)
        composition = np.zeros((len(structures), len(elements)))
        np.add.at(composition, (frame, species), 1)
        references = np.linalg.lstsq(composition, structures.energies, rcond=None)[0]
        scale = float(np.sqrt(np.mean(structures.forces**2)))
        if not scale > 0:
            raise DataError(f"{structures.origin}: all training forces are zero, there is nothing to learn")
        return cls(tuple(elements), tuple(references.tolist()), scale)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Normalisation:
        """Take the constants from a potential's state dict; raises KeyError when it is not one."""
        elements = state["species_of_element"].ge(0).nonzero().flatten()
        order = state["species_of_element"][elements].argsort()
        return cls(tuple(elements[order].tolist()), tuple(state["references"].tolist()), float(state["scale"]))


class Potential(nn.Module):
    """Energies, forces and stresses of a batch from a backbone and its heads.

    E = Σ_i [ reference(Z_i) + scale · head(ξ_i) ] and F = -∂E/∂x, differentiated here and nowhere else. A strain ε
    changes every pair vector r by ε r and nothing else: the stress is ∂E/∂ε / V = Σ_pairs (∂E/∂r) rᵀ / V.

    Args:
        backbone: module that maps a `Geometry` to latents; has `features` and `cutoff`.
        heads: output channels of each further head by name (uncertainty parameters).
        normalisation: constants of the training set.
        activation: of the heads' hidden layer.
        init: source of the initial parameters; sets the member axis.
    """

    repeated_by_compiled_code = True

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
        self._compiled: tuple[Watch, Engine] | None = None
        self._computation: Computation | None = None
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Potential:
        self._forget()
        # The references follow the model to another device, but stay in float64 when it becomes float32.
        exact = self.references
        super()._apply(fn, recurse)
        self.references = exact.to(self.references.device)
        return self

    def forward(self, batch: Batch, *, create_graph: bool = False, stress: bool = False) -> Output:
        """Evaluate a batch.

        With `create_graph` the forces stay differentiable: by the parameters (training) and, where
        `batch.positions` requires a gradient, by the positions. Raises DataError for an unknown element and for
        coincident atoms.
        """
        engine = None if create_graph and stress else self._engine(batch, gradient=create_graph)
        found = None if engine is None else engine(batch, virials=stress)
        if found is None:
            return self._differentiated(batch, create_graph, stress)
        _check_distance(found.closest)
        output = self._connected(engine, found, batch) if create_graph else self._output(found, batch)
        if (_gradients if output.forces.requires_grad else _evaluations).right(engine):
            return output
        return self._checked(engine, batch, output, self._differentiated(batch, create_graph, stress))

    def _differentiated(self, batch: Batch, create_graph: bool, stress: bool) -> Output:
        with torch.enable_grad():
            positions = batch.positions
            if self.members is not None:
                positions = positions.expand(self.members, *positions.shape)
            if not (create_graph and positions.requires_grad):
                positions = positions.detach().clone().requires_grad_(True)
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
        output = Output(self._energy(batch, atomic), -gradient, latents, heads, stresses)
        return output if create_graph else _detached(output)

    def _engine(self, batch: Batch, *, gradient: bool = False) -> Engine | None:
        """Return the network with its present weights as compiled code; None where that is not to be had."""
        library = compiled(batch.positions)
        if self._computation is None:
            self._computation = Computation(self, ignored=CACHES)
        if library is None or not self._computation.known:
            return None
        # Fused optimisers and writes to `.data` make no new version: a model in training is laid out anew every time.
        if self._compiled is None or self.training or not self._compiled[0].unchanged():
            if self.scale.dtype != batch.positions.dtype:
                return None
            self._compiled = Watch(self), self._compile(library)
        engine = self._compiled[1]
        if engine.dtype != batch.positions.dtype or _evaluations.wrong(engine):
            return None
        return None if gradient and (not engine.differentiable or _gradients.wrong(engine)) else engine

    def _compile(self, library: ctypes.CDLL) -> Engine:
        backbone, (energy, *others) = self.backbone, self.heads.values()
        sizes = Sizes(
            channels=backbone.features,
            hidden=energy.layers[0].weight.shape[-1],
            heads=tuple(head.layers[-1].weight.shape[-1] for head in others),
            cutoff=backbone.cutoff,
            head_activation=self.activation,
            computation=self._computation.description,
            **backbone.description,
        )
        weights = [*backbone.weights(), *(weight for head in self.heads.values() for weight in head.weights())]
        constants = {"species_of_element": self.species_of_element, "references": self.references}
        return Engine(library, sizes, self.members, weights, scale=float(self.scale), **constants)

    def _output(self, found: Evaluation, batch: Batch) -> Output:
        stresses = None if found.virials is None else _per_volume(found.virials, batch)
        names = [name for name in self.heads if name != "energy"] if found.heads else ()
        heads = dict(zip(names, found.heads, strict=True))
        if self.members is not None:
            return Output(found.energy, found.forces, found.latents, heads, stresses)
        heads = {name: value[0] for name, value in heads.items()}
        return Output(
            found.energy[0], found.forces[0], found.latents[0], heads, None if stresses is None else stresses[0]
        )

    def _connected(self, engine: Engine, found: Evaluation, batch: Batch) -> Output:
        """Return what the compiled network has found as a function of positions and parameters."""

        def again(positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            output = self._differentiated(batch.with_positions(positions), True, False)
            results = output.energy, output.forces, output.latents
            return results if self.members is not None else tuple(result.unsqueeze(0) for result in results)

        weights = [*self.backbone.weights(), *self.heads["energy"].weights()]
        results = connected(engine, found, batch, weights, again)
        energy, forces, latents = results if self.members is not None else (result[0] for result in results)
        heads = {name: head(latents) for name, head in self.heads.items() if name != "energy"}
        return Output(energy, forces, latents, heads)

    def _checked(self, engine: Engine, batch: Batch, found: Output, expected: Output) -> Output:
        """Return the right one of the two, and trust or distrust networks like this one from now on."""
        forces = float(expected.forces.detach().abs().max()) + float(self.scale)
        others = [expected.latents, *expected.heads.values()]
        right = _evaluations.judge(
            engine,
            difference(
                [found.forces, found.energy, found.latents, *(found.heads[name] for name in expected.heads)],
                [expected.forces, expected.energy, *others],
                [forces, forces * len(batch.numbers), *(1 + float(other.detach().abs().max()) for other in others)],
            ),
        )
        if right and found.forces.requires_grad:
            results = [(output.energy, output.forces, output.latents) for output in (found, expected)]
            weights = self.backbone.parameters(), self.heads["energy"].parameters()
            inputs = [x for x in (batch.positions, *chain(*weights)) if x.requires_grad]
            right = _gradients.judge(engine, gradient_difference(*results, inputs))
        return found if right else expected  # also this first time, or else the bits would depend on what ran before

    def train(self, mode: bool = True) -> Potential:
        """Set the mode of training; what was compiled is forgotten, because fused optimisers do not count versions."""
        self._forget()
        return super().train(mode)

    def _forget(self) -> None:
        self._compiled = self._computation = None

    def __getstate__(self) -> dict:
        # Pointers into memory mean nothing in a copy.
        return self.__dict__ | dict.fromkeys(CACHES)

    def _energy(self, batch: Batch, atomic: Tensor) -> Tensor:
        reference = self.references[self.species_of_element[batch.numbers]]
        # Summed in float64: the references are thousands of eV, the accuracy wanted is below 1 meV.
        total = atomic.double() + reference
        energy = total.new_zeros(*total.shape[:-1], len(batch))
        return energy.index_add(-1, batch.system, total)

    def _species(self, batch: Batch) -> Tensor:
        species = self.species_of_element[batch.numbers]
        if species.min() < 0:
            unknown = sorted({chemical_symbols[z] for z in batch.numbers[species < 0].tolist()})
            known = [chemical_symbols[z] for z in self.species_of_element.ge(0).nonzero().flatten().tolist()]
            raise DataError(f"the potential was not trained on {', '.join(unknown)}; it knows {', '.join(known)}")
        return species

    def _geometry(self, batch: Batch, vectors: Tensor) -> Geometry:
        species = self._species(batch)
        pairs = Pairs(batch.first, batch.second, len(batch.numbers), self.members or 1)
        distances = torch.linalg.vector_norm(vectors, dim=-1)
        if len(pairs):
            _check_distance(float(distances.detach().min()))
        return Geometry(distances, vectors / distances.unsqueeze(-1), species, pairs, Wanted())


def _check_distance(closest: float) -> None:
    # The direction between coincident atoms is 0/0: one pair would turn every number of its frame into NaN.
    if closest < COINCIDENT:
        raise DataError(f"two atoms of a frame are closer than {COINCIDENT:g} Å: no force is defined there")


def pair_vectors(batch: Batch, positions: Tensor) -> Tensor:
    """Return the vectors (..., P, 3) from the first to the second atom of each pair at positions (..., N, 3), Å."""
    return positions.index_select(-2, batch.second) - positions.index_select(-2, batch.first) + batch.shifts


def _stress(batch: Batch, vectors: Tensor, gradient: Tensor) -> Tensor:
    """Return the stress ([M,] S, 3, 3) from pair vectors and the energy's gradient by them, both ([M,] P, 3)."""
    strain_gradient = vectors.new_zeros(*vectors.shape[:-2], len(batch), 3, 3)
    outer = gradient.unsqueeze(-1) * vectors.unsqueeze(-2)
    return _per_volume(strain_gradient.index_add(-3, batch.system[batch.first], outer), batch)


def _per_volume(strain_gradient: Tensor, batch: Batch) -> Tensor:
    return strain_gradient / torch.linalg.det(batch.cells).abs()[:, None, None]


def _detached(output: Output) -> Output:
    heads = {name: value.detach() for name, value in output.heads.items()}
    stress = None if output.stress is None else output.stress.detach()
    return Output(output.energy.detach(), output.forces.detach(), output.latents.detach(), heads, stress)
