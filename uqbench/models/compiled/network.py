"""Energies, forces and latents of a whole network in compiled code, without autograd (`network.cpp`).

`differentiable` makes of it one function of the weights and the positions that autograd goes through.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor
from torch.autograd import Function

from uqbench.data.graph import Batch
from uqbench.models.compiled.native import entry

BASES = ("bessel", "gaussian")
ACTIVATIONS = ("silu", "shifted_softplus")
DIFFERENTIABLE = ("painn", "schnet")  # kinds of networks with a compiled gradient


class NetworkArguments(ctypes.Structure):
    """`NetworkArguments` of the C code."""

    _fields_ = [
        *((k, c_int64) for k in ("atoms", "pairs", "systems", "members", "species", "channels", "layers", "radial")),
        *((k, c_int64) for k in ("hidden", "heads", "elements", "threads", "basis", "activation", "head_activation")),
        *((name, c_double) for name in ("cutoff", "scale")),
        *((name, c_void_p) for name in ("first", "second", "numbers", "system", "species_of_element")),
        *((name, c_void_p) for name in ("channels_of_heads", "references", "positions", "shifts", "raw", "weights")),
        ("weights_of_member", c_int64),
        *((name, c_void_p) for name in ("energies", "latents", "forces", "virials", "head_results")),
        ("closest", c_double),
        ("unknown", c_int64),
        *((name, c_void_p) for name in ("g_energy", "g_forces", "g_latents", "by_weights", "by_positions")),
    ]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a network looks like.

    Attributes:
        kind: `painn` or `schnet`.
        channels, layers, radial, hidden: of the features, the interactions, the radial basis, the heads' hidden layer.
        heads: output channels of each head but the energy's.
        basis, activation, head_activation: by name.
        cutoff: Å.
        computation: what the modules say that they compute, see `computation.description`.
    """

    kind: str
    channels: int
    layers: int
    radial: int
    hidden: int
    heads: tuple[int, ...]
    basis: str
    activation: str
    head_activation: str
    cutoff: float
    computation: Hashable


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkOutput:
    """What a network computes for a batch, with the member axis M.

    Attributes:
        energy: (M, S) eV, float64.
        latents: (M, N, F).
        forces: (M, N, 3) eV/Å.
        heads: (M, N, channels) of each head but the energy's.
        virials: (M, S, 3, 3) eV, derivative of the energy by the strain; None where it was not asked for.
        closest: Å, shortest distance between two atoms.
    """

    energy: Tensor
    latents: Tensor
    forces: Tensor
    heads: list[Tensor]
    virials: Tensor | None
    closest: float


# A number for each network that differs in more than its weights: to compare descriptions takes microseconds.
_keys: dict[Sizes, int] = {}


