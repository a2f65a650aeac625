"""Structures against ASE, and the checks that keep damaged frames out."""

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from helpers import short_training, small_method

from uqbench.data.arrays import pack
from uqbench.data.graph import GraphSet
from uqbench.data.structures import Structures, check_splits, duplicates_across, random_split
from uqbench.errors import DataError
from uqbench.models.potential import Normalisation
from uqbench.training.loop import train


def labelled(atoms, seed=0):
    rng = np.random.default_rng(seed)
    atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)))
    return atoms


def mixed_frames():
    slab = Atoms("Cu2", [[0, 0, 5], [1.8, 1.8, 6]], cell=[3.6, 3.6, 0], pbc=[True, True, False])
    frames = [molecule("NH3"), bulk("NaCl", "rocksalt", 5.6), molecule("H2O"), slab]
    return [labelled(atoms, seed) for seed, atoms in enumerate(frames)]


def mixed():
    return Structures.from_atoms(mixed_frames(), origin="mixed")


def argon(positions, **kwargs):
    """One frame of argon atoms with zero labels."""
    positions = np.asarray(positions, float)
    return Structures.from_frames(
        [18] * len(positions), positions[None], [0.0], positions[None] * 0, origin="argon", **kwargs
    )


def test_round_trip_through_an_ase_file(tmp_path):
    frames = mixed_frames()
    ase.io.write(tmp_path / "frames.traj", mixed().to_atoms())
    for before, after in zip(frames, ase.io.read(tmp_path / "frames.traj", ":"), strict=True):
        assert before.get_chemical_symbols() == after.get_chemical_symbols()
        np.testing.assert_array_equal(before.positions, after.positions)
        np.testing.assert_array_equal(before.pbc, after.pbc)
        np.testing.assert_array_equal(before.cell[:], after.cell[:])
        np.testing.assert_array_equal(before.get_forces(), after.get_forces())
        assert before.get_potential_energy() == after.get_potential_energy()


def test_forces_of_constrained_atoms_are_not_zeroed():
    atoms = labelled(molecule("NH3"))
    atoms.set_constraint(FixAtoms([0, 1, 2, 3]))
    assert not atoms.get_forces().any()
    packed = Structures.from_atoms([atoms], origin="fixed")
    np.testing.assert_array_equal(packed.forces, atoms.get_forces(apply_constraint=False))
    assert packed.forces.all()


def test_indexing_takes_whole_frames_in_the_order_given():
    structures, frames = mixed(), mixed_frames()
    chosen = structures[[3, 0, 3]]
    assert chosen.ids.tolist() == [3, 0, 3]
    for atoms, k in zip(chosen.to_atoms(), [3, 0, 3], strict=True):
        np.testing.assert_array_equal(atoms.positions, frames[k].positions)
        np.testing.assert_array_equal(atoms.get_forces(), frames[k].get_forces())
        assert atoms.get_potential_energy() == frames[k].get_potential_energy()
    assert structures[np.array([False, True, False, True])].ids.tolist() == [1, 3]
    assert structures[1:3].ids.tolist() == [1, 2]
    assert structures[-1].ids.tolist() == [3]


def test_concatenating_the_pieces_gives_the_whole():
    structures = mixed()
    joined = Structures.concatenate([structures[:2], structures[2:]])
    assert joined.sha256() == structures.sha256()
    assert joined.ids.tolist() == [0, 1, 2, 3]
    assert joined.elements == [1, 7, 8, 11, 17, 29]


@pytest.mark.parametrize("name", ["positions", "energies", "forces", "cells", "numbers", "pbc"])
def test_sha256_sees_every_array(name):
    one, other = mixed(), mixed()
    array = getattr(other, name)
    array.flat[0] = (
        not array.flat[0] if array.dtype == bool else np.nextafter(array.flat[0], 99) if name != "numbers" else 3
    )
    assert one.sha256() != other.sha256()
    assert one.sha256() == mixed().sha256()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["positions", "energies", "forces", "cells"])
