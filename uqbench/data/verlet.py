"""Neighbour lists that outlive a step: one system as a batch, again and again, while its atoms move."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from vesin import NeighborList

from uqbench.data.graph import COINCIDENT, Batch, finder_cell
from uqbench.errors import ConfigError, DataError


class VerletList:
    """Turns a system into a `Batch`; pairs up to cutoff + skin are searched anew only when they may have changed.

    A batch holds the pairs within the cutoff alone, in an order that depends on nothing but the pairs: its bits are
    the same for every skin and whatever came before. A batch has no labels.
    Source: Verlet, Phys. Rev. 159, 98 (1967).

    Args:
        cutoff: Å.
        skin: Å; no pair can have come within the cutoff unseen before an atom has moved by half of it. 0 searches
            at every call.
        dtype, device: of the batches.
    """

    def __init__(self, cutoff: float, *, skin: float, dtype: torch.dtype, device: torch.device | str) -> None:
        if not 0 <= skin < np.inf:
            raise ConfigError(f"skin: expected a number of Å >= 0, got {skin}")
        self.cutoff, self.skin, self.dtype, self.device = cutoff, skin, dtype, device
        self._system: tuple[NDArray, ...] | None = None  # numbers, cell and pbc that the list belongs to
        self._constant: dict[str, Tensor] = {}  # the parts of a batch that follow from them
        self._moved_from = np.zeros((0, 3))
        self._first = self._second = self._shifts = np.zeros(0)

    def batch(self, numbers: ArrayLike, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> Batch:
        """Return one frame as a batch: atomic numbers (N,), positions (N, 3) in Å, cell (3, 3) in Å and pbc (3,).

        Raises DataError for no atoms, coordinates that are not finite, coincident atoms, or a cell that cannot be
        periodic as it is said to be.
        """
        positions = np.asarray(positions, np.float64)
        if not np.isfinite(positions).all():
            atom = np.flatnonzero(~np.isfinite(positions).all(axis=1))[0]
            raise DataError(f"the position of atom {atom} is not finite; the simulation may have exploded")
        system = np.asarray(numbers), np.asarray(cell, np.float64), np.asarray(pbc, bool)
        if self._system is None or not all(map(np.array_equal, system, self._system)):
            self._begin(*system)
            self._search(positions)
        elif self.skin == 0 or ((positions - self._moved_from) ** 2).sum(axis=1).max() >= (self.skin / 2) ** 2:
            self._search(positions)
        vectors = positions[self._second] - positions[self._first] + self._shifts
        squares = np.einsum("ij,ij->i", vectors, vectors)
        if len(squares) and squares.min() < COINCIDENT**2:
            pair = squares.argmin()
            raise DataError(f"atoms {self._first[pair]} and {self._second[pair]} coincide")
        near = squares < self.cutoff**2
        # Far from the origin, single precision would round coordinates more than those of the frames in a data set.
        centred = positions - positions.mean(axis=0)
        return Batch(
            positions=self._tensor(centred, self.dtype),
            first=self._tensor(self._first[near]),
            second=self._tensor(self._second[near]),
            shifts=self._tensor(self._shifts[near], self.dtype),
            **self._constant,
        )

    def _tensor(self, array: NDArray, dtype: torch.dtype | None = None) -> Tensor:
        return torch.as_tensor(array, dtype=dtype, device=self.device)

    def _begin(self, numbers: NDArray, cell: NDArray, pbc: NDArray) -> None:
        """Take on another system."""
        n_atoms = len(numbers)
        if n_atoms == 0:
            raise DataError("there are no atoms")
        if not np.isfinite(cell).all():
            raise DataError("the cell is not finite; the simulation may have exploded")
        if (pbc & ~cell.any(axis=1)).any():
            raise DataError("a periodic direction has no lattice vector; set the cell, or pbc to false")
        if pbc.any() and np.isclose(np.linalg.det(finder_cell(cell, pbc)), 0):
            raise DataError("the cell has no volume")
        # Copies, because what a caller changes in place must be seen as a change.
        self._system = numbers.copy(), cell.copy(), pbc.copy()
        self._constant = {
            "numbers": self._tensor(self._system[0].astype(np.int64)),
            "system": torch.zeros(n_atoms, dtype=torch.int64, device=self.device),
            "cells": self._tensor(self._system[1][None], self.dtype),
            "pbc": self._tensor(self._system[2][None]),
            "ptr": torch.tensor([0, n_atoms], device=self.device),
            "index": torch.zeros(1, dtype=torch.int64, device=self.device),
        }

    def _search(self, positions: NDArray) -> None:
        """Find all pairs up to cutoff + skin, ordered by atoms and image."""
        _, cell, pbc = self._system
        finder = NeighborList(cutoff=self.cutoff + self.skin, full_list=False)
        first, second, image = finder.compute(positions, finder_cell(cell, pbc), pbc, quantities="ijS")
        first, second, image = (array.astype(np.int64) for array in (first, second, image))
        # The finder writes each pair in one way (i <= j) but in an order that depends on what else it has found.
        order = np.lexsort((*image.T[::-1], second, first))
        self._first, self._second, image = first[order], second[order], image[order]
        # Term by term: a matrix product may round a row differently when there are other rows.
        self._shifts = image[:, :1] * cell[0] + image[:, 1:2] * cell[1] + image[:, 2:] * cell[2]
        self._moved_from = positions.copy()
