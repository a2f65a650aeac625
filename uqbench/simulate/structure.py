"""What periodic frames look like: radial distributions, coordination numbers and densities, also of simulations."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from ase import units
from ase.data import atomic_masses
from numpy.typing import NDArray
from vesin import NeighborList

from uqbench.errors import DataError
from uqbench.structures import Structures

GRAMS_PER_CM3 = 1e24 * units._amu * 1e3  # of amu/Å³
# The first minimum is looked for up to this multiple of the distance of the first peak.
BEYOND = 1.6


@dataclasses.dataclass(frozen=True, eq=False)
class RadialDistribution:
    """Radial distribution of atoms of one element around those of another.

    Attributes:
        r: (B,) middles of the shells, Å. g: (B,) density over the mean density, mean over frames.
    """

    r: NDArray[np.float64]
    g: NDArray[np.float64]

    @property
    def peak(self) -> float:
        """Distance of the highest g, Å."""
        return float(self.r[np.argmax(self.g)])

    @property
    def first_minimum(self) -> float:
        """Distance of the lowest g behind the peak, Å; the middle of it where g is flat, as between shells."""
        behind = (self.r > self.peak) & (self.r <= BEYOND * self.peak)
        if not behind.any():
            return self.peak
        lowest = behind & (self.g <= self.g[behind].min())
        return float(self.r[lowest].mean())


def radial_distribution(
    structures: Structures, centre: int, neighbour: int, *, cutoff: float, bins: int
) -> RadialDistribution:
    """Return g(r) of element `neighbour` around element `centre` (atomic numbers) in shells up to `cutoff` Å.

    g = V / (N_c N_n) · pairs in the shell / volume of the shell, of each frame, all images counted; 1 for an ideal
    gas. Allen and Tildesley, Computer Simulation of Liquids, section 2.6. Raises DataError as `lengths` does.
    """
    edges = np.linspace(0, cutoff, bins + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    total, frames = np.zeros(bins), 0
    for frame, _, found in _lengths(structures, centre, neighbour, cutoff):
        numbers = frame.numbers
        expected = np.sum(numbers == centre) * np.sum(numbers == neighbour) / _volumes(frame)[0] * shells
        if expected.any():
            total += np.histogram(found, edges)[0] / expected
            frames += 1
    return RadialDistribution((edges[1:] + edges[:-1]) / 2, total / max(frames, 1))


def coordination(structures: Structures, centre: int, neighbour: int, cutoff: float) -> NDArray[np.int64]:
    """Return how many atoms of element `neighbour` are nearer than `cutoff` Å to each atom of `centre`, in order.

    Raises DataError where a frame is not periodic in all directions.
    """
    counts = [
        np.bincount(centres, minlength=len(frame.numbers))[frame.numbers == centre]
        for frame, centres, _ in _lengths(structures, centre, neighbour, cutoff)
    ]
    return np.concatenate([np.zeros(0, np.int64), *counts])


def densities(structures: Structures) -> NDArray[np.float64]:
    """Return the density of each frame, (S,), g/cm³; raises DataError where one is not periodic in all directions."""
    _require_periodic(structures)
    masses = np.add.reduceat(atomic_masses[structures.numbers], structures.ptr[:-1])
    return masses / _volumes(structures) * GRAMS_PER_CM3


def element_pairs(structures: Structures) -> list[tuple[int, int]]:
    """Return all pairs of elements as atomic numbers, the heavier one first, (14, 8) before (14, 14)."""
    pairs = itertools.combinations_with_replacement(sorted(structures.elements, reverse=True), 2)
    return sorted(pairs, key=lambda pair: (pair[0] == pair[1], -pair[0]))


def _lengths(
    structures: Structures, centre: int, neighbour: int, cutoff: float
) -> Iterator[tuple[Structures, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield each frame with the central atom (P,) and the length (P,) of every pair nearer than `cutoff` Å."""
    _require_periodic(structures)
    finder = NeighborList(cutoff=cutoff, full_list=True)
    for index in range(len(structures)):
        frame = structures[[index]]
        first, second, distance = finder.compute(frame.positions, frame.cells[0], frame.pbc[0], quantities="ijd")
        first = first.astype(np.int64)
        chosen = (frame.numbers[first] == centre) & (frame.numbers[second.astype(np.int64)] == neighbour)
        yield frame, first[chosen], distance[chosen]


def _volumes(structures: Structures) -> NDArray[np.float64]:
    return np.abs(np.linalg.det(structures.cells))


def _require_periodic(structures: Structures) -> None:
    if not structures.pbc.all():
        raise DataError(
            f"{structures.origin}: densities and radial distributions need frames periodic in all directions"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """The structure of some frames.

    Attributes:
        densities: (S,) g/cm³. distributions: by pair of elements, see `element_pairs`.
        bond: the pair of elements that comes nearest. cutoff: Å, of its first minimum or as given.
        counts: coordination numbers (n,) of the atoms, with (centre, neighbour): of both elements of the bond.
    """

    densities: NDArray[np.float64]
    distributions: dict[tuple[int, int], RadialDistribution]
    bond: tuple[int, int]
    cutoff: float
    counts: dict[tuple[int, int], NDArray[np.int64]]


def describe(
    structures: Structures, *, reach: float, bins: int, bond: tuple[int, int] | None = None, cutoff: float | None = None
) -> Description:
    """Describe periodic frames; g(r) up to `reach` Å. `bond` and `cutoff` are found unless they are given.

    Raises DataError where a frame is not periodic in all directions.
    """
    distributions = {
        pair: radial_distribution(structures, *pair, cutoff=reach, bins=bins) for pair in element_pairs(structures)
    }
    if bond is None:
        bond = min(distributions, key=lambda pair: _onset(distributions[pair]))
    cutoff = distributions[bond].first_minimum if cutoff is None else cutoff
    ways = dict.fromkeys([bond, bond[::-1]])
    counts = {way: coordination(structures, *way, cutoff) for way in ways}
    return Description(densities(structures), distributions, bond, cutoff, counts)


def _onset(distribution: RadialDistribution) -> float:
    """Where g first exceeds that of an ideal gas, Å; infinite where it never does."""
    above = np.flatnonzero(distribution.g > 1)
    return float(distribution.r[above[0]]) if len(above) else np.inf
