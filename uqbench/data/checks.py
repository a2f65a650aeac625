"""What is odd about labels and splits: said before anything is trained on them."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from uqbench.data.structures import Splits, Structures
from uqbench.errors import DataError

# A label this many robust standard deviations (1.4826 median absolute deviations) from the median is far outside: of a
# Gaussian, none in 1e88; forces of hot frames reach some 10.
FAR = 20.0
FEWEST = 10  # values that have a spread
LARGEST_SHARE = 0.05  # of outliers: more of them are no outliers
SHOWN = 5  # frames that a message names
SAME_ENERGY = 1e-4  # eV: energies of one geometry that agree


def label_warnings(structures: Structures) -> list[str]:
    """Return a line for each thing that is odd about the labels: constant energies, outliers, labels that disagree."""
    return [
        *_constant_energies(structures),
        *_outliers(structures),
        *_disagreements(structures),
    ]


def known_frames(structures: Structures, elements: Collection[int]) -> NDArray[np.bool_]:
    """Return which frames hold none but these elements, (S,)."""
    known = np.isin(structures.numbers, list(elements))
    return np.logical_and.reduceat(known, structures.ptr[:-1])


def scorable(structures: Structures, splits: Splits) -> tuple[Splits, list[str]]:
    """Return the splits without the frames that hold an element which no training frame has, and a line for each split.

    Raises DataError where that leaves nothing of a split that had frames.
    """
    trained = structures[splits["train"]].elements
    known = known_frames(structures, trained)
    kept, lines = {}, []
    for name, frames in splits.items():
        kept[name] = frames[known[frames]]
        if len(kept[name]) < len(frames):
            strange = structures[frames[~known[frames]]]
            line = (
                f"split '{name}' has {symbols(set(strange.elements) - set(trained))}, which no training frame has, in "
                f"frame(s) {listed(strange.ids)}"
            )
            if not len(kept[name]):
                raise DataError(f"{structures.origin}: {line}, and no others; choose splits that share their elements")
            lines.append(f"{line}: they are in no split")
    return kept, lines


def symbols(numbers: Collection[int]) -> str:
    """Return elements as text, such as Ag, Cu."""
    return ", ".join(chemical_symbols[number] for number in sorted(numbers))


def listed(ids: NDArray[np.int64]) -> str:
    """Return rows of frames as text, the first ones where there are many."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(map(str, ids[:SHOWN])) + more


def _constant_energies(structures: Structures) -> list[str]:
    energies = structures.energies
    if energies is None or len(structures) < 2 or structures.forces is None:
        return []
    if np.nanmax(energies) > np.nanmin(energies) or not np.nanstd(structures.forces) > 0:
        return []
    return [
        f"all energies are {energies[0]:g} eV although the forces differ: is this the right key? (dataset.energy_key, "
        "dataset.energies_key)"
    ]


def _outliers(structures: Structures) -> list[str]:
    lines = []
    if structures.forces is not None:
        largest = np.maximum.reduceat(np.linalg.norm(structures.forces, axis=1), structures.ptr[:-1])
        lines += _far_outside(structures, np.arange(len(structures)), largest, "largest force", "eV/Å")
    if structures.energies is not None:
        per_atom = structures.energies / structures.n_atoms
        compositions: dict[bytes, list[int]] = {}
        for s, (a, b) in enumerate(itertools.pairwise(structures.ptr)):
            compositions.setdefault(np.sort(structures.numbers[a:b]).tobytes(), []).append(s)
        for frames in compositions.values():
            lines += _far_outside(structures, np.array(frames), per_atom[frames], "energy per atom", "eV")
    return lines


def _far_outside(
    structures: Structures, frames: NDArray[np.int64], values: NDArray[np.float64], name: str, unit: str
) -> list[str]:
    """A line on the frames whose values (S,) lie far outside of the others', if there are any."""
    there = values[np.isfinite(values)]
    if len(there) < FEWEST:
        return []
    middle = np.median(there)
    far = np.flatnonzero(np.abs(values - middle) > FAR * 1.4826 * np.median(np.abs(there - middle)))
    if not len(far) or len(far) > LARGEST_SHARE * len(there):
        return []
    worst = far[np.argmax(np.abs(values[far] - middle))]
    return [
        f"frame(s) {listed(structures.ids[frames[far]])}: {name} far outside of the rest, {values[worst]:.4g} {unit} "
        f"in frame {structures.ids[frames[worst]]} (median {middle:.4g})"
    ]


def _disagreements(structures: Structures) -> list[str]:
    if structures.energies is None:
        return []
    first = structures.geometry_groups()
    repeats = np.flatnonzero(first != np.arange(len(first)))
    differences = np.abs(structures.energies[repeats] - structures.energies[first[repeats]])
    if not np.any(differences > SAME_ENERGY):
        return []
    worst = int(np.nanargmax(differences))
    return [
        f"{np.count_nonzero(differences > SAME_ENERGY)} geometries stand in several frames with different energies, by "
        f"up to {differences[worst]:.4g} eV (frames {structures.ids[first[repeats[worst]]]} and "
        f"{structures.ids[repeats[worst]]}): another charge, spin or level of theory?"
    ]
