"""Any file that `ase.io.read` takes: extended XYZ, ASE trajectories and databases, VASP output and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from uqbench.data.readers import ase_frames, labelled_frames
from uqbench.data.sources.base import Dataset, Size, distinct, find_file, read_split_file, split_frames
from uqbench.data.structures import Splits, Structures
from uqbench.units import EnergyUnit, ForceUnit, LengthUnit, energy_factor, force_factor, length_factor


class AseFile(Dataset):
    """Frames of one file, with labels under the chosen keys.

    `format` null lets ASE guess from the name; `index` is ASE's frame selection, ":" for all. `energy_key` names an
    entry of `atoms.info` and `force_key` one of `atoms.arrays`; null, and the plain names `energy` and `forces`,
    which ASE moves there while reading, take the label from the attached calculator. Forces are those in the file:
    constraints, through which ASE would return zeros, are not applied. Frames that lack a label which others have are
    refused, or left out with `missing` drop. Paths are relative to `data_root`.
    """

    def __init__(
        self,
        path: str,
        data_root: str | None,
        format: str | None,
        index: str | int,
        energy_key: str | None,
        force_key: str | None,
        missing: Literal["refuse", "drop"],
        length_unit: LengthUnit,
        energy_unit: EnergyUnit,
        force_unit: ForceUnit,
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
        self.format = format
        self.index = str(index)
        self.energy_key = energy_key
        self.force_key = force_key
        self.missing = missing
        self.length = length_factor(length_unit)
        self.energy = energy_factor(energy_unit)
        self.force = force_factor(force_unit)
        self.deduplicate = deduplicate
        self.sizes = {"train": n_train, "validation": n_validation, "test": n_test}
        self.block = block
        self.split_seed = split_seed
        self.split_file = split_file
        self.subset = Path(path).stem

    def load(self) -> Structures:
        path = find_file(self.path, self.data_root)
        frames = ase_frames(path, format=self.format, index=self.index)
        keys = {"energy_key": self.energy_key, "force_key": self.force_key}
        factors = {"length": self.length, "energy": self.energy, "force": self.force}
        structures = labelled_frames(frames, path, **keys, **factors, missing=self.missing)
        return distinct(structures) if self.deduplicate else structures

    def split(self, structures: Structures) -> Splits:
        if self.split_file is not None:
            return read_split_file(find_file(self.split_file, self.data_root), len(structures))
        return split_frames(structures, self.sizes, self.block, self.split_seed)
