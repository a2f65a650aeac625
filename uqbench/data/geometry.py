"""Geometry of packed frames: images across periodic faces, and frames that repeat one another."""

from __future__ import annotations

import itertools

import numpy as np
from ase.geometry import complete_cell
from numpy.typing import NDArray


def with_near_images(
    positions: NDArray, cells: NDArray, pbc: NDArray, frame_of_atom: NDArray, depth: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return atom indices (K,) and points (K, 3): every atom, wrapped if periodic, and images close outside the cell.

    Positions (N, 3), cells (S, 3, 3), pbc (S, 3), frame of each atom (N,). The images lie within `depth` Å beyond the
    upper faces, so two atoms closer than `depth` across any face, edge or corner stand as close among the points.
    """
    atoms, points = [np.arange(len(positions))], [np.array(positions)]
    inside = np.flatnonzero(pbc.any(axis=1)[frame_of_atom])
    if len(inside) == 0:
        return atoms[0], points[0]
    frames, row = np.unique(frame_of_atom[inside], return_inverse=True)
    full = np.stack([complete_cell(cell) for cell in cells[frames]])
    inverses = np.linalg.inv(full)
    fractions = np.einsum("ni,nij->nj", positions[inside], inverses[row])
    fractions -= np.where(pbc[frames][row], np.floor(fractions), 0)
    points[0][inside] = np.einsum("ni,nij->nj", fractions, full[row])
    # |column k of the inverse| is one over the distance between the faces k.
    near = (fractions / np.linalg.norm(inverses, axis=1)[row] < depth) & pbc[frames][row]
    for shift in list(itertools.product((0, 1), repeat=3))[1:]:
        chosen = near[:, np.flatnonzero(shift)].all(axis=1)
        atoms.append(inside[chosen])
        points.append(points[0][inside[chosen]] + np.asarray(shift) @ full[row[chosen]])
    return np.concatenate(atoms), np.concatenate(points)


def repeated_geometries(
    numbers: NDArray, positions: NDArray, cells: NDArray, pbc: NDArray, ptr: NDArray, tolerance: float
) -> NDArray[np.int64]:
    """Return one label per frame, (S,): the first frame that has the same geometry.

    Packed arrays as in `Structures`. Two frames are the same when the same atoms in the same order have the same
    interatomic distances (nearest images) and lattice to `tolerance` Å: shifted, rotated and mirrored copies count,
    because their energy is the same; copies with like atoms exchanged do not, as sets keep the order of their atoms and
    looking for them takes some twenty times as long (`active.duplicates` does). Sameness is passed on along chains.
    """
    # Imported here: these take longer than all that a finished run needs.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    kinds: dict[bytes, list[int]] = {}
    for s in range(len(ptr) - 1):
        kinds.setdefault(numbers[ptr[s] : ptr[s + 1]].tobytes() + pbc[s].tobytes(), []).append(s)
    pairs = [np.zeros((0, 2), np.int64)]
    for members in kinds.values():
        frames = np.array(members)
        x = positions[ptr[frames][:, None] + np.arange(ptr[frames[0] + 1] - ptr[frames[0]])]
        lattices = np.where(pbc[frames][:, :, None], cells[frames], 0.0)
        edges = np.linalg.norm(np.concatenate([lattices, lattices + np.roll(lattices, 1, axis=1)], axis=1), axis=-1)
        # Distances to the first atom are a cheap necessary condition; few pairs are left for the full comparison.
        marks = np.concatenate([_nearest(x - x[:, :1], lattices), edges], axis=1)
        near = cKDTree(marks).query_pairs(tolerance, p=np.inf, output_type="ndarray")
        same = [
            np.abs(_all_pairs(x[i], lattices[i]) - _all_pairs(x[j], lattices[j])).max() <= tolerance for i, j in near
        ]
        pairs.append(frames[near[np.array(same, bool)]])
    i, j = np.concatenate(pairs).T
    n_frames = len(ptr) - 1
    _, group = connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(n_frames, n_frames)), directed=False)
    first = np.full(n_frames, n_frames)
    np.minimum.at(first, group, np.arange(n_frames))
    return first[group]


def _nearest(vectors: NDArray, lattices: NDArray) -> NDArray:
    """Return lengths (g, m) of the shortest images of vectors (g, m, 3); zero lattice vectors are not periodic."""
    if not lattices.any():
        return np.linalg.norm(vectors, axis=-1)
    vectors = vectors - np.rint(vectors @ np.linalg.pinv(lattices)) @ lattices
    shifts = (np.array(shift) @ lattices for shift in itertools.product((-1, 0, 1), repeat=3))
    return np.sqrt(np.minimum.reduce([((vectors + shift[:, None]) ** 2).sum(axis=-1) for shift in shifts]))


def _all_pairs(x: NDArray, lattice: NDArray) -> NDArray:
    return _nearest((x[:, None] - x[None]).reshape(1, -1, 3), lattice[None])
