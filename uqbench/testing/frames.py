"""Frames that parts are checked on: distorted molecules, a crystal, and the embedded ethanol."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.spatial.transform import Rotation

from uqbench import config
from uqbench.data.structures import Structures

# Elements of the frames that backbones are checked on.
ELEMENTS = (1, 6, 7, 8, 12)
ETHANOL = {
    "_target_": "uqbench.data.sources.quickstart.Quickstart",
    **{"n_train": 30, "n_validation": 10, "n_test": 20, "block": 1, "split_seed": 0},
}
ROTATION = Rotation.from_euler("xyz", [0.4, 1.3, -2.0]).as_matrix()
NORMAL = np.array([[2.0, -1.0, 2.0]]) / 3
REFLECTION = np.eye(3) - 2 * NORMAL.T @ NORMAL


def unlabelled(*frames: Atoms) -> Structures:
    """Return frames without labels, for predictions."""
    return Structures.from_atoms(list(frames), origin="frames of a check", labels="none")


def rattled(frames: Sequence[Atoms], size: float, seed: int = 0) -> list[Atoms]:
    """Return the frames with normal displacements of that size, Å, so that nothing is symmetric."""
    generator = np.random.default_rng(seed)
    moved = [atoms.copy() for atoms in frames]
    for atoms in moved:
        atoms.positions += generator.normal(0, size, atoms.positions.shape)
    return moved


@functools.cache
def varied() -> Structures:
    """Return three distorted molecules, and a crystal whose cell is 3.0 Å wide: less than any cutoff."""
    molecules = [molecule(name) for name in ("CH3CH2OH", "H2O", "CH3CONH2")]
    return unlabelled(*rattled([*molecules, bulk("MgO", "rocksalt", a=4.3)], 0.05))


@functools.cache
def ethanol() -> Structures:
    """Return sixty frames of the embedded trajectories of ethanol, spread over all of them, with labels."""
    structures = config.build(OmegaConf.create(ETHANOL), slot="dataset").load()
    return structures[:: len(structures) // 60][:60]


def moved(structures: Structures, matrix: NDArray, shift: Sequence[float] = (0.0, 0.0, 0.0)) -> Structures:
    """Return the structures rotated or mirrored by a matrix (3, 3) and then shifted, Å."""
    return dataclasses.replace(
        structures, positions=structures.positions @ matrix.T + np.asarray(shift), cells=structures.cells @ matrix.T
    )


def permutation(structures: Structures, seed: int = 0) -> NDArray[np.int64]:
    """Return an order of all atoms (N,) that mixes those of each structure and leaves the structures in order."""
    generator = np.random.default_rng(seed)
    starts = zip(structures.ptr, structures.n_atoms, strict=False)
    return np.concatenate([start + generator.permutation(n) for start, n in starts])


def permuted(structures: Structures, order: NDArray[np.int64]) -> Structures:
    """Return the structures with their atoms, and what is known of each, in that order."""
    fields = {name: getattr(structures, name) for name in ("numbers", "positions", "forces")}
    return dataclasses.replace(
        structures, **{name: None if array is None else array[order] for name, array in fields.items()}
    )


def strained(atoms: Atoms, component: tuple[int, int], size: float) -> Atoms:
    """Return the atoms and their cell under a symmetric strain of one component of that size."""
    deformation = np.eye(3)
    deformation[component] += size / 2
    deformation[component[::-1]] += size / 2
    copy = atoms.copy()
    copy.set_cell(atoms.cell @ deformation, scale_atoms=False)
    copy.positions = atoms.positions @ deformation
    return copy
