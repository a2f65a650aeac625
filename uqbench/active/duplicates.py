"""Geometries that are the same up to rotation, reflection, translation and exchange of like atoms.

Two structures are the same when like atoms can be paired so that, after the best superposition (least squares over
rotations, reflections and translations), no atom is further than `tolerance` from its partner. Unlike an average over
the atoms, this does not let one moved atom of a large structure pass.

Sorted distances alone would be quicker, but different structures can share them (homometric pairs). Here distances
only rule pairs out, by bounds that cannot err, and what is left is superposed. For molecules the answer is exact. For
periodic structures the superpositions are those that map one lattice onto the other by an integer matrix of entries
-1, 0, 1: all there are between reduced cells, and in particular between equal cells without extreme skew. Rotations
about the axis of a structure that is periodic along one direction only are not searched.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
from ase.geometry import complete_cell
from numpy.typing import NDArray
from vesin import NeighborList

from uqbench.data.structures import Structures

# Reach (Å) and number of an atom's nearest neighbours of each element that its fingerprint holds: they decide how much
# is ruled out before the superposition, never the answer.
REACH, NEAREST = 6.0, 8
# Rounding of coordinates and distances, Å.
SLACK = 1e-9
# Above it, a pairing of atoms by nearness would be ambiguous: atoms stand at least 0.3 Å apart.
LARGEST_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """One structure: numbers (n,), positions (n, 3) Å, cell (3, 3) Å with unit vectors where not periodic, pbc (3,)."""

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]

    @classmethod
    def of(cls, structures: Structures) -> list[Geometry]:
        """Cut a set into its frames."""
        return [
            cls(
                structures.numbers[a:b],
                structures.positions[a:b],
                np.asarray(complete_cell(np.where(pbc[:, None], cell, 0.0))),
                pbc,
            )
            for a, b, cell, pbc in zip(
                structures.ptr[:-1], structures.ptr[1:], structures.cells, structures.pbc, strict=True
            )
        ]

    @functools.cached_property
    def kind(self) -> bytes:
        """Composition and periodic directions: different ones are never the same."""
        return np.sort(self.numbers).tobytes() + self.pbc.tobytes()

    def fingerprints(self) -> NDArray[np.float64]:
        """Distances of each atom to its nearest of each element, ascending, (n, elements · NEAREST), at most REACH.

        When no atom moves by more than t, no entry changes by more than 2 t.
        """
        elements, element = np.unique(self.numbers, return_inverse=True)
        finder = NeighborList(cutoff=REACH, full_list=True)
        i, j, distance = finder.compute(self.positions, self.cell, self.pbc, quantities="ijd")
        row = i.astype(np.int64) * len(elements) + element[j]
        order = np.lexsort((distance, row))
        row, distance = row[order], distance[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        table = np.full((len(self.numbers) * len(elements), NEAREST), REACH)
        table[row[rank < NEAREST], rank[rank < NEAREST]] = distance[rank < NEAREST]
        return table.reshape(len(self.numbers), -1)

    @functools.cached_property
    def descriptor(self) -> NDArray[np.float64]:
        """The columns of the fingerprints, each sorted over the atoms of an element, whatever their order.

        Sorting keeps the bound: when no atom moves by more than t, no entry changes by more than 2 t.
        """
        table = self.fingerprints()
        return np.concatenate([np.sort(table[self.numbers == z], axis=0).ravel() for z in np.unique(self.numbers)])

    @functools.cached_property
    def distances(self) -> NDArray[np.float64]:
        """Distances of all pairs of atoms without images, (n, n)."""
        return np.linalg.norm(self.positions[:, None] - self.positions[None], axis=-1)


class Seen:
    """The geometries seen so far, to be asked whether another one is among them.

    Args:
        tolerance: largest distance of two atoms that count as the same, Å, at most LARGEST_TOLERANCE.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._kinds: dict[bytes, list[tuple[Geometry, object]]] = {}

    def add(self, geometry: Geometry, label: object) -> None:
        """Remember a geometry under a label."""
        self._kinds.setdefault(geometry.kind, []).append((geometry, label))

    def find(self, geometry: Geometry) -> object | None:
        """Return the label of the first geometry that is the same as this one, or None."""
        for other, label in self._kinds.get(geometry.kind, []):
            if same(geometry, other, self.tolerance):
                return label
        return None


def same(a: Geometry, b: Geometry, tolerance: float) -> bool:
    """Whether two geometries are the same to `tolerance` Å, as the module's docstring defines it."""
    bound = 2 * tolerance + SLACK
    if a.kind != b.kind or np.abs(a.descriptor - b.descriptor).max() > bound:
        return False
    matches = np.abs(a.fingerprints()[:, None] - b.fingerprints()[None]).max(axis=-1) <= bound
    allowed = matches & (a.numbers[:, None] == b.numbers[None])
    if not allowed.any(axis=1).all():
        return False
    if a.pbc.any():
        return _same_crystal(a, b, allowed, tolerance)
    return any(
        _deviation(a.positions, b.positions[partner]) <= tolerance + SLACK
        for partner in _pairings(a.distances, b.distances, allowed, bound)
    )


