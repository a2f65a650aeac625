"""How far a structure has moved from where it started."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from ase.build import minimize_rotation_and_translation, molecule
from scipy.spatial.transform import Rotation

from uqbench.active.loop import displacements
from uqbench.data.structures import Structures

pytestmark = pytest.mark.numerics


def structures_of(frames):
    counts = [len(atoms) for atoms in frames]
    return Structures.from_arrays(
        np.concatenate([atoms.numbers for atoms in frames]),
        np.concatenate([atoms.positions for atoms in frames]),
        np.zeros(len(frames)),
        np.zeros((sum(counts), 3)),
        np.concatenate([[0], np.cumsum(counts)]),
        origin="frames",
        cells=np.stack([np.asarray(atoms.cell) for atoms in frames]),
        pbc=np.stack([atoms.pbc for atoms in frames]),
    )


def test_turning_and_drifting_is_no_displacement_but_the_rest_is():
    rng = np.random.default_rng(0)
    before, after, expected = [], [], []
    for name in ("NH3", "CH3CH2OH", "H2", "C6H6"):
        atoms = molecule(name)
        moved = atoms.copy()
        moved.positions += rng.normal(0, 0.1, moved.positions.shape)
        closest = moved.copy()
        minimize_rotation_and_translation(atoms, closest)  # ASE's, without masses
        expected.append(np.sqrt(((closest.positions - atoms.positions) ** 2).sum(axis=1).mean()))
        moved.positions = Rotation.random(random_state=1).apply(moved.positions) + 5.0
        before.append(atoms)
        after.append(moved)
    np.testing.assert_allclose(displacements(structures_of(before), structures_of(after)), expected, atol=1e-8)
    assert displacements(structures_of(before), structures_of(before)) == pytest.approx(0, abs=1e-7)


def test_a_mirror_image_is_another_place():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=0)
    mirrored = atoms.copy()
    mirrored.positions[:, 0] *= -1
    assert displacements(structures_of([atoms]), structures_of([mirrored]))[0] > 0.1


def test_one_atom_alone_goes_nowhere():
    alone = structures_of([Atoms("H", positions=[[0, 0, 0]])])
    moved = dataclasses.replace(alone, positions=alone.positions + 1.0)
    assert displacements(alone, moved).tolist() == [0.0]


def test_in_a_cell_the_nearest_image_counts():
    atoms = Atoms("Ar2", positions=[[0.1, 0, 0], [2, 2, 2]], cell=[4, 4, 4], pbc=True)
    moved = atoms.copy()
    moved.positions[0] = [3.9, 0, 0]
    assert displacements(structures_of([atoms]), structures_of([moved]))[0] == pytest.approx(0.2 / np.sqrt(2))
