"""The embedded data set: 1000 frames of ethanol at 500 K, GFN2-xTB; made by scripts/make_quickstart.py."""

from __future__ import annotations

from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from uqbench.data.arrays import numeric, read_npz, species_to_numbers
from uqbench.data.sources.base import Dataset, Size, split_frames
from uqbench.data.structures import Splits, Structures

FILE = Path(__file__).with_name("quickstart.npz")


class Quickstart(Dataset):
    """Ten independent trajectories of 100 frames, shipped in the package; rows 100 k to 100 k + 99 are trajectory k.

    With `block` 100 whole trajectories go to test and validation, so that no test frame has a training frame as its
    neighbour in time. `split_seed` is a setting of its own: runs that differ in `seed` share their split.
    """

    subset = "ethanol"

    def __init__(
        self, n_train: Size, n_validation: Size, n_test: Size, block: PositiveInt, split_seed: NonNegativeInt
    ) -> None:
        self.sizes = {"train": n_train, "validation": n_validation, "test": n_test}
        self.block = block
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
        return split_frames(structures, self.sizes, self.block, self.split_seed)
