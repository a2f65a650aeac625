"""Energies, forces and latents of a whole network in compiled code, without autograd (`engine.cpp`)."""

from __future__ import annotations

import ctypes
import dataclasses
from ctypes import c_double, c_int64, c_void_p
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from uqbench.graph import Batch
from uqbench.kernels.native import NAMES, entry

BASES = ("bessel", "gaussian")
ACTIVATIONS = ("silu", "shifted_softplus")


class EngineArguments(ctypes.Structure):
    """`EngineArguments` of the C code."""

    _fields_ = [
        *((k, c_int64) for k in ("atoms", "pairs", "systems", "members", "channels", "layers", "radial", "hidden")),
        *((k, c_int64) for k in ("heads", "elements", "threads", "basis", "activation", "head_activation")),
        ("cutoff", c_double),
        *((name, c_void_p) for name in ("first", "second", "numbers", "system", "species_of_element")),
        *((name, c_void_p) for name in ("channels_of_heads", "references", "positions", "shifts", "weights")),
        ("weights_of_member", c_int64),
        *((name, c_void_p) for name in ("energies", "latents", "forces", "virials", "head_results")),
        ("closest", c_double),
        ("unknown", c_int64),
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


class AffineMap(Protocol):
    """A linear layer, weight ([M,] in, out) and bias ([M,] out)."""

    weight: Tensor
    bias: Tensor


class Packer:
    """Lays weights out as the C code reads them: matrices in panels of `width` columns, everything padded with zeros.

    Args:
        members: length of the parameters' member axis, or None where they have none.
        width: of the C code for the dtype.
    """

    def __init__(self, members: int | None, width: int) -> None:
        self.members, self.width = members, width
        self.tensors: list[Tensor] = []

    def plain(self, values: Tensor, *, padded: bool = False) -> None:
        """Add values as they are, or with the last axis padded."""
        values = self._with_members(values)
        self._add(self._padded(values) if padded else values)

    def linear(self, weight: Tensor, bias: Tensor | None = None, *, blocks: int = 1) -> None:
        """Add a linear map, weight ([M,] in, out), whose results are that many blocks, each padded."""
        weight = self._padded(self._with_members(weight).unflatten(-1, (blocks, -1))).flatten(-2)
        self._add(weight.unflatten(-1, (-1, self.width)).movedim(-2, -3))
        if bias is not None:
            self._add(self._padded(self._with_members(bias).unflatten(-1, (blocks, -1))).flatten(-2))

    def transposed(self, weight: Tensor, *, blocks: int = 1, padded: bool = False) -> None:
        """Add the transpose of a linear map; `padded`: it is applied to the padded blocks of its results."""
        weight = self._with_members(weight)
        if padded:
            weight = self._padded(weight.unflatten(-1, (blocks, -1))).flatten(-2)
        self.linear(weight.mT)

    def mlp(
        self,
        first: AffineMap,
        last: AffineMap,
        *,
        blocks: int = 1,
        inputs: int | None = None,
        scale: Tensor | float = 1.0,
        padded: bool = True,
    ) -> None:
        """Add two maps with an activation between them, then both transposes; of the first only as many inputs, the
        last times `scale` and its transpose for padded results or not."""
        weight, last_weight = first.weight[..., :inputs, :], last.weight * scale
        self.linear(weight, first.bias)
        self.linear(last_weight, last.bias * scale, blocks=blocks)
        self.transposed(weight)
        self.transposed(last_weight, blocks=blocks, padded=padded)

    def forward_mlp(self, first: AffineMap, last: AffineMap) -> None:
        """Add two maps with an activation between them, without their transposes."""
        self.linear(first.weight, first.bias)
        self.linear(last.weight, last.bias)

    def _with_members(self, values: Tensor) -> Tensor:
        return values.detach() if self.members is not None else values.detach().unsqueeze(0)

    def _padded(self, values: Tensor) -> Tensor:
        return F.pad(values, (0, -values.shape[-1] % self.width))

    def _add(self, values: Tensor) -> None:
        self.tensors.append(values.contiguous())


def width(library: ctypes.CDLL, dtype: torch.dtype) -> int:
    """Return the columns in a panel."""
    return getattr(library, f"width_{NAMES[dtype]}")()


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
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


class Engine:
    """A network with fixed weights, ready to be evaluated.

    Args:
        library: of `kernels.build`.
        sizes: of the network.
        packer: all weights, in the order of the C code.
        dtype: of weights and positions.
        species_of_element: (Z,) row of the embedding for each atomic number, negative where there is none.
        references: float64, energy of an atom of each species, eV.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        sizes: Sizes,
        packer: Packer,
        dtype: torch.dtype,
        *,
        species_of_element: Tensor,
        references: Tensor,
    ) -> None:
        self.sizes, self.dtype = sizes, dtype
        self._call = entry(library, f"engine_{sizes.kind}", dtype, EngineArguments)
        self._members, count = packer.members or 1, len(packer.tensors)
        pointers = [tensor[m].data_ptr() for m in range(self._members) for tensor in packer.tensors]
        self._pointers = (c_void_p * len(pointers))(*pointers)
        self._channels = (c_int64 * len(sizes.heads))(*sizes.heads)
        constants = {"species_of_element": species_of_element, "references": references}
        constants = {name: tensor.contiguous() for name, tensor in constants.items()}
        self._alive = packer.tensors, constants
        self._fixed = EngineArguments(
            members=self._members,
            weights=ctypes.addressof(self._pointers),
            weights_of_member=count,
            heads=len(sizes.heads),
            channels_of_heads=ctypes.addressof(self._channels),
            elements=len(species_of_element),
            basis=BASES.index(sizes.basis),
            activation=ACTIVATIONS.index(sizes.activation),
            head_activation=ACTIVATIONS.index(sizes.head_activation),
            **{name: tensor.data_ptr() for name, tensor in constants.items()},
            **{key: getattr(sizes, key) for key in ("channels", "layers", "radial", "hidden", "cutoff")},
        )

    def __call__(self, batch: Batch, *, virials: bool) -> Evaluation | None:
        """Evaluate a batch on the CPU, in this engine's dtype; None where it has an element without a species."""
        # This is called every millisecond: each line is a microsecond. The structure is a copy, as the C code runs
        # without the interpreter's lock.
        arguments, members, dtype = EngineArguments.from_buffer_copy(self._fixed), self._members, self.dtype
        positions, shifts = _ready(batch.positions, dtype), _ready(batch.shifts, dtype)
        first, second = _ready(batch.first, torch.int64), _ready(batch.second, torch.int64)
        numbers, system = _ready(batch.numbers, torch.int64), _ready(batch.system, torch.int64)
        arguments.positions, arguments.shifts = positions.data_ptr(), shifts.data_ptr()
        arguments.first, arguments.second = first.data_ptr(), second.data_ptr()
        arguments.numbers, arguments.system = numbers.data_ptr(), system.data_ptr()
        arguments.atoms = atoms = positions.shape[0]
        arguments.pairs, arguments.systems = first.shape[0], len(batch)
        arguments.threads = torch.get_num_threads()
        energy = torch.empty(members, len(batch), dtype=torch.float64)
        latents = torch.empty(members, atoms, self.sizes.channels, dtype=dtype)
        forces = torch.empty(members, atoms, 3, dtype=dtype)
        strained = torch.empty(members, len(batch), 3, 3, dtype=dtype) if virials else None
        heads = [torch.empty(members, atoms, channels, dtype=dtype) for channels in self.sizes.heads]
        results = (c_void_p * len(heads))(*[head.data_ptr() for head in heads])
        arguments.energies, arguments.latents = energy.data_ptr(), latents.data_ptr()
        arguments.forces, arguments.head_results = forces.data_ptr(), ctypes.addressof(results)
        if strained is not None:
            arguments.virials = strained.data_ptr()
        self._call(arguments)
        if arguments.unknown:
            return None
        return Evaluation(energy, latents, forces, heads, strained, arguments.closest)


def _ready(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()
