"""Reading labelled frames from files of other programs: what the data sets `nff`, `file` and `silica` share."""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from uqbench.data.structures import Structures
from uqbench.errors import DataError
from uqbench.units import energy_factor

# The classes under which NFF data sets were pickled; both are read into the stub below.
CLASSES = ("nff.data.dataset.Dataset", "uq.data.dataset.Dataset")
NEEDED = ("nxyz", "energy", "energy_grad")
PATIENCE = 1000  # lines beyond the end of a file


class _Stub:
    """Stands in for the pickled class: an object with attributes and no behaviour."""


def nff_properties(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return `props` and `units` of a pickled NFF `Dataset`, without running any code that it carries.

    Raises DataError when the file is damaged or of another kind, asks for code, or lacks a property that is needed.
    """
    stored = _load(path)
    props = getattr(stored, "props", stored)
    if not isinstance(props, dict):
        raise DataError(f"{path}: no NFF data set (its content has no `props`)")
    missing = [name for name in NEEDED if name not in props]
    if missing:
        raise DataError(f"{path} has no {', '.join(missing)} (properties there: {', '.join(map(str, props))})")
    return props, getattr(stored, "units", None)


def nff_frames(
    props: Mapping[str, Any], units: str | None, path: Path, *, energy_unit: str | None, rows: Sequence[int] | None
) -> Structures:
    """Pack `props`: `nxyz` [Z, x, y, z] in Å, `energy`, `energy_grad` (minus forces) and, of crystals, `lattice`.

    `energy_unit` null takes the file's own `units`; gradients are in that unit per Å. `rows` [start, stop) keeps a
    range of the rows, null all. Raises DataError when the properties do not fit together.
    """
    try:
        return _pack(props, units, path, energy_unit, rows)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: its properties do not fit together ({error})") from error


def ase_frames(
    path: Path,
    *,
    format: str | None,
    index: str,
    remedy: str = "check the file, dataset.format and dataset.index",
) -> list[Atoms]:
    """Return the frames of a file that ASE can read; raises DataError for any other, which says `remedy`."""
    import ase.io
    from ase.io.formats import filetype, get_ioformat, open_with_compression

    try:
        kind = get_ioformat(format or filetype(str(path)))
        if kind.acceptsfd and not kind.isbinary:
            with _Ending(open_with_compression(str(path), "rb")) as file:
                frames = ase.io.read(file, index=index, format=kind.name)
        else:
            frames = ase.io.read(path, index=index, format=kind.name)
    except Exception as error:  # ASE's readers raise whatever their parsing stumbles over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: ASE cannot read it as {format or 'the format that its name suggests'} ({reason}); {remedy}"
        ) from error
    return [frames] if isinstance(frames, Atoms) else list(frames)


class _Ending(io.TextIOWrapper):
    """A text file that raises EOFError for who keeps asking for lines at its end.

    Many readers do, as often as the file says that it has atoms; and some until they find a word.
    """

    _missed = 0

    def readline(self, *size: int) -> str:
        """Return the next line, or nothing at the end."""
        line = super().readline(*size)
        self._missed = 0 if line else self._missed + 1
        if self._missed > PATIENCE:
            raise EOFError("it ends where it should go on")
        return line


def labelled_frames(
    frames: Sequence[Atoms],
    path: Path,
    *,
    energy_key: str | None,
    force_key: str | None,
    length: float,
    energy: float,
    force: float,
) -> Structures:
    """Pack ASE frames with the labels under some keys, see `Structures.from_atoms`; factors to Å, eV and eV/Å."""
    for atoms in frames:
        # Lengths come first: the check for overlapping atoms needs Å.
        atoms.set_cell(atoms.cell[:] * length, scale_atoms=False)
        atoms.set_positions(atoms.positions * length, apply_constraint=False)
    packed = Structures.from_atoms(frames, origin=str(path), energy_key=energy_key, force_key=force_key)
    return dataclasses.replace(packed, energies=packed.energies * energy, forces=packed.forces * force)


def _pack(
    props: Mapping[str, Any], units: str | None, path: Path, energy_unit: str | None, rows: Sequence[int] | None
) -> Structures:
    if energy_unit is None and units is None:
        raise DataError(f"{path} names no units; set dataset.energy_unit")
    factor = energy_factor(energy_unit or units)
    rows = _chosen_rows(rows, len(props["nxyz"]), path)
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


def _chosen_rows(rows: Sequence[int] | None, n_rows: int, path: Path) -> list[int]:
    if rows is None:
        return list(range(n_rows))
    if len(rows) != 2 or not 0 <= rows[0] < rows[1] <= n_rows:
        raise DataError(f"{path} has rows 0..{n_rows - 1}; dataset.rows must be [start, stop], it is {list(rows)}")
    return list(range(*rows))


def _load(path: Path) -> Any:
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
