"""Duplicates against brute force over all permutations, the physical filter, and the choice."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from helpers import built, fitted_method
from scipy.spatial.transform import Rotation

from uqbench.active.acquisition.base import Proposals, unlabelled
from uqbench.active.duplicates import Configuration, first_same
from uqbench.active.latents import structure_latents
from uqbench.active.physical import closest_contacts, count_pieces
from uqbench.active.selection import farthest_points
from uqbench.data.structures import Structures

pytestmark = pytest.mark.numerics


def pack(*frames, energies=None):
    for k, atoms in enumerate(frames):
        energy = 0.0 if energies is None else energies[k]
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((len(atoms), 3)))
    return Structures.from_atoms(frames, origin="test")


def are_same(a, b, tolerance=0.02):
    forwards, backwards = (first_same(Configuration.of(pack(*pair)), 0, tolerance)[1] == 0 for pair in ((a, b), (b, a)))
    assert forwards == backwards, "sameness has no direction"
    return forwards


def moved(atoms, rng, noise=0.0):
    """A copy with rotation, perhaps a reflection, a translation and any order of the atoms."""
    copy = atoms.copy()
    copy.positions += noise * rng.normal(size=copy.positions.shape)
    matrix = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix() * rng.choice([-1, 1])
    copy.set_cell(copy.cell @ matrix)
    copy.positions = copy.positions @ matrix + rng.normal(size=3) * 5
    return copy[rng.permutation(len(copy))]


def brute_force(a, b):
    """Smallest over all permutations of like atoms of the largest deviation after superposition."""
    best = np.inf
    for order in itertools.permutations(range(len(a))):
        order = list(order)
        if (a.numbers != b.numbers[order]).any():
            continue
        x, y = (p - p.mean(0) for p in (a.positions, b.positions[order]))
        proper, _ = Rotation.align_vectors(y, x)
        improper, _ = Rotation.align_vectors(y, -x)
        fits = [np.linalg.norm(r.apply(s * x) - y, axis=1) for r, s in ((proper, 1), (improper, -1))]
        best = min(best, min(fits, key=lambda d: (d**2).sum()).max())
    return best


@pytest.mark.parametrize("name", ["NH3", "CH4", "H2O2", "C2H4"])
def test_molecules_against_brute_force(name):
    """Copies with noise around the tolerance: the answer is that of every permutation tried with SciPy's alignment."""
    rng = np.random.default_rng(0)
    reference = molecule(name)
    reference.rattle(0.05, seed=1)
    answers = []
    for noise in np.linspace(0.006, 0.016, 12):
        other = moved(reference, rng, noise)
        deviation = brute_force(reference, other)
        answers.append(deviation <= 0.02)
        assert are_same(reference, other) == answers[-1], deviation
    assert 1 < sum(answers) < 11, "all on one side: this test sees nothing"


@pytest.mark.parametrize("name", ["NH3", "CH3CH2OH", "C6H6", "CH4", "H2"])
def test_molecules_are_recognised_however_they_lie(name):
    rng = np.random.default_rng(0)
    for rattle in (0.0, 0.1):  # symmetric ones, with many permutations that fit, and such without symmetry
        atoms = molecule(name)
        atoms.rattle(rattle, seed=1)
        for _ in range(5):
            assert are_same(atoms, moved(atoms, rng))


def test_a_small_change_of_one_atom_is_a_change():
    rng = np.random.default_rng(0)
    for name in ("NH3", "CH3CH2OH", "C60"):
        atoms = molecule(name)
        for k in range(6):
            other = atoms.copy()
            step = rng.normal(size=3)
            other.positions[k % len(atoms)] += 0.1 * step / np.linalg.norm(step)
            assert not are_same(atoms, moved(other, rng))


def test_same_distances_but_another_shape():
    """Two shapes that share all sorted distances (a homometric pair, found by search on a grid) are told apart."""
    first = Atoms("H4", [[0, 0, 0], [0, 1, 0], [0, 2, 0], [1, 3, 0]])
    second = Atoms("H4", [[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 3, 0]])
    lists = [np.sort(atoms.get_all_distances()[np.triu_indices(4, 1)]) for atoms in (first, second)]
    np.testing.assert_allclose(*lists)
    assert brute_force(first, second) > 0.1 and not are_same(first, second)


