"""Legacy NeuralForceField data sets (`*.pth.tar`), read without running any code they carry."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uqbench.datasets.base import Dataset, Size, choose, distinct, find_file, read_split_file, split_frames
from uqbench.datasets.units import ENERGY, energy_factor
from uqbench.errors import DataError
from uqbench.structures import Splits, Structures

# The classes under which such files were pickled; both are read into the stub below.
CLASSES = ("nff.data.dataset.Dataset", "uq.data.dataset.Dataset")
NEEDED = ("nxyz", "energy", "energy_grad")


class _Stub:
    """Stands in for the pickled class: an object with attributes and no behaviour."""


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
        energy_unit: str | None,
        rows: Sequence[int] | None,
        deduplicate: bool,
        n_train: Size,
        n_validation: Size,
        n_test: Size,
        block: int,
        split_seed: int,
        split_file: str | None,
    ) -> None:
        if energy_unit is not None:
            choose(energy_unit, ENERGY, "energy unit")
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
        stored = _read(path)
        props = getattr(stored, "props", stored)
        if not isinstance(props, dict):
            raise DataError(f"{path}: no NFF data set (its content has no `props`)")
        missing = [name for name in NEEDED if name not in props]
        if missing:
            raise DataError(f"{path} has no {', '.join(missing)} (properties there: {', '.join(map(str, props))})")
        try:
            structures = self._pack(props, getattr(stored, "units", None), path)
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(f"{path}: its properties do not fit together ({error})") from error
        return distinct(structures) if self.deduplicate else structures

    def split(self, structures: Structures) -> Splits:
        if self.split_file is not None:
            return read_split_file(find_file(self.split_file, self.data_root), len(structures))
        return split_frames(structures, self.sizes, self.block, self.split_seed)

    def _pack(self, props: dict[str, Any], units: str | None, path: Path) -> Structures:
        if self.energy_unit is None and units is None:
            raise DataError(f"{path} names no units; set dataset.energy_unit")
        factor = energy_factor(self.energy_unit or units)
        rows = self._chosen_rows(len(props["nxyz"]), path)
        atoms = [np.asarray(props["nxyz"][row], np.float64) for row in rows]
        gradients = [np.asarray(props["energy_grad"][row], np.float64) for row in rows]
        for row, nxyz, gradient in zip(rows, atoms, gradients, strict=True):
            if nxyz.shape != (len(nxyz), 4) or gradient.shape != (len(nxyz), 3):
                raise DataError(f"{path}: row {row} has nxyz {nxyz.shape} and energy_grad {gradient.shape}")
        lattice = props.get("lattice")
        packed = np.concatenate(atoms)
        return Structures.from_arrays(
            packed[:, 0].astype(np.int64),
            packed[:, 1:],
            np.array([np.asarray(props["energy"][row], np.float64).item() for row in rows]) * factor,
            -np.concatenate(gradients) * factor,
            np.concatenate([[0], np.cumsum([len(nxyz) for nxyz in atoms])]),
            cells=None if lattice is None else np.stack([np.asarray(lattice[row], np.float64) for row in rows]),
            ids=rows,
            origin=str(path),
        )

    def _chosen_rows(self, n_rows: int, path: Path) -> list[int]:
        if self.rows is None:
            return list(range(n_rows))
        if len(self.rows) != 2 or not 0 <= self.rows[0] < self.rows[1] <= n_rows:
            raise DataError(f"{path} has rows 0..{n_rows - 1}; dataset.rows must be [start, stop], it is {self.rows}")
        return list(range(*self.rows))


def _read(path: Path) -> Any:
    import torch

    try:
        # Warnings are about a foreign file's protocol; what matters is raised.
        with (
            torch.serialization.safe_globals([(_Stub, name) for name in CLASSES]),
            warnings.catch_warnings(action="ignore"),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise DataError(
                f"{path}: refused, because it asks to load '{refused[1]}', which no data set needs; "
                "the file is of another kind or malicious"
            ) from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read as an NFF data set ({reason}); fetch it again") from None
