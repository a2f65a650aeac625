"""Labels on disk, one small JSON file each, found by the content of geometry and engine."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqbench.errors import ConfigError
from uqbench.runs.files import atomic_write

log = logging.getLogger(__name__)

FORMAT = 1
DECIMALS = 8  # of positions and cells in Å: what is labelled is the rounded geometry, whoever asks first


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """Energy in eV and forces (n, 3) in eV/Å of one geometry, float64."""

    energy: float
    forces: NDArray[np.float64]


Geometry = dict[str, Any]
"""Keyword arguments of `ase.Atoms`: numbers, positions, cell and pbc, as plain lists of exact numbers."""


def geometry_of(atoms: Atoms) -> Geometry:
    """What a label may depend on, rounded to DECIMALS; a cell without periodic directions is left out."""
    cell = np.asarray(atoms.cell) if atoms.pbc.any() else np.zeros((3, 3))
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": _rounded(atoms.positions),
        "cell": _rounded(cell),
        "pbc": atoms.pbc.tolist(),
    }


class LabelCache:
    """The labels of one engine with one setting.

    Args:
        folder: for the labels of all engines.
        engine: plain values that decide the label of a geometry: name, settings and versions.
    """

    def __init__(self, folder: Path, engine: Mapping[str, Any]) -> None:
        self.engine = _canonical(engine)
        self.folder = folder / f"{engine['oracle'].rpartition('.')[2].lower()}-{_sha256(self.engine)[:16]}"

    def key(self, geometry: Geometry) -> str:
        """Name of a geometry: equal for equal rounded geometries only."""
        return _sha256(geometry)

    def read(self, key: str, geometry: Geometry) -> Label | None:
        """The label of a geometry, or None; a damaged file counts as none, with a warning."""
        path = self._path(key)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return _damaged(path, error)
        try:
            checksum = record.pop("sha256")
            label = Label(float(record["energy"]), np.array(record["forces"], np.float64))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return _damaged(path, error)
        if checksum != _sha256(record):
            return _damaged(path, "checksum")
        if record["engine"] != self.engine or record["geometry"] != geometry:
            return _damaged(path, "it is of another geometry or engine")
        return label

    def write(self, key: str, geometry: Geometry, label: Label) -> None:
        """Store a label whole; floats round-trip. Raises ConfigError when the folder cannot be written."""
        record = {"format": FORMAT, "engine": self.engine, "geometry": geometry}
        record |= {"energy": label.energy, "forces": label.forces.tolist()}
        try:
            with atomic_write(self._path(key)) as temporary:
                temporary.write_text(json.dumps(record | {"sha256": _sha256(record)}) + "\n", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def claim(self, key: str) -> Reservation | None:
        """Reserve a geometry for this process, or None when another process is labelling it.

        A claim ends with the process that holds it. Look for the label once more after claiming.
        """
        path = self._path(key).with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                return None
            # A file system without locks: two processes may do the same work, and both results are whole.
        return Reservation(path, descriptor)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


class Reservation:
    """The right to label a geometry, until `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def release(self) -> None:
        """Let others have it. The lock file goes first: who opens it now finds the label, or takes over."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self.descriptor)


def _rounded(values: NDArray) -> list:
    return (np.round(np.asarray(values, np.float64), DECIMALS) + 0.0).tolist()  # + 0.0: no negative zeros


def _canonical(value: Any) -> Any:
    """Plain values in which a number counts by value: 300 is 300.0."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _damaged(path: Path, reason: object) -> None:
    log.warning("%s: damaged (%s), labelling again", path, reason)


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write to {folder} ({error.strerror}); set oracle.cache or the environment UQBENCH_CACHE"
    )
