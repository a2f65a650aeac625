"""Energies, forces and latents of a whole network in compiled code, without autograd (`engine.cpp`)."""

from __future__ import annotations

import ctypes
import dataclasses
from ctypes import c_double, c_int64, c_void_p
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from uqbench.kernels.native import NAMES, entry

BASES = ("bessel", "gaussian")
ACTIVATIONS = ("silu", "shifted_softplus")


class EngineArguments(ctypes.Structure):
    """`EngineArguments` of the C code."""

    _fields_ = [
        *((k, c_int64) for k in ("atoms", "pairs", "members", "channels", "layers", "radial", "hidden", "threads")),
        *((name, c_int64) for name in ("basis", "activation", "head_activation")),
        ("cutoff", c_double),
        *((name, c_void_p) for name in ("first", "second", "species", "positions", "shifts", "weights")),
        ("weights_of_member", c_int64),
        *((name, c_void_p) for name in ("energies", "latents", "forces", "by_vectors", "closest")),
    ]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a network looks like.

    Attributes:
        kind: `painn` or `schnet`.
        channels, layers, radial, hidden: of the features, the interactions, the radial basis, the head's hidden layer.
        basis, activation, head_activation: by name.
        cutoff: Å.
    """

    kind: str
    channels: int
    layers: int
    radial: int
    hidden: int
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

    def _with_members(self, values: Tensor) -> Tensor:
        return values.detach() if self.members is not None else values.detach().unsqueeze(0)

    def _padded(self, values: Tensor) -> Tensor:
        return F.pad(values, (0, -values.shape[-1] % self.width))

    def _add(self, values: Tensor) -> None:
        self.tensors.append(values.contiguous())


def width(library: ctypes.CDLL, dtype: torch.dtype) -> int:
    """Return the columns in a panel."""
    return getattr(library, f"width_{NAMES[dtype]}")()


class Engine:
    """A network with fixed weights, ready to be evaluated.

    Args:
        library: of `kernels.build`.
        sizes: of the network.
        packer: all weights, in the order of the C code.
        dtype: of weights and positions.
    """

    def __init__(self, library: ctypes.CDLL, sizes: Sizes, packer: Packer, dtype: torch.dtype) -> None:
        self.sizes, self.dtype = sizes, dtype
        self._call = entry(library, f"engine_{sizes.kind}", dtype, EngineArguments)
        self._tensors, members, count = packer.tensors, packer.members or 1, len(packer.tensors)
        pointers = [tensor[m].data_ptr() for m in range(members) for tensor in packer.tensors]
        self._pointers = (c_void_p * len(pointers))(*pointers)
        arguments = {"members": members, "weights_of_member": count, "weights": ctypes.addressof(self._pointers)}
        names = {
            "basis": BASES.index(sizes.basis),
            "activation": ACTIVATIONS.index(sizes.activation),
            "head_activation": ACTIVATIONS.index(sizes.head_activation),
        }
        numbers = {key: getattr(sizes, key) for key in ("channels", "layers", "radial", "hidden", "cutoff")}
        self._fixed = arguments | names | numbers

    def __call__(
        self, positions: Tensor, shifts: Tensor, first: Tensor, second: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """Return atomic energies (M, N), latents (M, N, F), forces (M, N, 3), the gradient by the pair vectors
        (M, P, 3), and the shortest distance in Å; arguments as in `Batch`, with species as rows of the embedding."""
        inputs = {"positions": positions, "shifts": shifts, "first": first, "second": second, "species": species}
        inputs = {name: tensor.detach().contiguous() for name, tensor in inputs.items()}
        atoms, pairs, members = len(positions), len(first), self._fixed["members"]
        shapes = {"energies": (atoms,), "latents": (atoms, self._fixed["channels"])}
        shapes |= {"forces": (atoms, 3), "by_vectors": (pairs, 3)}
        results = {name: positions.new_empty(members, *shape) for name, shape in shapes.items()}
        closest = (c_double * members)()
        arguments = EngineArguments(**self._fixed, atoms=atoms, pairs=pairs, threads=torch.get_num_threads())
        for name, tensor in (inputs | results).items():
            setattr(arguments, name, tensor.data_ptr())
        arguments.closest = ctypes.addressof(closest)
        self._call(arguments)
        return *results.values(), min(closest)
