"""rMD17: ten molecules, PBE/def2-SVP, with the official splits (Christensen and von Lilienfeld, 2020, CC0)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval
from ase import units
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from uqbench.config.annotations import Fraction
from uqbench.data.arrays import numeric, read_npz, species_to_numbers
from uqbench.data.download import cache_folder, fetch, unpack
from uqbench.data.sources.base import Dataset, require_root
from uqbench.data.structures import Splits, Structures, check_splits, random_split
from uqbench.errors import DataError

MOLECULES = (
    "aspirin",
    "azobenzene",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "paracetamol",
    "salicylic",
    "toluene",
    "uracil",
)
OFFICIAL_SPLITS = range(1, 6)
ARCHIVE = "rmd17.tar.bz2"
# `old_indices` also stands in the files, but points into the original MD17: never a row here.
KEYS = {"numbers": "nuclear_charges", "positions": "coords", "energies": "energies", "forces": "forces"}
KCAL_MOL = units.kcal / units.mol


class RMD17(Dataset):
    """The training and test frames of one official split of one molecule.

    Source, in this order: the folder `rmd17` in `data_root`; the archive `rmd17.tar.bz2` in `data_root`; the archive
    in the cache, downloaded from `url` if it is not there (null forbids that). Files of an archive whose md5 fits
    are unpacked into `cache` (null: the operating system's cache folder). Only the frames that the split uses are
    kept; `ids` are their rows in the npz file.

    `validation_fraction` of the split's training frames, drawn with `split_seed`, validate; the study takes 0.2.
    `n_train` uses only so many of the official training frames, validation included; null all of them.
    """

    def __init__(
        self,
        molecule: Literal[MOLECULES],
        split: Annotated[int, Interval(ge=1, le=5)],
        n_train: PositiveInt | None,
        validation_fraction: Fraction,
        split_seed: NonNegativeInt,
        data_root: str | None,
        cache: str | None,
        url: str | None,
        md5: str,
    ) -> None:
        self.molecule = molecule
        self.split_index = split
        self.n_train = n_train
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.data_root = data_root
        self.cache = cache
        self.url = url
        self.md5 = md5
        self.subset = molecule

    def load(self) -> Structures:
        folder = self._folder()
        path = folder / _frames(self.molecule)
        arrays = read_npz(path, KEYS)
        numbers = species_to_numbers(arrays.pop("numbers"), path)
        arrays = {name: numeric(array, name, path) for name, array in arrays.items()}
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) != 1:
            raise DataError(f"{path}: the arrays differ in their number of frames: {counts}")
        rows = np.unique(np.concatenate([self._rows(folder, part) for part in ("train", "test")]))
        if rows[0] < 0 or rows[-1] >= counts["energies"]:
            outside = rows[0] if rows[0] < 0 else rows[-1]
            raise DataError(
                f"split {self.split_index} of {folder / 'splits'} points at frame {outside}, but {path} has frames "
                f"0..{counts['energies'] - 1}; the split files belong to another version of the data"
            )
        return Structures.from_frames(
            numbers,
            arrays["positions"][rows],
            arrays["energies"][rows] * KCAL_MOL,
            arrays["forces"][rows] * KCAL_MOL,
            ids=rows,
            origin=str(path),
        )

    def split(self, structures: Structures) -> Splits:
        folder = self._folder()
        # `load` left the ids ascending, so that a row is found by bisection.
        official, test = (np.searchsorted(structures.ids, self._rows(folder, part)) for part in ("train", "test"))
        n_train = len(official) if self.n_train is None else self.n_train
        n_validation = round(self.validation_fraction * n_train)
        sizes = {"train": n_train - n_validation, "validation": n_validation}
        drawn = random_split(len(official), sizes, self.split_seed)
        splits = {name: np.sort(official[chosen]) for name, chosen in drawn.items()} | {"test": np.sort(test)}
        check_splits(splits, len(structures))
        return splits

    def _rows(self, folder: Path, part: str) -> NDArray[np.int64]:
        path = folder / _rows_file(part, self.split_index)
        try:
            rows = np.array([int(line) for line in path.read_text(encoding="utf-8").split()], np.int64)
        except (OSError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: expected one whole number a line ({error})") from None
        if len(rows) == 0:
            raise DataError(f"{path}: names no frame")
        return rows

    def _folder(self) -> Path:
        """Return the folder that holds `npz_data` and `splits`, unpacked or downloaded if need be."""
        root = None if self.data_root is None else require_root(self.data_root)
        needed = [_frames(self.molecule), *(_rows_file(part, self.split_index) for part in ("train", "test"))]
        if root is not None and (root / "rmd17").is_dir():
            missing = [name for name in needed if not (root / "rmd17" / name).is_file()]
            if missing:
                raise DataError(
                    f"{root / 'rmd17' / missing[0]} does not exist; put the official file there, or set "
                    f"data_root to a folder that holds rmd17/ or {ARCHIVE}, or to null to download it"
                )
            return root / "rmd17"
        cache = cache_folder(self.cache)
        unpacked = cache / f"rmd17-{self.md5[:8]}"
        if not all((unpacked / "rmd17" / name).is_file() for name in needed):
            archive = self._archive(root, cache)
            # One pass over a gigabyte finds all split files as soon as one.
            every = {_rows_file(part, k) for part in ("train", "test") for k in OFFICIAL_SPLITS} | set(needed)
            unpack(archive, {f"rmd17/{name}" for name in every}, unpacked)
        return unpacked / "rmd17"

    def _archive(self, root: Path | None, cache: Path) -> Path:
        advice = (
            f"fetch {ARCHIVE} (1.07 GB, md5 {self.md5}) where there is a network and put it into "
            f"{root or cache}, or set data_root to a folder that holds rmd17/npz_data and rmd17/splits"
        )
        for folder in (root, None if self.url else cache):
            if folder is not None and (folder / ARCHIVE).is_file():
                with open(folder / ARCHIVE, "rb") as file:
                    checksum = hashlib.file_digest(file, "md5").hexdigest()
                if checksum != self.md5:
                    raise DataError(
                        f"{folder / ARCHIVE} has the md5 {checksum}, not {self.md5}: damaged or incomplete; {advice}"
                    )
                return folder / ARCHIVE
        if self.url is None:
            raise DataError(f"no rmd17/ or {ARCHIVE} in {root or cache}, and dataset.url is null; {advice}")
        return fetch(self.url, self.md5, cache / ARCHIVE, advice)


def _frames(molecule: str) -> str:
    return f"npz_data/rmd17_{molecule}.npz"


def _rows_file(part: str, split: int) -> str:
    return f"splits/index_{part}_{split:02d}.csv"
