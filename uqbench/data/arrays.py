"""Reading `.npz` files: no pickles, and every kind of damage becomes one clear line; and writing whole data sets."""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from uqbench.data.structures import Structures
from uqbench.errors import DataError

PACKED = tuple(field.name for field in dataclasses.fields(Structures) if field.name != "origin")
"""Arrays of a file that holds a whole data set."""
SPLIT = "split_"  # before the names of its splits


def pack(structures: Structures, splits: Mapping[str, NDArray[np.int64]]) -> bytes:
    """Return the content of a file that `dataset=packed` reads: the frames, and which of them belong to each split.

    Raises DataError for frames without labels: what reads such a file may train on it.
    """
    structures.require_labels()
    buffer = io.BytesIO()
    arrays = {name: getattr(structures, name) for name in PACKED}
    parts = {SPLIT + name: frames for name, frames in splits.items()}
    np.savez_compressed(buffer, **arrays, splits=np.array(list(splits)), **parts)
    return buffer.getvalue()


def read_npz(path: Path, keys: Mapping[str, str]) -> dict[str, NDArray]:
    """Return the arrays of an npz file, keyed by the names in `keys`, which maps our name to the file's.

    Raises DataError when the file is damaged, holds pickled objects or lacks a key.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys.values() if key not in archive.files]
            if missing:
                there = ", ".join(archive.files) or "none"
                raise DataError(f"{path} has no array {', '.join(missing)} (arrays there: {there})")
            return {name: archive[key] for name, key in keys.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, TypeError, AttributeError) as error:
        # A single .npy array is no context manager: TypeError or AttributeError, by Python version.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read as an npz file: truncated, damaged or of another kind ({reason}); fetch it again"
        ) from None


def numeric(array: NDArray, name: str, path: Path) -> NDArray[np.float64]:
    """Return the array as float64; raises DataError when it does not hold real numbers."""
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} do not hold numbers but {array.dtype}")
    return array.astype(np.float64, copy=False)


def species_to_numbers(species: NDArray, path: Path) -> NDArray[np.int64]:
    """Return atomic numbers (n,) from element symbols or atomic numbers (n,); raises DataError for anything else."""
    if species.ndim != 1:
        raise DataError(f"{path}: the elements have shape {species.shape}, expected (atoms,), the same in all frames")
    if species.dtype.kind in "iu":
        return species.astype(np.int64)
    unknown = sorted({str(symbol) for symbol in species} - set(atomic_numbers))
    if unknown:
        raise DataError(f"{path}: unknown element '{unknown[0]}'")
    return np.array([atomic_numbers[str(symbol)] for symbol in species], np.int64)
