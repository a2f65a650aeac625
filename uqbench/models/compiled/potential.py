"""A potential whose computation compiled code repeats: `compile` makes one of a plain potential."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import chain

from torch import Tensor

from uqbench.data.graph import Batch
from uqbench.models.blocks import require_apart
from uqbench.models.compiled.choice import compiled
from uqbench.models.compiled.computation import Computation, Fingerprint
from uqbench.models.compiled.network import CompiledNetwork, NetworkOutput, Sizes, differentiable
from uqbench.models.compiled.verification import Verification, gradient_error, relative_error
from uqbench.models.potential import Output, Potential, per_volume

# Compiled networks, and gradients of such, that were compared with autograd in this process.
verified_results, verified_gradients = Verification("results"), Verification("gradients")
# Attributes of a compiled potential that are made anew whenever they are needed.
CACHES = frozenset({"_compiled", "_computation"})


def compile(potential: Potential) -> Potential:
    """Return a potential that runs in compiled code where it can, or the same one where none repeats what it computes.

    The two share parameters, buffers and submodules, so that keys of state dicts are the same; go on with the returned
    one alone, as it does not see what a fused optimiser does to the other. Whether there is a
    compiler, which kernels were chosen (`use`), dtype, device and hooks are looked at in every call: where compiled
    code is not to be had, the call is that of the plain potential.
    """
    if type(potential) is not Potential or not hasattr(potential.backbone, "weights"):
        return potential
    candidate = CompiledPotential(potential)
    return candidate if Computation(candidate, CACHES).description is not None else potential


class CompiledPotential(Potential):
    """A potential that is evaluated by an `CompiledNetwork` once this was verified, and by autograd else.

    Args:
        potential: the plain one, whose parameters, buffers and submodules become those of this one too.
    """

    repeated_by_compiled_code = True

    def __init__(self, potential: Potential) -> None:
        self.__dict__.update(potential.__dict__)
        self._forget()

    def forward(self, batch: Batch, *, create_graph: bool = False, stress: bool = False) -> Output:
        """Evaluate a batch, as `Potential` does."""
        network = None if create_graph and stress else self.compiled_network(batch, gradient=create_graph)
        result = None if network is None else network(batch, virials=stress)
        if result is None:
            return super().forward(batch, create_graph=create_graph, stress=stress)
        require_apart(result.closest)
        output = self._differentiable(network, result, batch) if create_graph else self._output(result, batch)
        if (verified_gradients if output.forces.requires_grad else verified_results).passed(network):
            return output
        return self._verified(network, batch, output, super().forward(batch, create_graph=create_graph, stress=stress))

    def compiled_network(self, batch: Batch, *, gradient: bool = False) -> CompiledNetwork | None:
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
            self._compiled = Fingerprint(self), self._compile(library)
        network = self._compiled[1]
        if network.dtype != batch.positions.dtype or verified_results.failed(network):
            return None
        return None if gradient and (not network.differentiable or verified_gradients.failed(network)) else network

    def _compile(self, library: ctypes.CDLL) -> CompiledNetwork:
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
        return CompiledNetwork(library, sizes, self.members, weights, scale=float(self.scale), **constants)

    def _output(self, result: NetworkOutput, batch: Batch) -> Output:
        stresses = None if result.virials is None else per_volume(result.virials, batch)
        names = [name for name in self.heads if name != "energy"] if result.heads else ()
        heads = dict(zip(names, result.heads, strict=True))
        if self.members is not None:
            return Output(result.energy, result.forces, result.latents, heads, stresses)
        heads = {name: value[0] for name, value in heads.items()}
        stresses = None if stresses is None else stresses[0]
        return Output(result.energy[0], result.forces[0], result.latents[0], heads, stresses)

    def _differentiable(self, network: CompiledNetwork, result: NetworkOutput, batch: Batch) -> Output:
        """Return the compiled network's result as a function of positions and parameters."""

        def again(positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            output = Potential.forward(self, batch.with_positions(positions), create_graph=True)
            results = output.energy, output.forces, output.latents
            return results if self.members is not None else tuple(result.unsqueeze(0) for result in results)

        weights = [*self.backbone.weights(), *self.heads["energy"].weights()]
        results = differentiable(network, result, batch, weights, again)
        energy, forces, latents = results if self.members is not None else (one[0] for one in results)
        heads = {name: head(latents) for name, head in self.heads.items() if name != "energy"}
        return Output(energy, forces, latents, heads)

    def _verified(self, network: CompiledNetwork, batch: Batch, output: Output, expected: Output) -> Output:
        """Return the compiled network's output, or autograd's where the two differ; either way it is remembered."""
        forces = float(expected.forces.detach().abs().max()) + float(self.scale)
        others = [expected.latents, *expected.heads.values()]
        error = relative_error(
            [output.forces, output.energy, output.latents, *(output.heads[name] for name in expected.heads)],
            [expected.forces, expected.energy, *others],
            [forces, forces * len(batch.numbers), *(1 + float(other.detach().abs().max()) for other in others)],
        )
        passed = verified_results.check(network, error)
        if passed and output.forces.requires_grad:
            results = [(one.energy, one.forces, one.latents) for one in (output, expected)]
            weights = self.backbone.parameters(), self.heads["energy"].parameters()
            inputs = [x for x in (batch.positions, *chain(*weights)) if x.requires_grad]
            passed = verified_gradients.check(network, gradient_error(*results, inputs))
        # The compiled one also this first time, or else the bits would depend on what ran before.
        return output if passed else expected

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompiledPotential:
        self._forget()
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> CompiledPotential:
        """Set the mode of training; what was compiled is forgotten, because fused optimisers do not count versions."""
        self._forget()
        return super().train(mode)

    def _forget(self) -> None:
        self._compiled: tuple[Fingerprint, CompiledNetwork] | None = None
        self._computation: Computation | None = None

    def __getstate__(self) -> dict:
        # Pointers into memory mean nothing in a copy.
        return self.__dict__ | dict.fromkeys(CACHES)
