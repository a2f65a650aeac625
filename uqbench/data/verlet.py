"""Verlet lists: pairs of neighbours that outlive a step, of one system or many at once, while their atoms move."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from vesin import NeighborList

from uqbench.data.graph import COINCIDENT, Batch, finder_cell
from uqbench.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Coordinates:
    """Where the N atoms of S systems are: positions (N, 3), cells (S, 3, 3) in Å, float64; ptr, pbc as in `Batch`."""

    positions: Tensor
    cells: Tensor
    pbc: Tensor
    ptr: Tensor

    @functools.cached_property
    def system(self) -> Tensor:
        """System (N,) of each atom."""
        return torch.repeat_interleave(self.ptr.diff())

    def select(self, keep: Tensor) -> Coordinates:
        """Return the systems of a mask (S,)."""
        n_atoms = self.ptr.diff()[keep]
        ptr = torch.cat([n_atoms.new_zeros(1), n_atoms.cumsum(0)])
        return Coordinates(self.positions[keep[self.system]], self.cells[keep], self.pbc[keep], ptr)


@dataclasses.dataclass(frozen=True, eq=False)
class PairList:
    """P pairs of atoms, sorted by system.

    Attributes:
        system: (P,) that owns the pair.
        first, second: (P,) atoms, counted over all systems; each pair once.
        shifts: (P, 3) Å, lattice translation of the second atom's image.
    """

    system: Tensor
    first: Tensor
    second: Tensor
    shifts: Tensor

    def distances(self, positions: Tensor) -> Tensor:
        """Distances (P,) in Å at some positions (N, 3)."""
        vectors = positions.index_select(0, self.second) - positions.index_select(0, self.first) + self.shifts
        return torch.linalg.vector_norm(vectors, dim=-1)

    def take(self, rows: Tensor) -> PairList:
        """Return the pairs with these indices."""
        return PairList(*(getattr(self, field.name).index_select(0, rows) for field in dataclasses.fields(self)))

    def where(self, chosen: Tensor) -> PairList:
        """Return the pairs of a mask (P,)."""
        return self.take(chosen.nonzero().squeeze(-1))

    def select(self, keep: Tensor, system: Tensor) -> PairList:
        """Return the pairs of the systems of a mask (S,), renumbered; `system` (N,) is that of each atom."""
        number, atom = keep.cumsum(0) - 1, keep[system].cumsum(0) - 1
        kept = self.where(keep[self.system])
        return PairList(number[kept.system], atom[kept.first], atom[kept.second], kept.shifts)


def pairs_within(
    cutoff: float, coordinates: Coordinates, systems: Tensor | None = None, *, ordered: bool = False
) -> PairList:
    """Search all pairs of atoms, images included, closer than `cutoff` in Å; in these systems, or in all.

    ordered: whether the order of pairs depends on nothing but the pairs, which takes a sort; the finder's own depends
    on the cutoff.
    """
    positions, cells, pbcs, ptr = (
        values.cpu().numpy() for values in (coordinates.positions, coordinates.cells, coordinates.pbc, coordinates.ptr)
    )
    finder = NeighborList(cutoff=cutoff, full_list=False, sorted=not ordered)
    parts = []
    for s in range(len(pbcs)) if systems is None else systems.tolist():
        start, cell, pbc = ptr[s], cells[s], pbcs[s]
        arrays = finder.compute(positions[start : ptr[s + 1]], finder_cell(cell, pbc), pbc, quantities="ijS")
        first, second, image = (array.astype(np.int64) for array in arrays)
        if ordered:
            order = np.lexsort((*image.T[::-1], second, first))
            first, second, image = first[order], second[order], image[order]
        # Term by term: a matrix product may round a row differently when there are other rows.
        shifts = image[:, :1] * cell[0] + image[:, 1:2] * cell[1] + image[:, 2:] * cell[2]
        parts.append((np.full(len(first), s), first + start, second + start, shifts))
    columns = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    return PairList(*(torch.from_numpy(column).to(coordinates.ptr.device) for column in columns))


class VerletList:
    """PairList of neighbours of S systems, searched anew where an atom has moved by half the skin, in its system alone.

    No pair can have come within the cutoff unseen before that. A molecule whose pairs are all in its list needs no
    other list, however far it stretches.
    Source: Verlet, Phys. Rev. 159, 98 (1967).

    Args:
        cutoff: Å. skin: Å; how much farther pairs are searched. ordered: as in `pairs_within`.
    """

    def __init__(self, cutoff: float, coordinates: Coordinates, *, skin: float, ordered: bool = False) -> None:
        self.cutoff, self.skin, self.ordered = cutoff, skin, ordered
        self.search(coordinates)

    def search(self, coordinates: Coordinates, systems: Tensor | None = None) -> None:
        """List the pairs of these systems, or of all, anew."""
        pairs = pairs_within(self.cutoff + self.skin, coordinates, systems, ordered=self.ordered)
        searched_at = coordinates.positions.clone()
        if systems is not None:
            others = torch.ones_like(self._complete).index_fill(0, systems, False)
            parts = self._listed.where(others[self._listed.system]), pairs
            joined = PairList(
                *(torch.cat([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(PairList))
            )
            pairs = joined.take(joined.system.argsort(stable=True))
            searched_at = torch.where(others[coordinates.system].unsqueeze(-1), self._searched.positions, searched_at)
        self._listed, self._searched = pairs, dataclasses.replace(coordinates, positions=searched_at)
        self._complete = ~coordinates.pbc.any(-1)  # which systems have all their pairs in the list
        if self._complete.any():  # of atoms with images no list is complete
            n_atoms = coordinates.ptr.diff()
            self._complete &= torch.bincount(pairs.system, minlength=len(n_atoms)) == n_atoms * (n_atoms - 1) // 2
        self._all_complete = bool(self._complete.all())

    def near(self, positions: Tensor, finite: Tensor | None = None) -> tuple[PairList, Tensor]:
        """Return exactly the pairs closer than the cutoff at positions (N, 3), with their distances (P,) in Å.

        finite: (S,) masks the systems whose positions are finite, the only ones that are searched; None for all.
        """
        if not self._all_complete:
            moved = (positions - self._searched.positions).square().sum(-1) > (0.5 * self.skin) ** 2
            if moved.any():
                stale = ~self._complete if finite is None else ~self._complete & finite
                stale &= torch.zeros_like(stale).index_fill(0, self._searched.system[moved], True)
                if stale.any():
                    systems = None if stale.all() else stale.nonzero().squeeze(-1)
                    self.search(dataclasses.replace(self._searched, positions=positions), systems)
        distances = self._listed.distances(positions)
        if len(distances) == 0 or distances.max().item() < self.cutoff:
            return self._listed, distances
        # PairList in the skin are left out here, not by the envelope of the backbone: nothing is computed for them.
        rows = (distances < self.cutoff).nonzero().squeeze(-1)
        return self._listed.take(rows), distances.index_select(0, rows)

    def select(self, keep: Tensor) -> None:
        """Go on with the systems of a mask (S,) only."""
        self._listed = self._listed.select(keep, self._searched.system)
        self._searched, self._complete = self._searched.select(keep), self._complete[keep]
        self._all_complete = bool(self._complete.all())


class DynamicGraph:
    """Turns systems whose atoms move into a `Batch`; pairs are searched anew only where they may have changed.

    A batch holds the pairs within the cutoff alone, in an order that depends on nothing but the pairs: its bits are
    the same for every skin and whatever came before. Its positions are those from the centre of each system: single
    precision would round coordinates far from the origin. It has no labels.

    Args:
        cutoff: Å. skin: Å, see `VerletList`; 0 searches whenever atoms have moved.
        dtype, device: of the batches.
    """

    def __init__(self, cutoff: float, *, skin: float, dtype: torch.dtype, device: torch.device | str) -> None:
        if not 0 <= skin < np.inf:
            raise ConfigError(f"skin: expected a number of Å >= 0, got {skin}")
        self.cutoff, self.skin, self.dtype, self.device = cutoff, skin, dtype, torch.device(device)
        self._systems: tuple[bytes, ...] | None = None  # numbers, cells, pbc and ptr that the list belongs to

    def batch(
        self, numbers: ArrayLike, positions: ArrayLike, *, cells: ArrayLike, pbc: ArrayLike, ptr: ArrayLike
    ) -> Batch:
        """Return S systems as a batch: atomic numbers (N,), positions (N, 3), cells (S, 3, 3) in Å, pbc (S, 3) and ptr.

        Raises DataError for no atoms, coordinates that are not finite, coincident atoms, or a cell that cannot be
        periodic as it is said to be.
        """
        positions = self._tensor(positions, torch.float64)
        # One number decides in nearly all cases, and small molecules take no longer than a few operations of torch.
        if not math.isfinite(positions.sum().item()) and not positions.isfinite().all():
            atom = int((~positions.isfinite()).any(-1).nonzero()[0])
            raise DataError(f"the position of atom {atom} is not finite; the simulation may have exploded")
        # Copies, because what a caller changes in place must be seen as a change.
        systems = tuple(map(_bytes, (numbers, cells, pbc, ptr)))
        if systems != self._systems:
            self._systems = None
            self._begin(numbers, positions, cells, pbc, ptr)
            self._systems = systems
        pairs, distances = self._list.near(positions)
        if len(distances) and distances.min().item() < COINCIDENT:
            closest = distances.argmin()
            start = self._constant["ptr"][pairs.system[closest]]
            atoms = [int(side[closest] - start) for side in (pairs.first, pairs.second)]
            raise DataError(f"atoms {atoms[0]} and {atoms[1]} coincide")
        system = self._constant["system"]
        centres = positions.new_zeros(len(self._n_atoms), 3).index_add_(0, system, positions) / self._n_atoms
        centred = positions - (centres if len(centres) == 1 else centres.index_select(0, system))
        return Batch(
            positions=centred.to(self.dtype),
            first=pairs.first,
            second=pairs.second,
            shifts=pairs.shifts.to(self.dtype),
            **self._constant,
        )

    def _tensor(self, values: ArrayLike, dtype: torch.dtype) -> Tensor:
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.as_tensor(values)
        return tensor.to(self.device, dtype)

    def _begin(self, numbers: ArrayLike, positions: Tensor, cells: ArrayLike, pbc: ArrayLike, ptr: ArrayLike) -> None:
        """Take on other systems."""
        numbers, ptr = (self._tensor(values, torch.int64).clone() for values in (numbers, ptr))
        cells, pbc = self._tensor(cells, torch.float64).clone(), self._tensor(pbc, torch.bool).clone()
        self._n_atoms = ptr.diff().unsqueeze(-1)
        if len(numbers) == 0 or (self._n_atoms == 0).any():
            raise DataError("there are no atoms")
        for cell, periodic in zip(cells.cpu().numpy(), pbc.cpu().numpy(), strict=True):
            if not np.isfinite(cell).all():
                raise DataError("the cell is not finite; the simulation may have exploded")
            if (periodic & ~cell.any(axis=1)).any():
                raise DataError("a periodic direction has no lattice vector; set the cell, or pbc to false")
            if periodic.any() and np.isclose(np.linalg.det(finder_cell(cell, periodic)), 0):
                raise DataError("the cell has no volume")
        coordinates = Coordinates(positions, cells, pbc, ptr)
        self._list = VerletList(self.cutoff, coordinates, skin=self.skin, ordered=True)
        self._constant = constant(coordinates, numbers, self.dtype)


def constant(coordinates: Coordinates, numbers: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the parts of a `Batch` that stay while atoms move."""
    index = torch.arange(len(coordinates.pbc), device=coordinates.ptr.device)
    per_system = {"cells": coordinates.cells.to(dtype), "pbc": coordinates.pbc, "index": index}
    return {"numbers": numbers, "system": coordinates.system, "ptr": coordinates.ptr, **per_system}


def _bytes(values: ArrayLike) -> bytes:
    return (values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).tobytes()