def test_values_that_are_not_finite_name_the_frame(name, bad):
    arrays = {
        "positions": np.random.default_rng(0).uniform(0, 9, (3, 2, 3)),
        "energies": np.zeros(3),
        "forces": np.zeros((3, 2, 3)),
        "cells": np.tile(np.eye(3) * 10, (3, 1, 1)),
    }
    arrays[name][2, ...] = np.where(
        np.arange(arrays[name][2].size).reshape(arrays[name][2].shape) == 0, bad, arrays[name][2]
    )
    with pytest.raises(DataError, match=f"x.npz: {name} are not finite in 1 frame.*first frame 72"):
        Structures.from_frames([8, 8], **arrays, ids=[70, 71, 72], origin="x.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"forces": np.zeros((3, 1, 3))}, "forces have shape"),
        ({"forces": np.zeros((2, 2, 3))}, "forces have shape"),
        ({"energies": np.zeros((3, 1))}, "energies have shape"),
        ({"energies": np.zeros(4)}, "energies have shape"),
        ({"numbers": [8]}, "positions have shape"),
        ({"numbers": [8, 0]}, "atomic numbers"),
        ({"numbers": [8, 119]}, "atomic numbers"),
        ({"ids": [1]}, "ids have shape"),
        ({"pbc": np.ones((3, 3), bool)}, "frame 0 has a periodic direction without a lattice vector"),
        ({"cells": np.ones((3, 3, 3))}, "frame 0 has a cell without volume"),
        ({"cells": np.ones((3, 3))}, "cells have shape"),
        ({"positions": np.zeros((0, 2, 3)), "forces": np.zeros((0, 2, 3)), "energies": []}, "holds no frame"),
        ({"positions": np.zeros((3, 2, 3))}, "frame 0 has atoms 0 and 1 closer"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    good = {
        "numbers": [8, 1],
        "positions": np.random.default_rng(0).uniform(0, 9, (3, 2, 3)),
        "energies": np.zeros(3),
        "forces": np.zeros((3, 2, 3)),
    }
    Structures.from_frames(**good, origin="x")
    with pytest.raises(DataError, match=message):
        Structures.from_frames(**(good | change), origin="x")


def test_the_digest_of_labelled_frames_is_that_of_runs_already_stored():
    x = np.arange(12.0).reshape(2, 2, 3)
    structures = Structures.from_frames([18, 36], x, [1.0, 2.0], -x, cells=[np.eye(3) * 40] * 2, origin="x")
    assert structures.sha256() == "af41152e69ba2c1d175cb807cf25102c0db13153536a14ef3c92cdb2aabb0acd"


def test_frames_need_no_labels():
    frames = mixed_frames()
    bare = Structures.from_atoms(frames, origin="bare", labels="none")
    assert bare.energies is None and bare.forces is None and bare[1:].energies is None
    assert not bare.has_energies.any() and bare.has_forces.shape == (4,) and not bare.has_forces.any()
    assert all(atoms.calc is None for atoms in bare.to_atoms())
    assert len({bare.sha256(), mixed().sha256()}) == 2
    joined = Structures.concatenate([bare[:2], bare[2:]])
    assert joined.forces is None and joined.sha256() == bare.sha256()
    with pytest.raises(DataError, match=r"bare: 4 of 4 frame\(s\) have no energy, first frame 0"):
        bare.require_labels()
    assert mixed().require_labels().has_forces.all()
    batch = GraphSet(bare, 3.0, dtype=torch.float64).batch([2, 0])
    assert len(batch) == 2 and batch.energies is None and batch.to("cpu").forces is None
    x = np.arange(12.0).reshape(2, 2, 3)
    assert Structures.from_frames([18, 36], x, origin="x").energies is None


def test_some_frames_may_have_labels():
    frames = mixed_frames()
    frames[1].calc = None
    del frames[3].calc.results["forces"]
    with pytest.raises(DataError, match="frame 1 has no energy"):
        Structures.from_atoms(frames, origin="some")
    some = Structures.from_atoms(frames, origin="some", labels="some")
    assert some.has_energies.tolist() == [True, False, True, True]
    assert some.has_forces.tolist() == [True, False, True, False]
    assert [atoms.calc is None for atoms in some.to_atoms()] == [False, True, False, False]
    assert some[[2]].require_labels().energies == mixed().energies[2]
    with pytest.raises(DataError, match=r"some: 1 of 2 frame\(s\) have no forces, first frame 3"):
        some[[0, 3]].require_labels()
    bare = Structures.from_atoms(frames[:2], origin="bare", labels="none")
    joined = Structures.concatenate([bare, mixed()[2:]])
    assert joined.has_energies.tolist() == joined.has_forces.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(joined.forces[joined.ptr[2] :], mixed()[2:].forces)


@pytest.mark.parametrize(
    ("energies", "forces", "message"),
    [
        ([np.nan, 1.0], None, None),
        ([np.nan, np.inf], None, "energies are not finite in 1 frame.*first frame 1"),
        (None, [[np.nan] * 3, [np.nan, np.nan, 0.0]], "forces are not finite in 1 frame.*first frame 0"),
        (None, [[0.0, np.nan, 0.0], [0.0] * 3], "forces are not finite in 1 frame.*first frame 0"),
    ],
)
def test_declared_gaps_are_whole_frames(energies, forces, message):
    x = 3 * np.arange(12.0).reshape(2, 2, 3)
    forces = None if forces is None else np.stack([forces, np.zeros((2, 3))])
    if message is None:
        found = Structures.from_frames([18, 36], x, energies, forces, origin="x", partial=True)
        assert found.has_energies.tolist() == [False, True]
        with pytest.raises(DataError, match="energies are not finite"):
            Structures.from_frames([18, 36], x, energies, forces, origin="x")
    else:
        with pytest.raises(DataError, match=message):
            Structures.from_frames([18, 36], x, energies, forces, origin="x", partial=True)


def test_what_needs_labels_says_so(tmp_path):
    bare = Structures.from_atoms([molecule("CH4"), molecule("H2O")], origin="bare", labels="none")
    method = small_method(Structures.from_atoms([labelled(molecule("CH3OH"))], origin="x"), "painn_small", "mve")
    batch = GraphSet(bare, 5.0, dtype=torch.float64).batch([0, 1])
    with pytest.raises(DataError, match="a loss needs frames with energies and forces"):
        method.losses(batch, lambda residuals: residuals.abs().mean(-1))
    for needs in (
        lambda: Normalisation.fit(bare),
        lambda: pack(bare, {}),
        lambda: train(method, bare, bare, short_training(), 0, tmp_path),
    ):
        with pytest.raises(DataError, match="bare: 2 of 2 .*have no energy"):
            needs()


def test_labels_that_are_missing_or_misshapen_are_named():
    atoms = molecule("NH3")
    with pytest.raises(DataError, match="frame 0 has no energy: a calculator result 'energy' is missing"):
        Structures.from_atoms([atoms], origin="x")
    atoms.info["E"], atoms.arrays["F"] = -1.0, np.zeros((4, 3))
    with pytest.raises(
        DataError, match=r"frame 0 has no forces: 'grad' is missing \(keys there: F, numbers, positions"
    ):
        Structures.from_atoms([atoms], origin="x", energy_key="E", force_key="grad")
    atoms.info["E"] = "low"
    with pytest.raises(DataError, match="energy under 'E' are not numbers"):
        Structures.from_atoms([atoms], origin="x", energy_key="E", force_key="F")
    atoms.info["E"], atoms.arrays["F"] = 0.0, np.zeros((4, 2))
    with pytest.raises(DataError, match=r"forces under 'F' have shape \(4, 2\)"):
        Structures.from_atoms([atoms], origin="x", energy_key="E", force_key="F")


def test_overlaps_are_found_across_any_face_of_a_skewed_cell():
    rng = np.random.default_rng(1)
    found = {True: 0, False: 0}
    for k in range(400):
        cell = np.eye(3) * rng.uniform(2, 4, 3) + rng.uniform(-0.8, 0.8, (3, 3))
        pbc = rng.random(3) < 0.8
        # The second atom is close to an image of the first, which may lie beyond any face, edge or corner.
        first = (rng.integers(-1, 2, 3) + rng.normal(0, 0.03, 3) if k % 2 else rng.uniform(-1, 2, 3)) @ cell
        step = rng.normal(size=3)
        second = first + step / np.linalg.norm(step) * rng.uniform(0.1, 0.5) + (rng.integers(-2, 3, 3) * pbc) @ cell
        atoms = Atoms("Ar2", [first, second], cell=cell, pbc=pbc)
        overlap = atoms.get_distance(0, 1, mic=True) < 0.3
        found[bool(overlap)] += 1
        if overlap:
            with pytest.raises(DataError, match="frame 0 has atoms 0 and 1 closer"):
                argon([first, second], cells=cell[None], pbc=pbc[None])
        else:
            argon([first, second], cells=cell[None], pbc=pbc[None])
    assert min(found.values()) > 50


def test_overlap_between_frames_does_not_count():
    positions = np.array([[0.0, 0, 0], [2, 0, 0]])
    Structures.from_frames([18, 18], np.stack([positions, positions]), [0, 0], np.zeros((2, 2, 3)), origin="x")


def rotation(seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q  # proper or improper: mirrored copies have the same energy too


@pytest.mark.parametrize("seed", range(4))
def test_moved_copies_are_duplicates_and_displaced_ones_are_not(seed):
    x = molecule("CH3CH2OH").positions
    copy, other, swapped = (x + 1.5) @ rotation(seed), x.copy(), x.copy()
    other[4, 1] += 1e-3
    swapped[[0, 1]] = x[[1, 0]]
    numbers = molecule("CH3CH2OH").numbers
    frames = np.stack([other, x, copy, swapped, x, np.round(copy, 5)])
    structures = Structures.from_frames(numbers, frames, np.zeros(6), np.zeros_like(frames), origin="x")
    # Atoms 0 and 1 are both carbon; their exchange makes another geometry unless the molecule is symmetric.
    assert structures.geometry_groups().tolist() == [0, 1, 1, 3, 1, 1]


def test_duplicates_in_a_periodic_cell():
    rng = np.random.default_rng(0)
    cell = np.array([[4.0, 0.3, 0], [0, 5, 0.5], [1, 0, 6]])
    x = np.array([[0.1, 0.2, 0.3], [0.6, 0.5, 0.4], [0.9, 0.1, 0.7]]) @ cell
    turn = rotation(3)
    moved = x + rng.integers(-2, 3, (3, 3)) @ cell + [0.3, -0.2, 1.0]
    cells = np.stack([cell, cell @ turn, cell, cell * 1.01])
    positions = np.stack([x, moved @ turn, x + [[0, 0, 0], [0, 0, 0.01], [0, 0, 0]], x])
    structures = Structures.from_frames(
        [8, 8, 14], positions, np.zeros(4), np.zeros((4, 3, 3)), cells=cells, origin="x"
    )
    assert structures.geometry_groups().tolist() == [0, 0, 2, 3]


def test_all_distances_count_not_only_those_to_the_first_atom():
    angles = np.deg2rad([100, 110, 100])
    x = np.zeros((3, 3, 3))
    x[:, 1, 0] = 1
    x[:, 2, 0], x[:, 2, 1] = np.cos(angles), np.sin(angles)
    structures = Structures.from_frames([8, 1, 1], x, np.zeros(3), x * 0, origin="x")
    assert structures.geometry_groups().tolist() == [0, 1, 0]


def test_the_lattice_counts_even_where_no_distance_sees_it():
    cube, sheared = np.eye(3) * 4, np.eye(3) * 4
    sheared[1] = [1, np.sqrt(15), 0]  # of the same length
    cells = np.stack([cube, cube * 1.01, sheared, cube])
    x = np.zeros((4, 1, 3))
    structures = Structures.from_frames([18], x, np.zeros(4), x, cells=cells, origin="x")
    assert structures.geometry_groups().tolist() == [0, 1, 2, 0]


def test_equal_positions_of_other_elements_are_no_duplicates():
    frames = [labelled(Atoms(symbols, [[0, 0, 0], [0, 0, 1.2]])) for symbols in ("CO", "N2", "CO")]
    structures = Structures.from_atoms(frames, origin="x")
    assert structures.geometry_groups().tolist() == [0, 1, 0]
    splits = {"train": np.array([0, 1]), "test": np.array([2])}
    assert duplicates_across(structures, splits) == [("train", 0, "test", 2)]
    assert duplicates_across(structures, {"train": np.array([0, 2]), "test": np.array([1])}) == []


def test_random_split_is_disjoint_seeded_and_of_the_sizes_asked():
    splits = random_split(100, {"train": 60, "validation": 15, "test": 25}, seed=3)
    assert [len(frames) for frames in splits.values()] == [60, 15, 25]
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(100))
    again, other = (random_split(100, {"train": 60, "validation": 15, "test": 25}, seed=s) for s in (3, 4))
    assert all(np.array_equal(splits[name], again[name]) for name in splits)
    assert not np.array_equal(splits["test"], other["test"])
    with pytest.raises(DataError, match="need 101 frames"):
        random_split(100, {"train": 101}, seed=3)


@pytest.mark.parametrize(
    "splits, message",
    [
        ({"train": [0, 1], "test": [5]}, "points at frame 5, but the data set has frames 0..4"),
        ({"train": [-1, 1], "test": [2]}, "points at frame -1"),
        ({"train": [0, 0], "test": [2]}, "names a frame twice"),
        ({"train": [0, 1], "test": [1]}, "'train' and 'test' share frame 1"),
        ({"train": [0, 1], "test": []}, "'test' is empty"),
    ],
)
def test_splits_that_do_not_fit(splits, message):
    with pytest.raises(DataError, match=message):
        check_splits({name: np.array(frames, int) for name, frames in splits.items()}, 5)
