"""Which charges and multiplicities the electrons of a geometry allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqbench.errors import ConfigError

SHOWN = 5  # multiplicities that a message names


def require_possible(
    frames: Sequence[Atoms],
    charge: int,
    multiplicity: int,
    electrons: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    kind: str = "electrons",
) -> None:
    """Raise ConfigError for the first frame whose electrons do not allow the charge or the multiplicity.

    2S electrons are unpaired and all others in pairs; at least one electron is left.

    Args:
        electrons: of neutral atoms, by atomic number. kind: what they are called.
    """
    known: set[bytes] = set()
    for index, atoms in enumerate(frames):
        composition = np.sort(atoms.numbers).tobytes()
        if composition in known or len(atoms) == 0 or np.any(atoms.numbers < 1):
            continue
        known.add(composition)
        neutral = int(electrons(atoms.numbers).sum())
        name = f"frame {index} ({atoms.get_chemical_formula()})"
        left, unpaired = neutral - charge, multiplicity - 1
        if left < 1:
            raise ConfigError(
                f"oracle.charge: {charge} is impossible for {name}, which has {neutral} {kind}; possible are at most "
                f"{neutral - 1}"
            )
        if unpaired > left or (left - unpaired) % 2:
            possible = list(range(1 + left % 2, left + 2, 2))
            more = ", ..." if len(possible) > SHOWN else ""
            raise ConfigError(
                f"oracle.multiplicity: {multiplicity} is impossible for {name}, which has {left} {kind} with "
                f"oracle.charge={charge}; possible are {', '.join(map(str, possible[:SHOWN]))}{more}"
            )


def all_electrons(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Electrons of neutral atoms."""
    return np.asarray(numbers, np.int64)


def xtb_electrons(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Electrons of neutral atoms that GFN1-xTB, GFN2-xTB and IPEA1-xTB treat: three of each lanthanide.

    Source: Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019), table of valence shells.
    """
    numbers = np.asarray(numbers, np.int64)
    # The last element before each core, with the electrons of that: full d shells count as core from group 12 on.
    last = np.array([2, 10, 18, 29, 36, 47, 54, 79])
    core = np.array([0, 2, 10, 18, 28, 36, 46, 54, 78])
    valence = numbers - core[np.searchsorted(last, numbers)]
    valence = np.where((numbers >= 72) & (numbers <= 79), numbers - 68, valence)
    return np.where((numbers >= 58) & (numbers <= 71), 3, valence)
