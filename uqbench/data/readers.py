"""Reading labelled frames from files of other programs: what the data sets `nff`, `file` and `silica` share."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from uqbench.data.checks import listed
from uqbench.data.structures import Structures
from uqbench.errors import DataError
from uqbench.units import energy_factor

# The classes under which NFF data sets were pickled; both are read into the stub below.
CLASSES = ("nff.data.dataset.Dataset", "uq.data.dataset.Dataset")
NEEDED = ("nxyz", "energy", "energy_grad")
PATIENCE = 1000  # lines beyond the end of a file
ISOTOPES = ("D", "T")

log = logging.getLogger(__name__)


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

    def read() -> Any:
        kind = get_ioformat(format or filetype(str(path)))
        if kind.acceptsfd and not kind.isbinary:
            with _Ending(open_with_compression(str(path), "rb")) as file:
                return ase.io.read(file, index=index, format=kind.name)
        return ase.io.read(path, index=index, format=kind.name)

    try:
        try:
            frames = read()
        except KeyError as error:
            if error.args[0] not in ISOTOPES:
                raise
            log.warning("%s: D and T are read as hydrogen", path)
            with _isotopes():
                frames = read()
    except Exception as error:  # ASE's readers raise whatever their parsing stumbles over
        if isinstance(error, KeyError) and re.fullmatch(r"[A-Za-z]{1,3}", str(error.args[0])):
            raise DataError(f"{path}: unknown element '{error.args[0]}'; {remedy}") from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: ASE cannot read it as {format or 'the format that its name suggests'} ({reason}); {remedy}"
        ) from error
    return [frames] if isinstance(frames, Atoms) else list(frames)


@contextlib.contextmanager
def _isotopes() -> Iterator[None]:
    """Let ASE's readers take the isotopes of hydrogen for hydrogen."""
    atomic_numbers.update(dict.fromkeys(ISOTOPES, 1))
    try:
        yield
    finally:
        for symbol in ISOTOPES:
            del atomic_numbers[symbol]


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
    missing: Literal["refuse", "drop"] = "refuse",
) -> Structures:
    """Pack ASE frames with the labels under some keys, see `Structures.from_atoms`; factors to Å, eV and eV/Å.

    missing: whether frames without a label are an error or left out, as long as others have them.
    """
    for atoms in frames:
        # Lengths come first: the check for overlapping atoms needs Å.
        atoms.set_cell(atoms.cell[:] * length, scale_atoms=False)
        atoms.set_positions(atoms.positions * length, apply_constraint=False)
    keys = {"energy_key": energy_key, "force_key": force_key}
    packed = _complete(Structures.from_atoms(frames, origin=str(path), labels="some", **keys), missing)
    if packed is None:
        packed = Structures.from_atoms(frames, origin=str(path), **keys)
    if len(frames) > 1 and np.ptp(packed.energies) == 0:
        varying = _varying(frames)
        if varying:
            log.warning("%s: keys whose numbers differ from frame to frame: %s", path, ", ".join(varying))
    return dataclasses.replace(packed, energies=packed.energies * energy, forces=packed.forces * force)


def _complete(structures: Structures, missing: Literal["refuse", "drop"]) -> Structures | None:
    """The frames that have all labels; None where not one has them. Raises DataError where others are to be refused."""
    labelled = {"energy": structures.has_energies, "forces": structures.has_forces}
    both = labelled["energy"] & labelled["forces"]
    if not both.any():
        return None
    if both.all():
        return structures
    what = ", ".join(f"{np.sum(~there)} without {name}" for name, there in labelled.items() if not there.all())
    frames = listed(structures.ids[~both])
    if missing == "refuse":
        raise DataError(
            f"{structures.origin}: {np.sum(~both)} of {len(both)} frames lack a label ({what}: frames {frames}); "
            "dataset.missing=drop leaves them out"
        )
    log.warning("%s: left out %d of %d frames (%s: frames %s)", structures.origin, sum(~both), len(both), what, frames)
    return structures[both]


def _varying(frames: Sequence[Atoms]) -> list[str]:
    """The keys of `info` and of results that hold one number in each frame, and not always the same."""
    stores = [atoms.info | (atoms.calc.results if atoms.calc is not None else {}) for atoms in frames]
    keys = set(stores[0]).intersection(*stores[1:])
    numbers = {key: [store[key] for store in stores] for key in keys}
    return sorted(
        str(key)
        for key, values in numbers.items()
        if all(isinstance(value, int | float | np.number) for value in values) and len(set(map(float, values))) > 1
    )


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