def test_near_planar_molecules_are_told_apart_though_their_distances_agree():
    """The height of a flat pyramid changes distances in second order only."""
    flat, low = molecule("NH3"), molecule("NH3")
    flat.positions[:, 2], low.positions[:, 2] = 0.0, [0.12, 0, 0, 0]
    assert np.abs(flat.get_all_distances() - low.get_all_distances()).max() < 0.01
    assert brute_force(flat, low) > 0.08 and not are_same(flat, low)


def test_mirror_images_are_the_same():
    """Of a molecule that no rotation turns into its mirror image."""
    atoms = Atoms("CHFClBr", [[0, 0, 0], [0.6, 0.6, 0.6], [-0.8, -0.8, 0.8], [1.0, -1.0, -1.0], [-1.1, 1.1, -1.1]])
    mirrored = atoms.copy()
    mirrored.positions[:, 0] *= -1
    align = Rotation.align_vectors(mirrored.positions - mirrored.positions[0], atoms.positions - atoms.positions[0])
    assert align[1] > 0.5
    assert are_same(atoms, mirrored)


def test_sameness_is_not_passed_on_and_known_geometries_are_not_compared():
    steps = [molecule("NH3") for _ in range(4)]
    for k, atoms in enumerate(steps):
        atoms.positions[0, 2] += 0.022 * k  # neighbours agree to 0.02 Å after superposition, no others do
    deviations = [[brute_force(a, b) <= 0.02 for a in steps] for b in steps]
    np.testing.assert_array_equal(deviations, np.abs(np.subtract.outer(range(4), range(4))) <= 1)
    geometries = Configuration.of(pack(*steps))
    assert first_same(geometries, 0, 0.02).tolist() == [0, 0, 2, 2]
    assert first_same(geometries, 3, 0.02).tolist() == [0, 1, 2, 2]


def crystals():
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    slab.pbc = [True, True, False]
    return {
        "cubic": bulk("MgO", "rocksalt", a=4.2, cubic=True),
        "primitive": bulk("MgO", "rocksalt", a=4.2),
        "skewed": Atoms(
            "MgOMg", [[0, 0, 0], [1.9, 1.9, 1.2], [3, 0.5, 2]], cell=[[5, 0, 0], [2, 5, 0], [1, 2, 6]], pbc=1
        ),
        "slab": slab,
    }


@pytest.mark.parametrize("name", crystals())
def test_crystals_are_recognised_however_they_lie(name):
    rng = np.random.default_rng(0)
    atoms = crystals()[name]
    atoms.rattle(0.1, seed=1)
    for _ in range(5):
        copy = moved(atoms, rng)
        images = rng.integers(-2, 3, size=(len(copy), 3)) * copy.pbc
        copy.positions += images @ copy.cell  # atoms in any cell
        assert are_same(atoms, copy)
        other = copy.copy()
        other.positions[0] += 0.1 * np.array([0.6, 0.64, 0.48])
        assert not are_same(atoms, other)
        strained = copy.copy()
        strained.set_cell(copy.cell * 1.02, scale_atoms=True)
        assert not are_same(atoms, strained)


def test_crystals_turned_into_themselves_are_recognised():
    """A quarter turn within a cubic cell, and other basis vectors of the same lattice."""
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    atoms.rattle(0.1, seed=1)
    turned = atoms.copy()
    turned.positions = atoms.positions @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    assert are_same(atoms, turned)
    skewed = crystals()["skewed"]
    other = skewed.copy()
    other.set_cell([skewed.cell[1], skewed.cell[0] - skewed.cell[1], skewed.cell[2]])
    assert are_same(skewed, other)


def test_stackings_of_close_packed_layers_are_told_apart():
    """Their first eighteen neighbours are as far in both."""
    fcc = Atoms("Cu", cell=np.eye(3), pbc=True).repeat((1, 1, 6))
    hcp, other = fcc.copy(), fcc.copy()
    hexagon = np.array([[2.55, 0, 0], [-1.275, 1.275 * np.sqrt(3), 0], [0, 0, 6 * 2.55 * np.sqrt(2 / 3)]])
    for atoms, layers in ((fcc, "ABCABC"), (hcp, "ABABAB"), (other, "CBACBA")):
        thirds = np.array(["ABC".index(layer) for layer in layers]) / 3
        atoms.set_cell(hexagon)
        atoms.set_scaled_positions(np.column_stack([thirds, 2 * thirds, np.arange(6) / 6]))
    shells = [np.sort(atoms.repeat((5, 5, 1)).get_distances(0, range(1, 150), mic=True)) for atoms in (fcc, hcp)]
    np.testing.assert_allclose(shells[0][:18], shells[1][:18])
    assert abs(shells[0][18] - shells[1][18]) > 0.1
    assert are_same(fcc, other) and not are_same(fcc, hcp)


