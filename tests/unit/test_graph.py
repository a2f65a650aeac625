"""Neighbour lists against ASE's, and batches against frames put together by hand."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list

from uqbench.data import graph
from uqbench.data.graph import GraphSet, neighbour_lists
from uqbench.data.structures import Structures

pytestmark = pytest.mark.numerics

CUTOFF = 4.0


def labelled(*frames):
    for atoms in frames:
        atoms.info["energy"], atoms.arrays["forces"] = float(len(atoms)), np.ones_like(atoms.positions)
    return Structures.from_atoms(list(frames), origin="test", energy_key="energy", force_key="forces")


def perturbed(atoms):
    atoms.positions += np.random.default_rng(len(atoms)).normal(0, 0.1, atoms.positions.shape)
    return atoms


SYSTEMS = {
    "molecule": lambda: perturbed(molecule("CH3CH2OH")),
    "atom": lambda: Atoms("C"),
    "crystal smaller than the cutoff": lambda: perturbed(bulk("Cu", "fcc", a=3.6)),
    "skewed cell": lambda: perturbed(
        Atoms("MgO", [[0, 0, 0], [1.5, 1.5, 1.0]], cell=[[3, 0, 0], [2.5, 3, 0], [1, 2, 4]], pbc=True)
    ),
    "slab": lambda: perturbed(fcc111("Al", (2, 2, 3), vacuum=8.0)),
    "chain": lambda: perturbed(
        Atoms("H4", [[0, 0, 0.9 * k] for k in range(4)], cell=[0, 0, 4.0], pbc=[False, False, True])
    ),
    "atoms outside their cell": lambda: Atoms(
        "Cu2", [[9.0, -7.0, 3.0], [10.0, -5.5, 3.9]], cell=np.eye(3) * 3.7, pbc=True
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_pairs_are_ases_edges_each_once(name):
    atoms = SYSTEMS[name]()
    first, second, shifts, ptr = neighbour_lists(labelled(atoms), CUTOFF)
    vectors = atoms.positions[second] + shifts - atoms.positions[first]
    ours = np.concatenate([np.column_stack([first, second, vectors]), np.column_stack([second, first, -vectors])])
    i, j, d = neighbor_list("ijD", atoms, CUTOFF, self_interaction=False)
    theirs = np.column_stack([i, j, d])
    assert len(ours) == len(theirs) == 2 * ptr[-1]

    def ordered(rows):
        return rows[np.lexsort(np.round(rows, 6).T)]

    np.testing.assert_allclose(ordered(ours), ordered(theirs), atol=1e-9)


def test_batches_are_the_frames_put_together():
    frames = [SYSTEMS[name]() for name in ("slab", "molecule", "atom", "skewed cell")]
    structures = labelled(*frames)
    graphs = GraphSet(structures, CUTOFF, dtype=torch.float64)
    order = [3, 1, 2, 1, 0]
    batch = graphs.batch(order)
    parts = [graphs.batch([s]) for s in order]
    offsets = np.cumsum([0, *[len(frames[s]) for s in order]])
    assert batch.ptr.tolist() == offsets.tolist() and batch.index.tolist() == order
    for name in ("positions", "numbers", "forces", "shifts", "cells", "energies", "pbc"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts])), name
    for name in ("first", "second"):
        expected = [getattr(part, name) + int(offset) for part, offset in zip(parts, offsets, strict=False)]
        assert torch.equal(getattr(batch, name), torch.cat(expected))
    assert batch.system.tolist() == np.repeat(range(5), np.diff(offsets)).tolist()
    np.testing.assert_array_equal(parts[1].positions.numpy(), frames[1].positions)


def test_neighbour_lists_are_built_once(monkeypatch):
    calls = []
    original = graph.NeighborList.compute
    monkeypatch.setattr(graph.NeighborList, "compute", lambda *a, **k: calls.append(1) or original(*a, **k))
    graphs = GraphSet(labelled(SYSTEMS["molecule"](), SYSTEMS["slab"]()), CUTOFF, dtype=torch.float32)
    for _ in range(3):
        graphs.batch([0, 1])
        graphs.batches(1)
    assert len(calls) == 2


def test_batches_cover_the_set_in_order():
    graphs = GraphSet(labelled(*[molecule("H2O") for _ in range(7)]), CUTOFF, dtype=torch.float32)
    cut = graphs.batches(3)
    assert [len(batch) for batch in cut] == [3, 3, 1]
    assert torch.cat([batch.index for batch in cut]).tolist() == list(range(7))