def _deviation(x: NDArray, y: NDArray) -> float:
    """Return the largest distance of paired points (n, 3) after the best rotation or reflection (Kabsch 1976)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    u, _, vt = np.linalg.svd(x.T @ y)
    return float(np.linalg.norm(x @ (u @ vt) - y, axis=1).max())


def _pairings(a: NDArray, b: NDArray, allowed: NDArray[np.bool_], bound: float) -> Iterator[NDArray[np.int64]]:
    """Yield every pairing of atoms (n,), partner in b of each atom of a, under which all distances agree to `bound`.

    a, b: distances (n, n); allowed (n, n). If no atom is further than t from its partner, no two distances differ by
    more than 2 t, so with that bound no pairing of interest is left out.
    """
    n = len(a)
    order = np.argsort(allowed.sum(axis=1), kind="stable")
    partner = np.full(n, -1)
    free = np.ones(n, bool)

    def choices(k: int) -> Iterator[int]:
        placed = order[:k]
        fits = np.abs(b[:, partner[placed]] - a[order[k], placed]) <= bound
        return iter(np.flatnonzero(allowed[order[k]] & free & fits.all(axis=1)).tolist())

    # A stack instead of recursion: its depth is the number of atoms.
    stack = [choices(0)]
    while stack:
        atom = order[len(stack) - 1]
        if partner[atom] >= 0:
            free[partner[atom]] = True
        partner[atom] = next(stack[-1], -1)
        if partner[atom] < 0:
            stack.pop()
        elif len(stack) == n:
            yield partner.copy()
        else:
            free[partner[atom]] = False
            stack.append(choices(len(stack)))


def _same_crystal(a: Geometry, b: Geometry, allowed: NDArray[np.bool_], tolerance: float) -> bool:
    fraction = np.linalg.solve(a.cell.T, a.positions.T).T
    target = np.linalg.solve(b.cell.T, b.positions.T).T
    # The atom with the fewest possible partners fixes the translation.
    anchor = int(allowed.sum(axis=1).argmin())
    return any(
        _match(fraction @ operation, target, b, allowed, anchor, partner, tolerance)
        for operation in _lattice_maps(a, b, tolerance)
        for partner in np.flatnonzero(allowed[anchor])
    )


def _match(
    moved: NDArray, target: NDArray, b: Geometry, allowed: NDArray[np.bool_], anchor: int, partner: int, tol: float
) -> bool:
    """Whether all atoms meet, with `anchor` on `partner`: fractions (n, 3) in the cell of b."""
    moved = moved + (target[partner] - moved[anchor])
    bound = 2 * tol + SLACK
    found = np.zeros(len(moved), np.int64)
    gaps = np.zeros_like(moved)
    for start, stop in itertools.pairwise([0, min(4, len(moved)), len(moved)]):  # most misfits show in a few atoms
        gap = moved[start:stop, None] - target[None]
        gap = (gap - np.where(b.pbc, np.rint(gap), 0.0)) @ b.cell
        distance = np.where(allowed[start:stop], np.linalg.norm(gap, axis=-1), np.inf)
        nearest = distance.argmin(axis=1)
        rows = np.arange(stop - start)
        if stop > start and distance[rows, nearest].max() > bound:
            return False
        found[start:stop], gaps[start:stop] = nearest, gap[rows, nearest]
    if len(np.unique(found)) < len(found):
        return False
    return bool(np.linalg.norm(gaps - gaps.mean(axis=0), axis=1).max() <= tol + SLACK)


def _lattice_maps(a: Geometry, b: Geometry, tolerance: float) -> NDArray[np.int64]:
    """Return the integer matrices (K, 3, 3) that map fractions in the cell of a isometrically to those in that of b."""
    vectors = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    lengths = np.linalg.norm(vectors @ b.cell, axis=1)
    rows = []
    for k in range(3):
        kept = np.abs(lengths - np.linalg.norm(a.cell[k])) <= tolerance
        # A periodic direction cannot turn into one that is not.
        rows.append(vectors[kept & (vectors[:, b.pbc != a.pbc[k]] == 0).all(axis=1)])
    operations = np.array(list(itertools.product(*rows))).reshape(-1, 3, 3)
    mapped = operations @ b.cell
    edges = np.linalg.norm(mapped + np.roll(mapped, 1, axis=1), axis=-1)
    wanted = np.linalg.norm(a.cell + np.roll(a.cell, 1, axis=0), axis=1)
    fit = (np.abs(edges - wanted) <= tolerance).all(axis=1) & (np.abs(np.rint(np.linalg.det(operations))) == 1)
    return operations[fit]