def test_a_molecule_in_a_box_of_another_size_is_another_structure():
    small, large = molecule("NH3"), molecule("NH3")
    for atoms, edge in ((small, 14.0), (large, 15.0)):
        atoms.set_cell([edge] * 3)
        atoms.pbc = True
    assert are_same(small, small) and not are_same(small, large)


def test_close_contacts_and_pieces_across_faces():
    """Counted by ASE with nearest images."""
    rng = np.random.default_rng(0)
    frames = [Atoms("SiO2H", rng.uniform(-3, 6, (4, 3)), cell=[4, 5, 6], pbc=[True, True, False]) for _ in range(6)]
    frames = [atoms for atoms in frames if atoms.get_all_distances(mic=True)[np.triu_indices(4, 1)].min() > 0.4]
    frames.append(molecule("CH3CH2OH"))
    radii = [{14: 1.11, 8: 0.66, 1: 0.31, 6: 0.76}[z] for atoms in frames for z in atoms.numbers]
    start, ratios = 0, []
    for atoms in frames:
        r = np.array(radii[start : start + len(atoms)])
        start += len(atoms)
        distances = atoms.get_all_distances(mic=True)
        np.fill_diagonal(distances, 4.0 if atoms.pbc.any() else np.inf)  # an atom and its own image
        ratios.append(distances / (r[:, None] + r[None]))
    packed = pack(*frames)
    np.testing.assert_allclose(closest_contacts(packed, 5.0), [ratio.min() for ratio in ratios])
    bonded = [np.linalg.matrix_power((ratio < 1.3) + np.eye(len(ratio)), 20) > 0 for ratio in ratios]
    assert count_pieces(packed, 1.3).tolist() == [len(np.unique(b, axis=0)) for b in bonded]
    assert count_pieces(packed, 1.3)[-1] == 1


def proposals_of(structures, score, energy=0.0):
    n = len(structures)
    return Proposals(
        structures=unlabelled(structures, structures.positions),
        frames=np.zeros(n, np.int64),
        score=np.asarray(score, float),
        energy=np.broadcast_to(energy, n).astype(float),
        stopped=np.where(np.isfinite(score), "", "not finite"),
        history=pd.DataFrame({"proposal": range(n), "step": 0}),
    )


def ammonia(rattle, seed=0):
    atoms = molecule("NH3")
    atoms.rattle(rattle, seed=seed)
    return atoms


def stretched(atom, factor):
    """Ammonia with one hydrogen at a multiple of its distance from nitrogen."""
    atoms = molecule("NH3")
    atoms.positions[atom] = atoms.positions[0] + factor * (atoms.positions[atom] - atoms.positions[0])
    return atoms


