"""Packed arrays: frames of one composition in an `.npz` file, molecules or crystals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from uqbench.data.arrays import numeric, read_npz, species_to_numbers
from uqbench.data.sources.base import Dataset, Size, distinct, find_file, read_split_file, split_frames
from uqbench.data.structures import Splits, Structures
from uqbench.errors import DataError
from uqbench.units import EnergyUnit, ForceUnit, LengthUnit, energy_factor, force_factor, length_factor


class Npz(Dataset):
    """F frames of the same n atoms: positions (F, n, 3), energies (F,), forces (F, n, 3), species (n,).

    `species_key` holds element symbols or atomic numbers. `cells_key` holds (F, 3, 3) lattice vectors as rows, and
    the frames are periodic in all three directions; null means molecules. Paths are relative to `data_root`.
    """

    def __init__(
        self,
        path: str,
        data_root: str | None,
        positions_key: str,
        energies_key: str,
        forces_key: str,
        species_key: str,
        cells_key: str | None,
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
        self.keys = {
            "positions": positions_key,
            "energies": energies_key,
            "forces": forces_key,
            "species": species_key,
        } | ({} if cells_key is None else {"cells": cells_key})
        length = length_factor(length_unit)
        self.factors = {
            "positions": length,
            "cells": length,
            "energies": energy_factor(energy_unit),
            "forces": force_factor(force_unit),
        }
        self.deduplicate = deduplicate
        self.sizes = {"train": n_train, "validation": n_validation, "test": n_test}
        self.block = block
        self.split_seed = split_seed
        self.split_file = split_file
        self.subset = Path(path).stem

    def load(self) -> Structures:
        path = find_file(self.path, self.data_root)
        arrays = read_npz(path, self.keys)
        numbers = species_to_numbers(arrays.pop("species"), path)
        arrays = {name: numeric(array, name, path) * self.factors[name] for name, array in arrays.items()}
        if arrays["energies"].ndim == 2 and arrays["energies"].shape[1] == 1:  # as sGDML writes them
            arrays["energies"] = arrays["energies"][:, 0]
        cells = arrays.pop("cells", None)
        if cells is not None and cells.shape[-2:] != (3, 3):
            raise DataError(f"{path}: cells have shape {cells.shape}, expected (frames, 3, 3)")
        pbc = None if cells is None else np.ones((len(cells), 3), bool)
        structures = Structures.from_frames(numbers, **arrays, cells=cells, pbc=pbc, origin=str(path))
        return distinct(structures) if self.deduplicate else structures

    def split(self, structures: Structures) -> Splits:
        if self.split_file is not None:
            return read_split_file(find_file(self.split_file, self.data_root), len(structures))
        return split_frames(structures, self.sizes, self.block, self.split_seed)
