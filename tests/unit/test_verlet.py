"""Reused neighbour lists against fresh ones, while atoms move, cross faces and cells change."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list
from helpers import options, small_method

from uqbench.data.structures import Structures
from uqbench.data.verlet import DynamicGraph, VerletList
from uqbench.errors import ConfigError, DataError

pytestmark = pytest.mark.numerics

CUTOFF = 4.0
SYSTEMS = {
    "molecule": lambda: molecule("CH3CH2OH"),
    "atom": lambda: Atoms("C", [[1.0, 2.0, 3.0]]),
    "crystal smaller than the cutoff": lambda: bulk("Cu", "fcc", a=3.6),
    "skewed cell": lambda: Atoms(
        "MgO", [[0, 0, 0], [1.5, 1.5, 1.0]], cell=[[3, 0, 0], [2.5, 3, 0], [1, 2, 4]], pbc=True
    ),
    "slab": lambda: fcc111("Al", (2, 2, 2), vacuum=6.0),
    "chain": lambda: Atoms("H4", [[0, 0, 0.9 * k] for k in range(4)], cell=[0, 0, 4.0], pbc=[False, False, True]),
}


def verlet(skin, dtype=torch.float64, cutoff=CUTOFF):
    return DynamicGraph(cutoff, skin=skin, dtype=dtype, device="cpu")


def batch_of(pairs, *systems):
    return pairs.batch(
        np.concatenate([atoms.numbers for atoms in systems]),
        np.concatenate([atoms.positions for atoms in systems]),
        ptr=np.cumsum([0, *map(len, systems)]),
        cells=np.stack([atoms.cell.array for atoms in systems]),
        pbc=np.stack([atoms.pbc for atoms in systems]),
    )


def walk(atoms, steps=40, size=0.08):
    """The atoms on a random walk with a drift, which leads them through the faces of their cell."""
    rng = np.random.default_rng(len(atoms))
    for _ in range(steps):
        atoms.positions += rng.normal(0.02, size, atoms.positions.shape)
        yield atoms


@pytest.fixture
def searches(monkeypatch):
    """How often a list has been made."""
    made, search = [], VerletList.search

    def counted(self, coordinates, systems=None):
        made.append(len(coordinates.positions))
        search(self, coordinates, systems)

    monkeypatch.setattr(VerletList, "search", counted)
    return made


@pytest.mark.parametrize("name", SYSTEMS)
def test_pairs_are_ases_at_every_step_of_a_walk(name, searches):
    pairs, atoms = verlet(1.5), SYSTEMS[name]()
    for moved in walk(atoms, steps=40, size=0.03):
        batch = batch_of(pairs, moved)
        vectors = batch.positions[batch.second] - batch.positions[batch.first] + batch.shifts
        ours = np.column_stack([batch.first, batch.second, vectors])
        ours = np.concatenate([ours, np.column_stack([batch.second, batch.first, -vectors])])
        i, j, d = neighbor_list("ijD", moved, CUTOFF, self_interaction=False)
        theirs = np.column_stack([i, j, d])
        assert len(ours) == len(theirs)
        ours, theirs = (rows[np.lexsort(np.round(rows, 6).T)] for rows in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    assert 1 <= len(searches) <= 10, "the list is reused"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SYSTEMS)
def test_batches_are_the_same_to_the_bit_with_and_without_a_skin(name, dtype):
    lists, atoms = [verlet(skin, dtype) for skin in (0.0, 0.3, 2.0)], SYSTEMS[name]()
    for moved in walk(atoms):
        fresh, *reused = [batch_of(pairs, moved) for pairs in lists]
        for batch in reused:
            for field in ("positions", "first", "second", "shifts", "numbers", "system", "cells", "ptr"):
                assert torch.equal(getattr(batch, field), getattr(fresh, field)), field


@pytest.mark.parametrize("backbone", options("backbone"))
def test_potentials_give_the_same_bits_with_and_without_a_skin(backbone):
    atoms = bulk("MgO", "rocksalt", a=4.3, cubic=True)
    labelled = atoms.copy()
    labelled.info["energy"], labelled.arrays["forces"] = 0.0, np.ones_like(atoms.positions)
    frames = Structures.from_atoms([labelled], origin="test", energy_key="energy", force_key="forces")
    potential = small_method(frames, backbone, "deterministic").to(torch.float32).potential
    lists = [verlet(skin, torch.float32, potential.backbone.cutoff) for skin in (0.0, 0.5)]
    for moved in walk(atoms, steps=6, size=0.05):
        fresh, reused = (potential(batch_of(pairs, moved), stress=True) for pairs in lists)
        assert torch.equal(fresh.energy, reused.energy)
        assert torch.equal(fresh.forces, reused.forces) and torch.equal(fresh.stress, reused.stress)


def test_a_list_is_made_anew_as_soon_as_it_can_have_changed(searches):
    pairs, atoms = verlet(1.0), Atoms("Ar2", [[0, 0, 0], [4.99, 0, 0]], cell=[20, 20, 20], pbc=True)
    assert len(batch_of(pairs, atoms).first) == 0
    atoms.positions += [[0.49, 0, 0], [-0.49, 0, 0]]  # each by less than half the skin
    assert len(batch_of(pairs, atoms).first) == 0 and len(searches) == 1
    atoms.positions += [[0.02, 0, 0], [-0.02, 0, 0]]
    assert len(batch_of(pairs, atoms).first) == 1 and len(searches) == 2


def test_a_molecule_whose_pairs_are_all_listed_needs_no_other_list(searches):
    pairs, atoms = verlet(1.0), Atoms("Ar2", [[0, 0, 0], [4.99, 0, 0]])
    for distance, near in ((4.99, 0), (3.5, 1), (9.0, 0), (3.9, 1)):
        atoms.positions[1, 0] = distance
        assert len(batch_of(pairs, atoms).first) == near
    assert len(searches) == 1


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_side_by_side_have_the_pairs_that_each_has_alone(name):
    systems, graph = [SYSTEMS[name](), SYSTEMS["slab"](), SYSTEMS["molecule"]()], verlet(0.5)
    alone = [verlet(0.0) for _ in systems]
    steps = [walk(atoms, steps=8) for atoms in systems]
    for moved in zip(*steps, strict=True):
        batch = batch_of(graph, *moved)
        for s, (pairs, atoms) in enumerate(zip(alone, moved, strict=True)):
            mine, expected = batch.system[batch.first] == s, batch_of(pairs, atoms)
            start = batch.ptr[s]
            assert torch.equal(batch.first[mine] - start, expected.first)
            assert torch.equal(batch.second[mine] - start, expected.second)
            assert torch.equal(batch.shifts[mine], expected.shifts)
            assert torch.equal(batch.positions[batch.system == s], expected.positions)


@pytest.mark.parametrize(
    "change",
    [
        lambda atoms: atoms.set_cell(atoms.cell * 1.001),
        lambda atoms: atoms.set_pbc([True, True, False]),
        lambda atoms: atoms.numbers.__setitem__(0, 13),
        lambda atoms: atoms.extend(Atoms("Cu", [[1.0, 1.0, 1.0]])),
    ],
)
def test_another_system_is_noticed(change):
    pairs, atoms = verlet(1.0), SYSTEMS["crystal smaller than the cutoff"]()
    batch_of(pairs, atoms)
    change(atoms)
    found, expected = batch_of(pairs, atoms), batch_of(verlet(0.0), atoms)
    assert found.energies is None and found.forces is None
    for field in ("numbers", "first", "second", "shifts", "cells", "pbc", "system"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field


def test_single_precision_is_not_lost_far_from_the_origin():
    near, far = SYSTEMS["molecule"](), SYSTEMS["molecule"]()
    far.positions += 5e4
    a, b = (batch_of(verlet(0.5, torch.float32), atoms) for atoms in (near, far))
    torch.testing.assert_close(a.positions, b.positions, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms("Ar2", [[0, 0, 0], [0, np.nan, 0]]), "position of atom 1 is not finite"),
        (Atoms("Ar2", [[1, 0, 0], [1, 0, 0]]), "atoms 0 and 1 coincide"),
        (Atoms("Ar2", [[1, 0, 0], [4, 0, 0]], cell=[3, 3, 3], pbc=True), "atoms 0 and 1 coincide"),
        (Atoms(), "no atoms"),
        (Atoms("Ar", cell=[3, 0, 0], pbc=[True, True, False]), "no lattice vector"),
        (Atoms("Ar", cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True), "no volume"),
        (Atoms("Ar", cell=[np.inf, 3, 3], pbc=True), "cell is not finite"),
    ],
)
def test_impossible_systems_are_refused(atoms, message):
    pairs = verlet(0.5)
    with pytest.raises(DataError, match=message):
        batch_of(pairs, atoms)
    assert len(batch_of(pairs, Atoms("Ar2", [[0, 0, 0], [1, 0, 0]])).first) == 1, "and leave no trace"


def test_atoms_that_collide_on_the_way_are_refused():
    pairs, atoms = verlet(1.0), Atoms("Ar2", [[0, 0, 0], [0.3, 0, 0]])
    batch_of(pairs, atoms)
    atoms.positions[1] = 0.0
    with pytest.raises(DataError, match="coincide"):
        batch_of(pairs, atoms)


@pytest.mark.parametrize("skin", [-0.1, np.nan, np.inf])
def test_an_impossible_skin_is_refused(skin):
    with pytest.raises(ConfigError, match="skin"):
        verlet(skin)
