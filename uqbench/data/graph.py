"""Neighbour lists and batches: frames in numpy become graphs in torch, built once and sliced ever after."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from vesin import NeighborList

from uqbench.data.structures import Structures
from uqbench.errors import DataError

# Two images closer than this (Å) have no direction from one to the other.
COINCIDENT = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A disjoint union of S frames as one graph with N atoms and P pairs of neighbours.

    Attributes:
        positions: (N, 3) Å.
        numbers: (N,) atomic numbers.
        system: (N,) frame that owns each atom.
        first, second: (P,) atoms i and j of each pair of neighbours; a pair of edges, i <- j and j <- i. Every image
            within the cutoff makes a pair of its own, an atom with itself included, each once.
        shifts: (P, 3) Å, lattice translation of the second atom's image: r_ij = x_j + shift - x_i.
        cells: (S, 3, 3) Å.
        pbc: (S, 3).
        ptr: (S + 1,) frame s owns the atoms ptr[s]:ptr[s + 1].
        index: (S,) position of each frame in the set that the batch was cut from.
        energies: (S,) eV, always float64: total energies exceed what float32 resolves; None where no frame of the set
            has a label, as in simulations.
        forces: (N, 3) eV/Å, or None.
    """

    positions: Tensor
    numbers: Tensor
    system: Tensor
    first: Tensor
    second: Tensor
    shifts: Tensor
    cells: Tensor
    pbc: Tensor
    ptr: Tensor
    index: Tensor
    energies: Tensor | None = None
    forces: Tensor | None = None

    def __len__(self) -> int:
        return self.ptr.shape[0] - 1  # len(tensor) takes microseconds

    @property
    def n_atoms(self) -> Tensor:
        """Atoms of each frame, (S,)."""
        return self.ptr.diff()

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Batch(**{name: None if tensor is None else tensor.to(device) for name, tensor in tensors.items()})

    def with_positions(self, positions: Tensor) -> Batch:
        """Return the batch at other positions (N, 3) with the same pairs, for derivatives and attacks."""
        return dataclasses.replace(self, positions=positions)


class GraphSet:
    """All frames of a `Structures` as resident tensors, from which batches are cut by slicing.

    Neighbour lists are built once here, with every pair of atoms (images included) closer than `cutoff`, so that an
    epoch costs no geometry at all. Raises DataError when two images coincide.
    """

    def __init__(
        self, structures: Structures, cutoff: float, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.cutoff = cutoff
        first, second, shifts, pair_ptr = neighbour_lists(structures, cutoff)

        def tensor(array, dtype=None):
            return None if array is None else torch.as_tensor(array, dtype=dtype).to(device)

        self._positions = tensor(structures.positions, dtype)
        self._numbers = tensor(structures.numbers)
        self._cells = tensor(structures.cells, dtype)
        self._pbc = tensor(structures.pbc)
        self._energies = tensor(structures.energies, torch.float64)
        self._forces = tensor(structures.forces, dtype)
        self._first, self._second = tensor(first), tensor(second)
        self._shifts = tensor(shifts, dtype)
        self._ptr, self._pair_ptr = tensor(structures.ptr), tensor(pair_ptr)

    def __len__(self) -> int:
        return len(self._ptr) - 1

    @property
    def n_atoms(self) -> Tensor:
        """Atoms of each frame, (S,)."""
        return self._ptr.diff()

    @property
    def n_pairs(self) -> Tensor:
        """Pairs of neighbours of each frame, (S,)."""
        return self._pair_ptr.diff()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def batch(self, frames: Tensor | np.ndarray | list[int]) -> Batch:
        """Return the frames with these indices (S,), in this order, as one graph."""
        index = torch.as_tensor(frames, dtype=torch.int64).to(self._ptr.device)
        atoms, ptr, system = _gather_ragged(self._ptr, index)
        pairs, _, pair_system = _gather_ragged(self._pair_ptr, index)
        offset = ptr[:-1][pair_system]
        return Batch(
            positions=self._positions[atoms],
            numbers=self._numbers[atoms],
            system=system,
            first=self._first[pairs] + offset,
            second=self._second[pairs] + offset,
            shifts=self._shifts[pairs],
            cells=self._cells[index],
            pbc=self._pbc[index],
            ptr=ptr,
            index=index,
            energies=None if self._energies is None else self._energies[index],
            forces=None if self._forces is None else self._forces[atoms],
        )

    def batches(self, size: int) -> list[Batch]:
        """Cut the whole set, in order, into batches of at most `size` frames."""
        return [self.batch(chunk) for chunk in torch.arange(len(self)).split(size)]


def neighbour_lists(structures: Structures, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return first (P,), second (P,), shifts (P, 3) in Å and pair_ptr (S + 1,) of all frames; atoms as in `Batch`.

    Atom indices count from the start of their own frame. Raises DataError when two images coincide.
    """
    finder = NeighborList(cutoff=cutoff, full_list=False, sorted=True)
    first, second, shifts, counts = [], [], [], [0]
    for s in range(len(structures)):
        atoms = slice(structures.ptr[s], structures.ptr[s + 1])
        pbc = structures.pbc[s]
        i, j, image, distance = finder.compute(
            structures.positions[atoms], finder_cell(structures.cells[s], pbc), pbc, quantities="ijSd"
        )
        if len(distance) and distance.min() < COINCIDENT:
            raise DataError(
                f"{structures.origin}: frame {structures.ids[s]} has coincident atoms; remove it or check its cell"
            )
        first.append(i.astype(np.int64))
        second.append(j.astype(np.int64))
        shifts.append(image @ structures.cells[s])
        counts.append(len(i))
    return (np.concatenate(first), np.concatenate(second), np.concatenate(shifts), np.cumsum(counts))


def finder_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Return the cell (3, 3) for a neighbour search: with a volume, also where only some directions are periodic."""
    if pbc.all() or not pbc.any():
        return cell
    from ase.geometry import complete_cell

    return complete_cell(np.where(pbc[:, None], cell, 0.0))


def _gather_ragged(ptr: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the item indices of the given rows of a ragged array, their new ptr, and each item's row."""
    counts = ptr[rows + 1] - ptr[rows]
    new_ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    owner = torch.repeat_interleave(counts)
    items = torch.arange(len(owner), device=ptr.device) + (ptr[rows] - new_ptr[:-1])[owner]
    return items, new_ptr, owner
