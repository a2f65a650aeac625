"""Answers in other units, told from rare geometries by labels that are known."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from uqbench.data.structures import Structures
    from uqbench.oracles.cache import Label

# Hot and compressed frames have forces of some hundred eV/Å; none that a model could learn from has more than this.
LARGEST_FORCE = 1000.0  # eV/Å
RATIO = 100.0  # of forces, and of energies: between the spread of one composition and the 1000 of a unit
BINDING = 10.0  # eV per atom: solids and molecules gain less when they form
# Å; what an atom's force does over this length exceeds the energy of the repulsion that it comes from, as repulsion
# falls off within less than 1 Å.
RANGE = 3.0


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Labels of one composition: median of the largest force, largest sum of forces, median energy (or None)."""

    force: float
    total_force: float
    energy: float | None


class KnownLabels:
    """What labels of each composition are like.

    An answer is implausible where a force exceeds 1000 eV/Å and a hundred times the usual largest one; or where the
    energy is a hundred times larger or smaller than usual, by more than 10 eV per atom and by more than the forces
    explain (over 3 Å, those of the known frames too). So a unit of 10^3 is found in frames with forces of 1 eV/Å and
    more, and in total energies of some tens of eV per atom; rare geometries and all-electron energies pass.
    Compositions without known labels are not judged.

    Args:
        structures: frames, of which those with energy and forces count.
        energies: whether their energies have the zero of the answers, as those of another level of theory have not.
    """

    def __init__(self, structures: Structures, *, energies: bool) -> None:
        frames = np.flatnonzero(structures.has_forces & structures.has_energies)
        groups: dict[bytes, list[tuple[float, float, float]]] = {}
        for s in frames:
            atoms = slice(structures.ptr[s], structures.ptr[s + 1])
            sizes = np.linalg.norm(structures.forces[atoms], axis=1)
            values = sizes.max(), sizes.sum(), structures.energies[s]
            groups.setdefault(_composition(structures.numbers[atoms]), []).append(values)
        self._scales = {}
        for composition, values in groups.items():
            largest, total, energy = np.array(values).T
            middle = float(np.median(energy)) if energies else None
            self._scales[composition] = _Scale(float(np.median(largest)), float(total.max()), middle)

    def objection(self, numbers: NDArray[np.int64], label: Label) -> str | None:
        """Return why a label cannot be one of these atoms, in one line; None where it can."""
        scale = self._scales.get(_composition(numbers))
        if scale is None:
            return None
        sizes = np.linalg.norm(label.forces, axis=1)
        largest = sizes.max()
        if largest > max(LARGEST_FORCE, RATIO * scale.force):
            return f"implausible: a force of {largest:.3g} eV/Å where {scale.force:.3g} is usual; are the units right?"
        if scale.energy is None:
            return None
        low, high = sorted([abs(label.energy), abs(scale.energy)])
        off = abs(label.energy - scale.energy)
        if high > RATIO * low and off > max(BINDING * len(sizes), RANGE * (sizes.sum() + scale.total_force)):
            return (
                f"implausible: an energy of {label.energy:.6g} eV where {scale.energy:.6g} is usual, and forces too "
                "small for it; are the units right?"
            )
        return None


def _composition(numbers: NDArray[np.int64]) -> bytes:
    return np.sort(np.asarray(numbers, np.int64)).tobytes()
