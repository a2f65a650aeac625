"""The study's silica glass, from a file that the user has: trained on mild frames, tested on more extreme ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from uqbench.data.readers import ase_frames, labelled_frames, nff_frames, nff_properties
from uqbench.data.sources import OUT_OF_DOMAIN
from uqbench.data.sources.base import (
    SPLITS,
    Dataset,
    Size,
    distinct,
    find_file,
    frame_count,
    read_split_file,
    split_frames,
)
from uqbench.data.structures import Splits, Structures
from uqbench.errors import DataError
from uqbench.seeding import numpy_generator
from uqbench.units import EnergyUnit, energy_factor

NFF = "nff"
SUFFIX = ".pth.tar"  # of NFF data sets
SOURCE = "materialscloud:55-sd"
UNITS = {"forces": "eV/Å", "energy": "eV per atom", "temperature": "K"}


class Silica(Dataset):
    """Periodic frames of a file in NFF's format (`.pth.tar` with `lattice`) or one that ASE reads, split by extremity.

    The study trained on 699-atom frames (PBE) at low temperature and tested on more extreme ones, whose forces span
    about twice the range. Its own split is not known here: give it as `split_file`, which may name
    {"train", "validation", "test", "out_of_domain"}. Otherwise a frame is in the domain when its measure is at most
    `below`; those frames are divided into train, validation and test, and all others are the split `out_of_domain`.

    Files of MD hold frames that resemble their neighbours, so `block` consecutive rows never part: a block is in the
    domain only when all of its frames are. Milder frames of other blocks are in no split. Data: materialscloud:55-sd.

    Args:
        path: relative to `data_root`, or absolute. format: `nff`, one of ASE's, or null to go by the name.
        energy_unit: of energies, and of forces per Å; null for the file's own in NFF files and for eV in others.
        energy_key, force_key: of the labels in files of ASE, see conf/dataset/file.yaml.
        by: what makes a frame extreme: the largest component of its forces, its energy per atom above the lowest, or
            its temperature in the file, under `temperature_key` (in `props` of NFF files, in `info` of others).
        below: in eV/Å, eV per atom or K; null for half of the largest there is, so that the test's range is twice
            that of the training.
        n_train, n_validation, n_test: of the frames in the domain. n_out_of_domain: of the others.
    """

    subset = "SiO2"

    def __init__(
        self,
        path: str,
        data_root: str | None,
        format: str | None,
        energy_unit: EnergyUnit | None,
        energy_key: str | None,
        force_key: str | None,
        deduplicate: bool,
        by: Literal["forces", "energy", "temperature"],
        below: PositiveFloat | None,
        temperature_key: str,
        n_train: Size,
        n_validation: Size,
        n_test: Size,
        n_out_of_domain: Size,
        block: PositiveInt,
        split_seed: NonNegativeInt,
        split_file: str | None,
    ) -> None:
        self.path, self.data_root, self.format = path, data_root, format
        self.energy_unit, self.energy_key, self.force_key = energy_unit, energy_key, force_key
        self.deduplicate = deduplicate
        self.by, self.below, self.temperature_key = by, below, temperature_key
        self.sizes = {"train": n_train, "validation": n_validation, "test": n_test}
        self.n_out_of_domain = n_out_of_domain
        self.block, self.split_seed, self.split_file = block, split_seed, split_file

    def load(self) -> Structures:
        path = self._file()
        content, units = self._read(path)
        if self._is_nff():
            structures = nff_frames(content, units, path, energy_unit=self.energy_unit, rows=None)
        else:
            factor = energy_factor(self.energy_unit or "eV")
            keys = {"energy_key": self.energy_key, "force_key": self.force_key}
            structures = labelled_frames(content, path, **keys, length=1.0, energy=factor, force=factor)
        if not structures.pbc.all():
            number = structures.ids[np.flatnonzero(~structures.pbc.all(axis=1))[0]]
            what = "lattice" if self._is_nff() else "cell that is periodic in all directions"
            raise DataError(f"{path}: frame {number} has no {what}; silica glass is periodic, take the original file")
        return distinct(structures) if self.deduplicate else structures

    def split(self, structures: Structures) -> Splits:
        if self.split_file is not None:
            names = (*SPLITS, OUT_OF_DOMAIN)
            return read_split_file(find_file(self.split_file, self.data_root), len(structures), names)
        measures = self._measures(structures)
        below = measures.max() / 2 if self.below is None else self.below
        mild = measures <= below
        blocks = structures.ids // self.block
        domain = np.flatnonzero(~np.isin(blocks, blocks[~mild]))
        far = np.flatnonzero(~mild)
        if not len(domain) or not len(far):
            side = "below" if len(far) else "above"
            extent = f"{self.by} go from {measures.min():.3g} to {measures.max():.3g}, in blocks of {self.block} frames"
            raise DataError(
                f"{structures.origin}: no frame is {side} dataset.below = {below:.3g} {UNITS[self.by]} ({extent}); "
                "choose another dataset.below or dataset.block"
            )
        splits = split_frames(structures[domain], self.sizes, self.block, self.split_seed)
        count = frame_count(self.n_out_of_domain, len(far))
        if count is not None and count > len(far):
            raise DataError(f"{structures.origin}: {OUT_OF_DOMAIN} needs {count} frames, {len(far)} are that extreme")
        drawn = numpy_generator(self.split_seed, "split", OUT_OF_DOMAIN).permutation(far)[:count]
        return {name: domain[frames] for name, frames in splits.items()} | {OUT_OF_DOMAIN: np.sort(drawn)}

    def _measures(self, structures: Structures) -> NDArray[np.float64]:
        """How extreme each frame is, (S,)."""
        if self.by == "forces":
            return np.maximum.reduceat(np.abs(structures.forces).max(axis=1), structures.ptr[:-1])
        if self.by == "energy":
            energies = structures.energies / structures.n_atoms
            return energies - energies.min()
        temperatures = self._temperatures()
        if len(temperatures) <= structures.ids.max():
            raise DataError(f"{structures.origin}: {len(temperatures)} temperatures for more frames")
        return temperatures[structures.ids]

    def _temperatures(self) -> NDArray[np.float64]:
        path, key = self._file(), self.temperature_key
        content, _ = self._read(path)
        stores = [content] if self._is_nff() else [atoms.info for atoms in content]
        missing = next((store for store in stores if key not in store), None)
        if missing is not None:
            known = ", ".join(map(str, missing)) or "none"
            raise DataError(f"{path} has no temperature '{key}' (keys there: {known}); set dataset.temperature_key")
        try:
            values = content[key] if self._is_nff() else [store[key] for store in stores]
            temperatures = np.array([np.asarray(value, np.float64).item() for value in values])
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: '{key}' does not hold one number for each frame ({error})") from None
        if not np.isfinite(temperatures).all():
            raise DataError(f"{path}: '{key}' is not finite everywhere")
        return temperatures

    def _file(self) -> Path:
        try:
            return find_file(self.path, self.data_root)
        except DataError as error:
            raise DataError(f"{error}; the study's data are at {SOURCE}") from None

    def _is_nff(self) -> bool:
        return self.format == NFF or (self.format is None and self.path.endswith(SUFFIX))

    def _read(self, path: Path) -> tuple[dict[str, Any] | Sequence[Atoms], str | None]:
        """Properties and units of an NFF file, or the frames of another."""
        return nff_properties(path) if self._is_nff() else (ase_frames(path, format=self.format, index=":"), None)
