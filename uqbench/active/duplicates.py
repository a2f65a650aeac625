"""Geometries that are the same up to rotation, reflection, translation and exchange of like atoms.

Mirror images count as the same: their energies are equal and their forces each other's mirror images, so the label of
one says nothing that the other's does not.

Geometries are compared by the distances of each atom to those of each element around it, in ascending order (pointwise
distance distributions: Widdowson and Kurlin, NeurIPS 2022). Of periodic structures that decides, whatever cell they are
given in: they are the same when like atoms can be paired so that no distance of a pair differs by more than the
tolerance. In networks and slabs (oxides, silica, metals) a superposition would agree: the largest difference of two
distances was 0.6 to 2 times the largest displacement, for every kind of displacement tried. Not so in a sheet one atom
thick: the distances do not see small steps out of its plane.

Nor do they in molecules near a planar or linear geometry, and there are different molecules with equal distances. Of
the proposals of an attack on ammonia, distances alone called pairs the same at 0.02 Å that were 0.08 Å apart. Molecules
with equal distances are therefore superposed, and are the same when no atom is then further than the tolerance from its
partner.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from ase.geometry import complete_cell
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from vesin import NeighborList

from uqbench.data.structures import Structures

# How far an atom's distances reach, Å, and how many of them to each element count: the stackings of close-packed metals
# differ from the nineteenth neighbour on.
REACH, NEAREST = 6.0, 32
# Of them for the descriptors, by which pairs are sought: a few rule out nearly all.
NEAREST_SOUGHT = 4
# Rounding of coordinates and distances, Å.
SLACK = 1e-9
# Above it, a pairing of atoms by nearness would be ambiguous: atoms stand at least 0.3 Å apart.
LARGEST_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Configuration:
    """One structure, its atoms in the order of their elements.

    numbers (n,), positions (n, 3) Å, cell (3, 3) Å with unit vectors where it is not periodic, pbc (3,).
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]

    @classmethod
    def of(cls, structures: Structures) -> list[Configuration]:
        """Cut a set into its frames."""
        s = structures
        order = np.lexsort((s.numbers, np.repeat(np.arange(len(s)), s.n_atoms)))
        numbers, positions = s.numbers[order], s.positions[order]
        return [
            cls(numbers[a:b], positions[a:b], np.asarray(complete_cell(np.where(pbc[:, None], cell, 0.0))), pbc)
            for a, b, cell, pbc in zip(s.ptr[:-1], s.ptr[1:], s.cells, s.pbc, strict=True)
        ]

    @property
    def kind(self) -> bytes:
        """Composition and periodic directions: different ones are never the same."""
        return self.numbers.tobytes() + self.pbc.tobytes()

    @functools.cached_property
    def distances(self) -> NDArray[np.float64]:
        """Distances of each atom to its nearest of each element, ascending, (n, elements, NEAREST), at most REACH.

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
        return table.reshape(len(self.numbers), len(elements), NEAREST)

    def descriptor(self) -> NDArray[np.float64]:
        """The columns of `distances`, each sorted over the atoms of an element, and the edge of a cube of equal volume.

        Sorting keeps the bound: when no atom moves by more than t, no entry changes by more than 2 t.
        """
        first = np.unique(self.numbers, return_index=True)[1][1:]
        columns = np.split(self.distances[:, :, :NEAREST_SOUGHT], first)
        edge = np.abs(np.linalg.det(self.cell)) ** (1 / max(1, self.pbc.sum()))
        return np.concatenate([*(np.sort(part, axis=0).ravel() for part in columns), [edge]])


def first_same(geometries: Sequence[Configuration], known: int, tolerance: float) -> NDArray[np.int64]:
    """Return for every geometry the index of the first one before it that is the same, or its own, (S,).

    The first `known` are not compared with each other. Of the others, one that repeats another counts no further:
    sameness is not passed on along chains. Tolerance in Å.
    """
    kinds: dict[bytes, list[int]] = {}
    for index, geometry in enumerate(geometries):
        kinds.setdefault(geometry.kind, []).append(index)
    first = np.arange(len(geometries))
    for members in map(np.array, kinds.values()):
        descriptors = cKDTree(np.stack([geometries[index].descriptor() for index in members]))
        near = descriptors.query_pairs(2 * tolerance + SLACK, p=np.inf, output_type="ndarray")
        for a, b in members[near[np.lexsort(near.T)]]:  # by the later of the two, then by the earlier
            unsettled = b >= known and first[a] == a and first[b] == b
            if unsettled and _same(geometries[a], geometries[b], tolerance):
                first[b] = a
    return first


def _same(a: Configuration, b: Configuration, tolerance: float) -> bool:
    """Whether two geometries of one kind are the same to `tolerance` Å, as the module's docstring defines it."""
    rows_a, rows_b = (geometry.distances.reshape(len(geometry.numbers), -1) for geometry in (a, b))
    difference = np.where(a.numbers[:, None] == b.numbers, cdist(rows_a, rows_b, "chebyshev"), np.inf)
    if not a.pbc.any():
        return _superposable(a.positions, b.positions, difference <= 2 * tolerance + SLACK, tolerance)
    apart = difference > tolerance + SLACK
    return not apart[linear_sum_assignment(apart)].any()


def _superposable(x: NDArray, y: NDArray, allowed: NDArray[np.bool_], tolerance: float) -> bool:
    """Whether points (n, 3) can be laid on others, each on an allowed partner, with none further than the tolerance.

    Three far points of x are laid on every triple of y with their distances, which pairs all the others. As no distance
    changes by more than 2 t when no point moves by more than t, no pairing of interest is left out.
    """
    bound = 2 * tolerance + SLACK
    distance_x, distance_y = cdist(x, x), cdist(y, y)
    i = int(allowed.sum(axis=1).argmin())
    j = int(distance_x[i].argmax())
    k = int(np.linalg.norm(np.cross(x - x[i], x[j] - x[i]), axis=1).argmax())
    p, q, r = (np.flatnonzero(allowed[corner]) for corner in (i, j, k))

    def agree(corners: tuple[int, int], rows: NDArray, columns: NDArray) -> NDArray[np.bool_]:
        return np.abs(distance_y[np.ix_(rows, columns)] - distance_x[corners]) <= bound

    fits = agree((i, j), p, q)[:, :, None] & agree((i, k), p, r)[:, None] & agree((j, k), q, r)
    for a, b, c in np.argwhere(fits):
        corners, onto = x[[i, j, k]], y[[p[a], q[b], r[c]]]
        u, _, vt = np.linalg.svd((corners - corners.mean(axis=0)).T @ (onto - onto.mean(axis=0)))
        for side in (1, -1):  # three points do not say on which side of their plane the others are
            laid = (x - corners.mean(axis=0)) @ (u * [1, 1, side]) @ vt + onto.mean(axis=0)
            partner = np.where(allowed, cdist(laid, y), np.inf).argmin(axis=1)
            if len(np.unique(partner)) == len(x) and _deviation(x, y[partner]) <= tolerance + SLACK:
                return True
    return False


def _deviation(x: NDArray, y: NDArray) -> float:
    """Return the largest distance of paired points (n, 3) after the best rotation or reflection (Kabsch 1976)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    u, _, vt = np.linalg.svd(x.T @ y)
    return float(np.linalg.norm(x @ (u @ vt) - y, axis=1).max())