def test_every_fate_is_told():
    rng = np.random.default_rng(0)
    training = pack(ammonia(0.0), ammonia(0.1, 1), energies=[-10.0, -9.0])
    frames = [
        stretched(1, 0.4),  # 0 overlap
        stretched(2, 2.2),  # 1 exploded
        ammonia(0.1, 2),  # 2 fine, the highest score of those that are
        moved(ammonia(0.1, 2), rng),  # 3 the same with a lower score
        moved(ammonia(0.1, 1), rng),  # 4 a training frame
        ammonia(0.1, 3),  # 5 no score
        ammonia(0.1, 4),  # 6 too high in energy
        ammonia(0.1, 5),  # 7 fine, the lowest score
        stretched(1, 1.4),  # 8 fine: far, but not gone
        moved(ammonia(0.1, 2), rng),  # 9 the same once more
    ]
    score = [9, 9, 5, 4, 9, np.nan, 9, 1, 3, 4.5]
    energy = np.array([0, 0, 0, 0, 0, np.nan, 3.0, 0, 0, 0]) - 10
    proposals = proposals_of(pack(*frames), score, energy)
    selection = built("selection", "top", energy_window=0.5)
    chosen = selection.select(proposals, training, 2, latents=None)
    assert chosen.table.status.tolist() == [
        "overlap", "exploded", "chosen", "repeated", "in training set", "failed", "energy", "not chosen", "chosen",
        "repeated",
    ]  # fmt: skip
    assert chosen.indices.tolist() == [2, 8]
    assert chosen.table.detail.tolist()[3:6] == ["proposal 2", "training frame 1", "not finite"]
    assert "2 pieces, at most 1" in chosen.table.detail[1] and "0.750 eV" in chosen.table.detail[6]
    assert chosen.counts == {
        "chosen": 2, "not chosen": 1, "failed": 1, "overlap": 1, "exploded": 1, "energy": 1, "in training set": 1,
        "repeated": 2,
    }  # fmt: skip
    assert (
        "energy"
        not in dataclasses.replace(selection, energy_window=None)
        .select(proposals, training, 2, latents=None)
        .table.status.tolist()
    )


def test_pieces_are_counted_against_the_training_frames():
    """Two molecules are two pieces from the start; three are not."""
    pair = molecule("NH3") + Atoms("H2", [[8, 0, 0], [8.74, 0, 0]])
    broken = pair.copy()
    broken.positions[-1] += [8, 0, 0]
    nearer = pair.copy()
    nearer.positions[-2:] -= [2, 0, 0]
    chosen = built("selection", "top").select(proposals_of(pack(nearer, broken), [1, 2]), pack(pair), 2, latents=None)
    assert chosen.table.status.tolist() == ["chosen", "exploded"]


def test_nothing_fit_is_nothing_chosen():
    proposals = proposals_of(pack(stretched(1, 0.4)), [1.0])
    for name in ("top", "diverse"):
        chosen = built("selection", name).select(proposals, pack(ammonia(0.0)), 3, latents=None)
        assert len(chosen.indices) == 0 and chosen.counts["overlap"] == 1


def test_farthest_points_against_brute_force():
    points = np.random.default_rng(0).normal(size=(30, 4))
    chosen = farthest_points(points, 8).tolist()
    assert chosen[0] == 0
    for k in range(1, 8):
        gaps = {
            p: min(np.linalg.norm(points[p] - points[q]) for q in chosen[:k]) for p in range(30) if p not in chosen[:k]
        }
        assert chosen[k] == max(gaps, key=gaps.get)
    assert sorted(farthest_points(np.zeros((4, 2)), 9)) == [0, 1, 2, 3]


def test_diversity_chooses_among_the_highest_scores():
    frames = [ammonia(0.1, seed) for seed in range(12)]
    score = np.arange(12.0)
    line = {
        frame.positions.tobytes(): place
        for frame, place in zip(frames, [9, 0, 0, 0, 0, 0, 1, 5, 2.4, 3, 4, 0], strict=True)
    }

    def latents(structures):
        return np.array([[line[x.tobytes()]] for x in np.split(structures.positions, len(structures))], float)

    diverse = built("selection", "diverse", pool=2.0)
    chosen = diverse.select(proposals_of(pack(*frames), score), pack(ammonia(0.0)), 3, latents)
    # Of 11 .. 6: first the highest score, at 0; the farthest from it, 7, at 5; between them 8, at 2.4.
    assert chosen.indices.tolist() == [11, 7, 8]
    assert 0 not in chosen.indices, "it is the farthest, but its score is the lowest"


def test_latents_do_not_depend_on_how_a_structure_lies(ethanol):
    method = fitted_method(ethanol[:10], "painn_small", "ensemble", **{"uq.members": 2})
    frame = pack(molecule("CH3CH2OH"))
    copy = pack(moved(molecule("CH3CH2OH"), np.random.default_rng(0)))
    a, b = (structure_latents(method, s, 4) for s in (frame, copy))
    assert a.shape == (1, 3 * 2 * 8)
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    # The mean of the atoms of each element, batch after batch.
    several = structure_latents(method, ethanol[:5], 2)
    np.testing.assert_allclose(several[3:4], structure_latents(method, ethanol[3], 1), rtol=1e-8, atol=1e-10)
