"""Neighbour lists: a search from nothing, and a list that follows moving atoms."""

from __future__ import annotations

import functools
import itertools

import ase.neighborlist
import numpy as np
import torch
from ase import Atoms
from common import CUTOFF, Race, Workloads, structures
from vesin import NeighborList

from uqbench.data.graph import neighbour_lists
from uqbench.data.structures import Structures
from uqbench.data.verlet import DynamicGraph

SYSTEMS = ("ethanol x 1", "silica 576 x 1")
STEP = 0.02  # Å, as far as atoms go in a femtosecond or two
SKIN = 1.0  # Å


def search(frames: Structures) -> Race:
    """Return a search of all pairs by us and by ASE."""
    atoms = Atoms(frames.numbers, frames.positions, cell=frames.cells[0], pbc=frames.pbc[0])
    peer = functools.partial(ase.neighborlist.neighbor_list, "ijS", atoms, CUTOFF)
    return Race(functools.partial(neighbour_lists, frames, CUTOFF), peer, "ASE", flops=0)


def follow(frames: Structures) -> Race:
    """Return the next batch of a Verlet list for atoms that move, and a new search by vesin at every step."""
    graph = DynamicGraph(CUTOFF, skin=SKIN, dtype=torch.float32, device="cpu")
    finder = NeighborList(cutoff=CUTOFF, full_list=False)
    rng = np.random.default_rng(0)
    moves = [frames.positions + rng.uniform(-STEP, STEP, frames.positions.shape) for _ in range(16)]
    ours, theirs = itertools.cycle(moves), itertools.cycle(moves)
    return Race(
        lambda: graph.batch(frames.numbers, next(ours), ptr=frames.ptr, cells=frames.cells, pbc=frames.pbc),
        lambda: finder.compute(next(theirs), frames.cells[0], frames.pbc[0], quantities="ijS"),
        "vesin",
        flops=0,
    )


def workloads() -> Workloads:
    """Return the races by name."""
    workloads = {f"neighbour search, {system}": lambda system=system: search(structures(system)) for system in SYSTEMS}
    return workloads | {
        f"neighbours of moving atoms, {system}": lambda system=system: follow(structures(system)) for system in SYSTEMS
    }
