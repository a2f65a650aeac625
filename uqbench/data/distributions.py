"""What periodic frames look like: radial distributions, coordination numbers and densities, also of simulations."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from ase import units
from ase.data import atomic_masses
from numpy.typing import NDArray

from uqbench.data.structures import Structures
from uqbench.errors import DataError

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
    def closest(self) -> float:
        """Distance of the first shell with any pair, Å; NaN where there is none."""
        return float(self.r[np.argmax(self.g > 0)]) if self.g.any() else np.nan

    @property
    def first_minimum(self) -> float:
        """Distance of the lowest g behind the peak, Å; the middle of it where g is flat, as between shells."""
        behind = (self.r > self.peak) & (self.r <= BEYOND * self.peak)
        if not behind.any():
            return self.peak
        lowest = behind & (self.g <= self.g[behind].min())
        return float(self.r[lowest].mean())


def radial_distributions(
    structures: Structures, pairs: Sequence[tuple[int, int]], *, cutoff: float, bins: int
) -> dict[tuple[int, int], RadialDistribution]:
    """Return g(r) of each pair (centre, neighbour) of elements, as atomic numbers, in shells up to `cutoff` Å.

    g = V / (N_c N_n) · pairs in the shell / volume of the shell, of each frame, all images counted; 1 for an ideal
    gas. Frames without the elements do not count. Allen and Tildesley, Computer Simulation of Liquids, section 2.6.
    Raises DataError where a frame is not periodic in all directions.
    """
    edges = np.linspace(0, cutoff, bins + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    totals, frames = {pair: np.zeros(bins) for pair in pairs}, dict.fromkeys(pairs, 0)
    for frame, first, second, distance in _neighbours(structures, cutoff):
        volume = _volumes(frame)[0]
        for centre, neighbour in pairs:
            expected = np.sum(frame.numbers == centre) * np.sum(frame.numbers == neighbour) / volume * shells
            if not expected.any():
                continue
            # Each pair of atoms is listed once, and either may be the centre.
            ways = [(first == centre) & (second == neighbour), (second == centre) & (first == neighbour)]
            counts = sum(np.histogram(distance[way], edges)[0] for way in ways)
            totals[centre, neighbour] += counts / expected
            frames[centre, neighbour] += 1
    middles = (edges[1:] + edges[:-1]) / 2
    return {pair: RadialDistribution(middles, total / max(frames[pair], 1)) for pair, total in totals.items()}


def coordination(structures: Structures, centre: int, neighbour: int, cutoff: float) -> NDArray[np.int64]:
    """Return how many atoms of element `neighbour` are nearer than `cutoff` Å to each atom of `centre`, in order.

    Raises DataError where a frame is not periodic in all directions.
    """
    from vesin import NeighborList  # imports torch

    counts = [np.zeros(0, np.int64)]
    finder = NeighborList(cutoff=cutoff, full_list=True)
    for frame in _periodic(structures):
        first, second = finder.compute(frame.positions, frame.cells[0], frame.pbc[0], quantities="ij")
        centres = first.astype(np.int64)[frame.numbers[second.astype(np.int64)] == neighbour]
        counts.append(np.bincount(centres, minlength=len(frame.numbers))[frame.numbers == centre])
    return np.concatenate(counts)


def densities(structures: Structures) -> NDArray[np.float64]:
    """Return the density of each frame, (S,), g/cm³; raises DataError where one is not periodic in all directions."""
    _require_periodic(structures)
    masses = np.add.reduceat(atomic_masses[structures.numbers], structures.ptr[:-1])
    return masses / _volumes(structures) * GRAMS_PER_CM3


def element_pairs(structures: Structures) -> list[tuple[int, int]]:
    """Return all pairs of elements as atomic numbers, the heavier one first, (14, 8) before (14, 14)."""
    pairs = itertools.combinations_with_replacement(sorted(structures.elements, reverse=True), 2)
    return sorted(pairs, key=lambda pair: (pair[0] == pair[1], -pair[0]))


def _neighbours(
    structures: Structures, cutoff: float
) -> Iterator[tuple[Structures, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Yield each frame with the elements (P,) and (P,) and the length (P,) of its pairs of atoms within `cutoff` Å."""
    from vesin import NeighborList  # imports torch

    finder = NeighborList(cutoff=cutoff, full_list=False)
    for frame in _periodic(structures):
        first, second, distance = finder.compute(frame.positions, frame.cells[0], frame.pbc[0], quantities="ijd")
        yield frame, frame.numbers[first.astype(np.int64)], frame.numbers[second.astype(np.int64)], distance


def _periodic(structures: Structures) -> Iterator[Structures]:
    """Yield the frames one by one."""
    _require_periodic(structures)
    for index in range(len(structures)):
        yield structures[[index]]


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
    distributions = radial_distributions(structures, element_pairs(structures), cutoff=reach, bins=bins)
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
