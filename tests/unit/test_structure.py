"""Radial distributions, coordination and densities against ASE, crystals and an ideal gas."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry.rdf import get_rdf
from ase.spacegroup import crystal

from uqbench.data import distributions
from uqbench.data.structures import Structures
from uqbench.errors import DataError

pytestmark = pytest.mark.numerics

SI, O = 14, 8  # noqa: E741


def packed(*frames):
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    return Structures.from_atoms(frames, origin="test")


def quartz():
    sites = [(0.4697, 0, 1 / 3), (0.4135, 0.2669, 0.2143)]
    return crystal(("Si", "O"), sites, spacegroup=152, cellpar=[4.916, 4.916, 5.405, 90, 90, 120])


def cristobalite():
    sites = [(1 / 8, 1 / 8, 1 / 8), (0, 0, 0)]
    return crystal(("Si", "O"), sites, spacegroup=227, setting=2, cellpar=[7.16] * 3 + [90] * 3)


@pytest.mark.parametrize("make, density, bond", [(quartz, 2.646, 1.607), (cristobalite, 2.175, 1.550)])
def test_crystals_of_silica_are_tetrahedral(make, density, bond):
    described = distributions.describe(packed(make()), reach=8.0, bins=800)
    assert described.bond == (SI, O) and 1.7 < described.cutoff < 2.5
    assert set(described.counts[SI, O]) == {4} and set(described.counts[O, SI]) == {2}
    assert described.densities == pytest.approx([density], rel=1e-3)
    assert described.distributions[SI, O].peak == pytest.approx(bond, abs=0.01)
    assert list(described.distributions) == [(SI, O), (SI, SI), (O, O)]


def test_a_lattice_may_be_written_in_any_way_and_be_smaller_than_the_cutoff():
    copper = bulk("Cu", "fcc", 3.6)
    skewed = copper.copy()
    skewed.set_cell([[1, 0, 0], [4, 1, 0], [-3, 2, 1]] @ copper.cell[:], scale_atoms=False)
    for atoms in (copper, skewed, copper.repeat((3, 2, 1))):
        # Shells of the face-centred lattice: 12 at a/√2, 6 at a, 24 at a √(3/2).
        for cutoff, expected in ((2.6, 12), (3.7, 18), (4.5, 42)):
            assert set(distributions.coordination(packed(atoms), 29, 29, cutoff)) == {expected}


@pytest.mark.parametrize("pair", [(SI, O), (O, O), (SI, SI), (O, SI)])
def test_distributions_are_those_of_ase(pair):
    frames = []
    for seed in range(3):
        frames.append(cristobalite().repeat(2))
        frames[-1].rattle(0.2, seed=seed)
        frames[-1].set_cell(frames[-1].cell[:] * (1 + 0.02 * seed), scale_atoms=True)  # each has its own volume
    found = distributions.radial_distributions(packed(*frames), [pair], cutoff=7.0, bins=70)[pair]
    theirs = [get_rdf(atoms, 7.0, 70, elements=list(pair)) for atoms in frames]
    np.testing.assert_allclose(found.r, theirs[0][1])
    np.testing.assert_allclose(found.g, np.mean([g for g, _ in theirs], axis=0), atol=1e-9)


def test_an_ideal_gas_has_no_structure():
    rng = np.random.default_rng(0)
    frames = [Atoms("Si100O200", rng.uniform(0, 12, (300, 3)), cell=[12, 12, 12], pbc=True) for _ in range(30)]
    gas = unchecked(frames)
    for pair in ((SI, O), (O, O)):
        found = distributions.radial_distributions(gas, [pair], cutoff=5.0, bins=10)[pair]
        np.testing.assert_allclose(found.g[3:], 1, atol=0.05)
    counts = distributions.coordination(gas, SI, O, 5.0)
    assert counts.mean() == pytest.approx(200 / 12**3 * 4 / 3 * np.pi * 5**3, rel=0.02) and len(counts) == 3000


def unchecked(frames):
    """Frames in which atoms may overlap."""
    n = len(frames[0])
    return Structures(
        numbers=np.concatenate([atoms.numbers for atoms in frames]),
        positions=np.concatenate([atoms.positions for atoms in frames]),
        cells=np.stack([atoms.cell[:] for atoms in frames]),
        pbc=np.ones((len(frames), 3), bool),
        ptr=n * np.arange(len(frames) + 1),
        energies=np.zeros(len(frames)),
        forces=np.zeros((n * len(frames), 3)),
        ids=np.arange(len(frames)),
        origin="gas",
    )


def test_elements_may_be_missing_and_frames_differ():
    frames = packed(quartz(), bulk("Si", "diamond", 5.43))
    assert len(distributions.densities(frames)) == 2 and distributions.densities(frames)[1] == pytest.approx(
        2.33, abs=0.01
    )
    assert distributions.coordination(frames, SI, SI, 2.5).tolist() == [0, 0, 0, 4, 4]
    assert distributions.radial_distributions(frames, [(SI, 79)], cutoff=5.0, bins=5)[SI, 79].g.tolist() == [0] * 5
    # Frames without the elements do not dilute the others.
    alone = distributions.radial_distributions(packed(quartz()), [(SI, O)], cutoff=5.0, bins=50)[SI, O]
    np.testing.assert_array_equal(
        distributions.radial_distributions(frames, [(SI, O)], cutoff=5.0, bins=50)[SI, O].g, alone.g
    )


def test_molecules_have_no_density():
    with pytest.raises(DataError, match="need frames periodic in all directions"):
        distributions.describe(packed(molecule("H2O")), reach=5.0, bins=10)


def test_distributions_count_the_images_of_an_atom():
    """The copper atom alone in its cell has the shells of its crystal: neighbours follow from g as from the list."""
    copper = packed(bulk("Cu", "fcc", 3.6))
    found = distributions.radial_distributions(copper, [(29, 29)], cutoff=4.5, bins=90)[29, 29]
    shells = 4 / 3 * np.pi * np.diff(np.linspace(0, 4.5, 91) ** 3)
    assert np.sum(found.g * shells) / (3.6**3 / 4) == pytest.approx(42)
