"""The embedded ammonia set: NH3 near its minimum, and far from it as a test; made by scripts/make_ammonia.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt

from uqbench.data.arrays import numeric, read_npz, species_to_numbers
from uqbench.data.sources import OUT_OF_DOMAIN
from uqbench.data.sources.base import Dataset, Size, split_frames
from uqbench.data.structures import Splits, Structures

FILE = Path(__file__).with_name("ammonia.npz")
NEAR = 78  # frames near the minimum, the first of the file


class Ammonia(Dataset):
    """78 frames displaced along the normal modes, in a random split, and 224 frames that no training should see.

    The latter are the split `out_of_domain`: the inversion path with perturbations, and molecular dynamics at 1000 and
    2000 K. Labels are GFN2-xTB.
    """

    subset = "NH3"

    def __init__(self, n_train: Size, n_validation: Size, n_test: Size, split_seed: NonNegativeInt) -> None:
        self.sizes = {"train": n_train, "validation": n_validation, "test": n_test}
        self.split_seed = split_seed

    def load(self) -> Structures:
        names = ("positions", "energies", "forces", "symbols")
        arrays = read_npz(FILE, {name: name for name in names})
        return Structures.from_frames(
            species_to_numbers(arrays["symbols"], FILE),
            *(numeric(arrays[name], name, FILE) for name in names[:3]),
            origin=str(FILE),
        )

    def split(self, structures: Structures) -> Splits:
        splits = split_frames(structures[np.arange(NEAR)], self.sizes, 1, self.split_seed)
        return splits | {OUT_OF_DOMAIN: np.arange(NEAR, len(structures))}
