"""Is a geometry physical: atoms not on top of each other, and nothing flown apart."""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from uqbench.data.geometry import with_near_images
from uqbench.data.structures import Structures


def close_pairs(structures: Structures, limit: float) -> tuple[NDArray, NDArray, NDArray]:
    """Return all pairs of atoms, images included, closer than `limit` times the sum of their covalent radii.

    Gives the two atoms (K,), counted through all structures, and their distance in units of that sum, (K,). Radii of
    Cordero et al., Dalton Trans. 2832 (2008), as in ASE.
    """
    radii = covalent_radii[structures.numbers]
    owner = np.repeat(np.arange(len(structures)), structures.n_atoms)
    depth = 2 * limit * radii.max()
    atoms, points = with_near_images(structures.positions, structures.cells, structures.pbc, owner, depth)
    # Offsetting the structures along a fourth axis lets one tree search all of them at once.
    tree = cKDTree(np.column_stack([points, owner[atoms] * (2 * depth)]))
    i, j = tree.query_pairs(depth, output_type="ndarray").T
    first, second = atoms[i], atoms[j]
    ratio = np.linalg.norm(points[i] - points[j], axis=1) / (radii[first] + radii[second])
    close = ratio < limit
    return first[close], second[close], ratio[close]


def closest_contacts(structures: Structures, limit: float) -> NDArray[np.float64]:
    """Return for each structure the smallest distance of two atoms in units of the sum of their covalent radii, (S,).

    Infinite where none is below `limit`.
    """
    owner = np.repeat(np.arange(len(structures)), structures.n_atoms)
    closest = np.full(len(structures), np.inf)
    first, _, ratio = close_pairs(structures, limit)
    np.minimum.at(closest, owner[first], ratio)
    return closest


def count_pieces(structures: Structures, limit: float) -> NDArray[np.int64]:
    """Return into how many pieces each structure falls, (S,).

    A piece is held together by pairs closer than `limit` times the sum of their covalent radii.
    """
    n = len(structures.numbers)
    first, second, _ = close_pairs(structures, limit)
    _, piece = connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(n, n)), directed=False)
    return np.array([len(np.unique(piece[a:b])) for a, b in zip(structures.ptr, structures.ptr[1:], strict=False)])
