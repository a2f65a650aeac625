"""Frames with their splits in one file, as uqbench itself keeps them: any compositions, molecules or crystals."""

from __future__ import annotations

import numpy as np

from uqbench.data.arrays import PACKED, SPLIT, read_npz
from uqbench.data.sources.base import SPLITS, Dataset, find_file
from uqbench.data.structures import Splits, Structures
from uqbench.errors import DataError


class Packed(Dataset):
    """A file that `arrays.pack` made; eV, Å and eV/Å.

    `sha256` is that of the frames as `uqbench data` prints it, null for any; a file of other frames is refused.
    Relative paths start at `data_root`.
    """

    def __init__(self, path: str, data_root: str | None, sha256: str | None, subset: str) -> None:
        self.path, self.data_root, self.sha256, self.subset = path, data_root, sha256, subset

    def load(self) -> Structures:
        path = find_file(self.path, self.data_root)
        structures = Structures.from_arrays(**read_npz(path, {name: name for name in PACKED}), origin=str(path))
        if self.sha256 is not None and structures.sha256() != self.sha256:
            raise DataError(f"{path}: not the frames that dataset.sha256 names; restore the file, or set it to null")
        return structures

    def split(self, structures: Structures) -> Splits:
        path = find_file(self.path, self.data_root)
        names = read_npz(path, {"splits": "splits"})["splits"].tolist()
        stored = read_npz(path, {name: SPLIT + name for name in names})
        ordered = [*SPLITS, *(name for name in names if name not in SPLITS)]
        return {name: stored.get(name, np.zeros(0, np.int64)) for name in ordered}
