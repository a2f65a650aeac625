"""Labels that a data set already has, for geometries that are in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from numpy.typing import NDArray
from pydantic import PositiveFloat

from uqbench.config.annotations import UnitInterval
from uqbench.data.sources.base import Dataset
from uqbench.data.structures import Structures
from uqbench.oracles.base import Failure, Label, Labels, Oracle, frames_of
from uqbench.oracles.plausibility import KnownLabels


class Replay(Oracle):
    """Looks geometries up in a data set; nothing is computed, so there are no worker processes and no cache.

    Molecules are found shifted, rotated and mirrored, with the forces turned accordingly; periodic frames only
    shifted, in the same cell. Atoms must stand in the same order. A geometry that is not there is a Failure.

    Args:
        dataset: what to look in. tolerance: largest distance of an atom from that of the data set, Å.
        max_failed: see `Engine`.
    """

    def __init__(self, *, dataset: Dataset, tolerance: PositiveFloat, max_failed: UnitInterval) -> None:
        self.dataset, self.tolerance, self.max_failed = dataset, tolerance, max_failed
        self._known: dict[bytes, list[int]] | None = None

    def label(self, frames: Sequence[Atoms] | Structures, known: KnownLabels | None = None) -> Labels:
        """Look frames up; `known` labels judge nothing here. Raises DataError when the data set cannot be loaded."""
        if self._known is None:
            self._load()
        frames = frames_of(frames)
        return Labels(frames, [self._look_up(atoms) for atoms in frames], 0, self.max_failed)

    def _load(self) -> None:
        self._structures = s = self.dataset.load()
        self._known = {}
        for frame, (start, end) in enumerate(zip(s.ptr[:-1], s.ptr[1:], strict=True)):
            self._known.setdefault(_kind(s.numbers[start:end], s.pbc[frame]), []).append(frame)

    def _look_up(self, atoms: Atoms) -> Label | Failure:
        s = self._structures
        candidates = np.array(self._known.get(_kind(atoms.numbers, atoms.pbc), []), np.int64)
        missing = Failure(f"no frame of {s.origin} has this geometry to {self.tolerance:g} Å")
        if len(candidates) == 0:
            return missing
        owned = s.ptr[candidates][:, None] + np.arange(len(atoms))
        if atoms.pbc.any():
            distances, turns = self._shifted(atoms, s.positions[owned], s.cells[candidates])
        else:
            distances, turns = _superimposed(atoms.positions, s.positions[owned])
        best = int(np.argmin(distances))
        if not distances[best] <= self.tolerance:  # also when a position is not finite
            return missing
        return Label(float(s.energies[candidates[best]]), s.forces[owned[best]] @ turns[best])

    def _shifted(self, atoms: Atoms, known: NDArray, cells: NDArray) -> tuple[NDArray, NDArray]:
        """Distances (c,) to periodic candidates (c, n, 3) in the same cell; infinite in any other."""
        distances = np.full(len(known), np.inf)
        # Along a direction that is not periodic the lattice vector is of no consequence.
        same = (np.abs(cells - np.asarray(atoms.cell))[:, atoms.pbc] <= self.tolerance).all(axis=(1, 2))
        for i in np.flatnonzero(same):
            moved = atoms.positions - known[i]
            # The first atoms are put on each other, then the rest of the shift is taken out of what remains.
            vectors, _ = find_mic(moved - moved[0], atoms.cell, atoms.pbc)
            distances[i] = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).max()
        return distances, np.broadcast_to(np.eye(3), (len(known), 3, 3))


def _kind(numbers: NDArray, pbc: NDArray) -> bytes:
    return np.asarray(numbers, np.int64).tobytes() + np.asarray(pbc, bool).tobytes()


def _superimposed(positions: NDArray, known: NDArray) -> tuple[NDArray, NDArray]:
    """Largest distance of an atom to its partner (c,), and rotations or reflections (c, 3, 3) from `known` (c, n, 3).

    The orthogonal Procrustes problem (Kabsch, Acta Cryst. A 32, 922 (1976)), with reflections: they keep the energy.
    """
    if not np.isfinite(positions).all():
        return np.full(len(known), np.inf), np.zeros((len(known), 3, 3))
    centred = known - known.mean(axis=1, keepdims=True)
    target = positions - positions.mean(axis=0)
    u, _, vt = np.linalg.svd(np.swapaxes(centred, 1, 2) @ target)
    turns = u @ vt
    return np.linalg.norm(centred @ turns - target, axis=-1).max(axis=-1), turns
