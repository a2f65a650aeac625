"""Legacy NeuralForceField data sets (`*.pth.tar`), read without running any code they carry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from uqbench.data.readers import nff_frames, nff_properties
from uqbench.data.sources.base import Dataset, Size, distinct, find_file, read_split_file, split_frames
from uqbench.data.structures import Splits, Structures
from uqbench.units import EnergyUnit


class NFF(Dataset):
    """Frames of a pickled NFF `Dataset`: `nxyz` [Z, x, y, z] in Å, `energy`, `energy_grad` (minus forces), `lattice`.

    `energy_unit` null takes the file's own `units`; gradients are in that unit per Å. `rows` [start, stop) keeps a
    range of the file's rows, null all. `deduplicate` drops repeated geometries before splitting. Neighbour lists in
    the file are ignored. Paths are relative to `data_root`.
    """

    def __init__(
        self,
        path: str,
        data_root: str | None,
        energy_unit: EnergyUnit | None,
        rows: Sequence[int] | None,
        deduplicate: bool,
        n_train: Size,
        n_validation: Size,
        n_test: Size,
        block: PositiveInt,
        split_seed: NonNegativeInt,
        split_file: str | None,
    ) -> None:
        self.path = path
        self.data_root = data_root
        self.energy_unit = energy_unit
        self.rows = None if rows is None else list(rows)
        self.deduplicate = deduplicate
        self.sizes = {"train": n_train, "validation": n_validation, "test": n_test}
        self.block = block
        self.split_seed = split_seed
        self.split_file = split_file
        self.subset = Path(path).name.removesuffix(".tar").removesuffix(".pth")

    def load(self) -> Structures:
        path = find_file(self.path, self.data_root)
        props, units = nff_properties(path)
        structures = nff_frames(props, units, path, energy_unit=self.energy_unit, rows=self.rows)
        return distinct(structures) if self.deduplicate else structures

    def split(self, structures: Structures) -> Splits:
        if self.split_file is not None:
            return read_split_file(find_file(self.split_file, self.data_root), len(structures))
        return split_frames(structures, self.sizes, self.block, self.split_seed)