class CompiledNetwork:
    """A network with fixed weights, ready to be evaluated.

    Args:
        library: of `build`.
        sizes: of the network.
        members: length of the weights' member axis, or None where they have none.
        weights: of the backbone, the energy's head and the other heads, in the order of the C code; they are copied.
        species_of_element: (Z,) row of the embedding for each atomic number, negative where there is none.
        references: float64, energy of an atom of each species, eV.
        scale: eV, of the energy's head.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        sizes: Sizes,
        members: int | None,
        weights: Sequence[Tensor],
        *,
        species_of_element: Tensor,
        references: Tensor,
        scale: float,
    ) -> None:
        self.sizes, self.dtype = sizes, weights[0].dtype
        self.key = _keys.setdefault(sizes, len(_keys))
        self._call = entry(library, f"network_{sizes.kind}", self.dtype, NetworkArguments)
        self._gradient = None
        if sizes.kind in DIFFERENTIABLE:
            self._gradient = entry(library, f"gradient_{sizes.kind}", self.dtype, NetworkArguments)
        self._members = members or 1
        self._channels = (c_int64 * len(sizes.heads))(*sizes.heads)
        constants = {"species_of_element": species_of_element, "references": references}
        self._constants = {name: tensor.contiguous() for name, tensor in constants.items()}
        self._fixed = NetworkArguments(
            members=self._members,
            species=len(references),
            heads=len(sizes.heads),
            channels_of_heads=ctypes.addressof(self._channels),
            elements=len(species_of_element),
            basis=BASES.index(sizes.basis),
            activation=ACTIVATIONS.index(sizes.activation),
            head_activation=ACTIVATIONS.index(sizes.head_activation),
            scale=scale,
            **{name: tensor.data_ptr() for name, tensor in self._constants.items()},
            **{key: getattr(sizes, key) for key in ("channels", "layers", "radial", "hidden", "cutoff")},
        )
        self._lay_out(entry(library, f"layout_{sizes.kind}", self.dtype, NetworkArguments), weights)

    def _lay_out(self, call: ctypes._CFuncPtr, weights: Sequence[Tensor]) -> None:
        """Copy the weights to where and as the C code reads them."""
        fixed = self._fixed
        call(fixed)  # which only measures, as there is no memory yet
        self._weights = torch.empty(self._members, fixed.weights_of_member, dtype=self.dtype)
        ready = [_ready(weight.detach(), self.dtype) for weight in weights]
        steps = [weight.nbytes // self._members for weight in ready]
        starts = [weight.data_ptr() for weight in ready]
        pointers = [start + m * step for m in range(self._members) for start, step in zip(starts, steps, strict=True)]
        raw = (c_void_p * len(pointers))(*pointers)
        fixed.raw, fixed.weights = ctypes.addressof(raw), self._weights.data_ptr()
        fixed.threads = torch.get_num_threads()
        call(fixed)
        fixed.raw = None

    def __call__(self, batch: Batch, *, virials: bool) -> NetworkOutput | None:
        """Evaluate a batch on the CPU, in this network's dtype; None where it has an element without a species."""
        arguments, alive = self._arguments(batch)
        members, dtype, atoms, systems = self._members, self.dtype, arguments.atoms, arguments.systems
        energy = torch.empty(members, systems, dtype=torch.float64)
        latents = torch.empty(members, atoms, self.sizes.channels, dtype=dtype)
        forces = torch.empty(members, atoms, 3, dtype=dtype)
        strained = torch.empty(members, systems, 3, 3, dtype=dtype) if virials else None
        heads = [torch.empty(members, atoms, channels, dtype=dtype) for channels in self.sizes.heads]
        results = (c_void_p * len(heads))(*[head.data_ptr() for head in heads])
        arguments.energies, arguments.latents = energy.data_ptr(), latents.data_ptr()
        arguments.forces, arguments.head_results = forces.data_ptr(), ctypes.addressof(results)
        if strained is not None:
            arguments.virials = strained.data_ptr()
        self._call(arguments)
        del alive
        if arguments.unknown:
            return None
        return NetworkOutput(energy, latents, forces, heads, strained, arguments.closest)

    def gradient(
        self,
        batch: Batch,
        cotangents: tuple[Tensor | None, Tensor | None, Tensor | None],
        weights: Sequence[Tensor | None],
        *,
        positions: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return the derivatives of Σ g · result by the positions and by the weights.

        Args:
            batch: as it was evaluated.
            cotangents: g of energy (M, S), forces (M, N, 3) and latents (M, N, F); None for zero.
            weights: as given to this network, without those of heads other than the energy's; None for those whose
                derivative is not wanted.
            positions: whether the derivative by them is wanted.

        Returns:
            (N, 3), summed over the members, or None; and for each weight its derivative, or None.
        """
        arguments, alive = self._arguments(batch)
        given = {}
        for name, cotangent in zip(("g_energy", "g_forces", "g_latents"), cotangents, strict=True):
            if cotangent is not None:
                given[name] = _ready(cotangent.detach(), self.dtype)
                setattr(arguments, name, given[name].data_ptr())
        by_positions = torch.empty(self._members, arguments.atoms, 3, dtype=self.dtype) if positions else None
        if by_positions is not None:
            arguments.by_positions = by_positions.data_ptr()
        gradients = [None if w is None else torch.empty(w.shape, dtype=self.dtype) for w in weights]
        others = 4 * len(self.sizes.heads)
        pointers = [
            None if one is None else one.data_ptr() + m * (one.nbytes // self._members)
            for m in range(self._members)
            for one in (*gradients, *[None] * others)
        ]
        addresses = (c_void_p * len(pointers))(*pointers)
        if any(one is not None for one in gradients):
            arguments.by_weights = ctypes.addressof(addresses)
        self._gradient(arguments)
        del alive
        return None if by_positions is None else by_positions.sum(0), gradients

    @property
    def differentiable(self) -> bool:
        """Whether there is a gradient."""
        return self._gradient is not None

    def _arguments(self, batch: Batch) -> tuple[NetworkArguments, list[Tensor]]:
        """Return the arguments that follow from a batch, and tensors that must live as long as they are used."""
        # This is called every millisecond: each line is a microsecond. The structure is a copy, as the C code runs
        # without the interpreter's lock.
        arguments, dtype = NetworkArguments.from_buffer_copy(self._fixed), self.dtype
        positions, shifts = _ready(batch.positions, dtype), _ready(batch.shifts, dtype)
        first, second = _ready(batch.first, torch.int64), _ready(batch.second, torch.int64)
        numbers, system = _ready(batch.numbers, torch.int64), _ready(batch.system, torch.int64)
        arguments.positions, arguments.shifts = positions.data_ptr(), shifts.data_ptr()
        arguments.first, arguments.second = first.data_ptr(), second.data_ptr()
        arguments.numbers, arguments.system = numbers.data_ptr(), system.data_ptr()
        arguments.atoms, arguments.pairs, arguments.systems = positions.shape[0], first.shape[0], len(batch)
        arguments.threads = torch.get_num_threads()
        return arguments, [positions, shifts, first, second, numbers, system]


def _ready(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()


Results = tuple[Tensor, Tensor, Tensor]


def differentiable(
    network: CompiledNetwork,
    result: NetworkOutput,
    batch: Batch,
    weights: list[Tensor],
    again: Callable[[Tensor], Results],
) -> Results:
    """Return energy, forces and latents of `result` as a function of positions and weights.

    The first derivatives are the network's; those of higher order are autograd's.

    Args:
        network: one with a gradient.
        result: its output for the batch.
        batch: the positions may require a gradient.
        weights: as given to the network, without those of heads other than the energy's.
        again: (positions) -> the same results in terms that autograd knows, for the weights as they are.
    """
    return _NetworkFunction.apply(network, result, batch, again, batch.positions, *weights)


class _NetworkFunction(Function):
    @staticmethod
    def forward(ctx, network, result, batch, again, positions, *weights):
        ctx.network, ctx.batch, ctx.again = network, batch, again
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(positions, *weights)
        return result.energy, result.forces, result.latents

    @staticmethod
    def backward(ctx, *cotangents):
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[4:]
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * (4 + len(inputs))
        if not torch.is_grad_enabled():
            weights = [w if need else None for w, need in zip(inputs[1:], needs[1:], strict=True)]
            by_positions, by_weights = ctx.network.gradient(ctx.batch, cotangents, weights, positions=needs[0])
            return None, None, None, None, by_positions, *by_weights
        pairs = [(r, g) for r, g in zip(ctx.again(inputs[0]), cotangents, strict=True) if g is not None]
        wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
        results, given = zip(*pairs, strict=True)
        gradients = iter(torch.autograd.grad(results, wanted, given, create_graph=True, allow_unused=True))
        return None, None, None, None, *(next(gradients) if need else None for need in needs)
